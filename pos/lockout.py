"""The ladder that makes guessing codes at a terminal hopeless."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

FREE = 3
FIRST = timedelta(seconds=10)
LAST = timedelta(seconds=1_280)


@dataclass(frozen=True, slots=True)
class Lockout:
    """How many wrong codes in a row, and until when none is looked at.

    Attributes:
        wrong: Since the last right one.
        until: None while codes are looked at.
        unreported: Since the last journal entry, which tells the server.
    """

    wrong: int = 0
    until: datetime | None = None
    unreported: int = 0

    def left(self, now: datetime) -> timedelta | None:
        """How long still; None when codes are looked at."""
        return self.until - now if self.until is not None and now < self.until else None


def count_wrong(lockout: Lockout, *, now: datetime) -> Lockout:
    """After a wrong code: the third locks for 10 s, and each further one for twice as long, up to 1,280 s."""
    wrong = lockout.wrong + 1
    until = None
    if wrong >= FREE:
        until = now + min(FIRST * 2 ** min(wrong - FREE, 16), LAST)
    return Lockout(wrong, until, lockout.unreported + 1)


def forgiven() -> Lockout:
    """After a right code: its entry reports the wrong ones before it."""
    return Lockout()


def told(lockout: Lockout) -> Lockout:
    """After an entry that reports the wrong ones: nobody is forgiven for it."""
    return Lockout(lockout.wrong, lockout.until)
