"""What every RPC that moves money starts with."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message
from uuid_utils import UUID

from services.payment.domain.book import Request
from services.rpc.identity import Caller


def once(caller: Caller, request_id: str, body: Message) -> Request:
    """What makes this call happen once: who asked, under which id, for what.

    Two callers may use the same id: each has its own. One caller may not use it for two RPCs, not even where their
    requests look alike on the wire.
    """
    identity = UUID(request_id)
    asked = type(body)()
    asked.CopyFrom(body)
    if "request_id" in asked.DESCRIPTOR.fields_by_name:
        asked.ClearField("request_id")  # in capitals it is the same id
    kind = asked.DESCRIPTOR.full_name.encode()
    hashed = hashlib.sha256(kind + b":" + asked.SerializeToString(deterministic=True)).digest()
    return Request(scope(caller) + identity.bytes, hashed, str(identity))


def scope(caller: Caller) -> bytes:
    """16 bytes that stand for the caller."""
    if caller.service:
        return hashlib.sha256(caller.subject.encode()).digest()[:16]
    return caller.user_id.bytes
