"""What time it is for a terminal: never before what the server last said, whatever its own clock shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

# Linux's monotonic clock stands still while a tablet sleeps; this one does not. A code that expires overnight must not
# be taken in the morning.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds_since_boot() -> float:
    """Seconds that only grow, asleep or awake."""
    return time.clock_gettime(_CLOCK)


class TrustedClock:
    """Time that is never before what is known, and does not stand still.

    While the process has spoken with the server, the monotonic clock carries the server's time on, and the wall clock
    is not asked. After a start without network there is only the wall clock, and the floor under it, which rises with
    the monotonic clock: where the wall clock is behind, time goes on from the floor; where it is ahead, codes look
    expired and the terminal asks for a sync, which is safe.

    Args:
        wall: UTC as the machine has it.
        monotonic: Seconds that only grow.
    """

    def __init__(self, wall: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._floor: tuple[datetime, float] | None = None
        self._is_told = False

    @property
    def floor(self) -> datetime | None:
        """What it cannot be earlier than; None while nothing is known."""
        if self._floor is None:
            return None
        known, at = self._floor
        return known + timedelta(seconds=self._monotonic() - at)

    def raise_floor(self, known: datetime) -> None:
        """It is not earlier than this: an entry, a bundle or a receipt says so."""
        floor = self.floor
        if floor is None or known > floor:
            self._floor = (known, self._monotonic())

    def learn(self, server_time: datetime) -> None:
        """The server has just said what time it is. It knows better than an entry that a wrong clock dated."""
        self._floor = (server_time, self._monotonic())
        self._is_told = True

    def __call__(self) -> datetime:
        """Now."""
        floor = self.floor
        if floor is None:
            return self._wall()
        return floor if self._is_told else max(self._wall(), floor)
