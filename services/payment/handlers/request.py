"""What every RPC that moves money starts with."""

from __future__ import annotations

import hashlib
from uuid import UUID

from google.protobuf.message import Message

from services.payment.domain.book import Request
from services.rpc.identity import Caller


def once(caller: Caller, request_id: str, body: Message) -> Request:
    """What makes this call happen once: who asked, under which id, for what.

    Two callers may use the same id: each has its own.
    """
    hashed = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
    return Request(scope(caller) + UUID(request_id).bytes, hashed, str(UUID(request_id)))


def scope(caller: Caller) -> bytes:
    """16 bytes that stand for the caller."""
    if caller.service:
        return hashlib.sha256(caller.subject.encode()).digest()[:16]
    return caller.user_id.bytes
