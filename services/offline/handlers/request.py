"""What every RPC with a `request_id` starts with."""

from __future__ import annotations

from hashlib import sha256

from google.protobuf.message import Message
from uuid_utils import UUID


def request_key(asker: UUID, request_id: str) -> bytes:
    """Who asked, under which id. The id in capitals is the same id."""
    return asker.bytes + UUID(request_id).bytes


def body_hash(request: Message) -> bytes:
    """What was asked, without the id it was asked under."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("request_id")
    return sha256(asked.SerializeToString(deterministic=True)).digest()
