"""What goes wrong around a terminal, for the person at the counter."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import timedelta


class PosError(Exception):
    """Something did not work. Nothing is lost by it.

    Attributes:
        reason: A word for programs: UNREACHABLE, IN_USE, NOT_ENROLLED, …, or the platform's own `ErrorReason`.
        metadata: What the platform's refusal quoted.
        retry_after: When waiting helps, how long.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: dict[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata or {}
        self.retry_after = retry_after


@contextlib.contextmanager
def storage(consequence: str) -> Iterator[None]:
    """The disk is full, gone or broken: say what that means."""
    try:
        yield
    except sqlite3.Error as error:
        raise PosError("STORAGE_FAILED", f"{consequence} The disk says: {error}.") from error
