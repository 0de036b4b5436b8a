"""How long wrong passwords make an account wait.

Counted by what was typed as a username, whether or not anybody has it: otherwise the wait would tell which names exist.
The wait is bounded, so nobody is locked out for good, and open sessions are never touched by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.user.domain import refusals

# Mistakes that cost nothing.
FREE_ATTEMPTS = 4
FIRST_DELAY = timedelta(seconds=2)
# At this pace an attacker has 96 guesses a day, below the 100 in a row of NIST SP 800-63B, 5.2.2.
DELAY_MAX = timedelta(minutes=15)
# Without another mistake for this long, the count starts again.
MEMORY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Wrong passwords for one username.

    Attributes:
        wrong: How many, since the last right one or within `MEMORY` of each other.
        last_time: UTC of the last.
        retry_time: No password is looked at before this; UTC.
    """

    wrong: int
    last_time: datetime
    retry_time: datetime


def check(attempts: Attempts | None, *, now: datetime) -> None:
    """Let a password be looked at.

    Raises:
        Refusal: too_many_attempts.
    """
    if attempts is not None and now < attempts.retry_time:
        raise refusals.too_many_attempts(attempts.retry_time - now)


def count_wrong(attempts: Attempts | None, *, now: datetime) -> Attempts:
    """One more: the wait doubles from `FIRST_DELAY` to `DELAY_MAX` after the free ones."""
    forgotten = attempts is None or now - attempts.last_time >= MEMORY
    wrong = 1 if attempts is None or forgotten else attempts.wrong + 1
    return Attempts(wrong, now, now + _delay(wrong))


def _delay(wrong: int) -> timedelta:
    if wrong <= FREE_ATTEMPTS:
        return timedelta(0)
    # The exponent is bounded before it is used: 2**1000 seconds is no timedelta.
    doublings = min(wrong - FREE_ATTEMPTS - 1, 20)
    return min(DELAY_MAX, FIRST_DELAY * (1 << doublings))
