"""What time it is for a terminal: never before what the server last said, whatever its own clock shows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta


class TrustedClock:
    """Time that does not go back.

    While the process has spoken with the server, the monotonic clock carries the server's time on, and the wall clock
    is not asked. After a start without network there is only the wall clock, and the floor under it: a clock that is
    behind stands at the floor; one that is ahead makes the terminal ask for a sync, which is safe.

    Args:
        wall: UTC as the machine has it.
        monotonic: Seconds that only grow.
    """

    def __init__(self, wall: Callable[[], datetime], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._floor: datetime | None = None
        self._anchor: tuple[datetime, float] | None = None

    def raise_floor(self, known: datetime) -> None:
        """It is not earlier than this: an entry, a bundle or a receipt says so."""
        if self._floor is None or known > self._floor:
            self._floor = known

    def learn(self, server_time: datetime) -> None:
        """The server has just said what time it is."""
        self._anchor = (server_time, self._monotonic())
        self.raise_floor(server_time)

    def __call__(self) -> datetime:
        """Now."""
        if self._anchor is None:
            now = self._wall()
        else:
            said, at = self._anchor
            now = said + timedelta(seconds=self._monotonic() - at)
        return now if self._floor is None else max(now, self._floor)
