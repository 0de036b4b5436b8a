"""Repeated requests get the first answer; the same id with another body is refused."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message
from uuid_utils import UUID

# The caller's part of a request key when anybody may call.
ANYBODY = UUID(int=0)


def request_key(caller: UUID, request_id: str) -> bytes:
    """What one caller's request is stored under; `request_id` is a validated UUID."""
    return caller.bytes + UUID(request_id).bytes


def body_hash(request: Message, *, without: str | None = None) -> bytes:
    """SHA-256 of a request's body, less one secret field."""
    if without is not None:
        copy = type(request)()
        copy.CopyFrom(request)
        copy.ClearField(without)
        request = copy
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
