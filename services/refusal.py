"""How a service says no: expected, enumerated, safe to show."""

from __future__ import annotations

import enum
from datetime import timedelta


class Kind(enum.Enum):
    """What sort of no it is. `rpc/errors.py` alone turns it into a gRPC code."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PRECONDITION = "precondition"
    EXHAUSTED = "exhausted"
    OUT_OF_RANGE = "out_of_range"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class Refusal(Exception):
    """An expected no.

    Args:
        kind: What sort of no it is.
        reason: A name of the service's `ErrorReason` enum, without its prefix.
        message: What happened, then what to do. Safe to show to the caller.
        retry_after: When the same call may succeed, where waiting helps.
        metadata: What the message quotes, as strings, keys in lowerCamelCase.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str,
        # Metadata may have any key, `reason` among them.
        /,
        *,
        retry_after: timedelta | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.metadata = metadata
