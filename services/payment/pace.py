"""How long groups gather: the busier the process, the longer."""

from __future__ import annotations

from collections.abc import Callable

# Groups this far apart are worth their statements at a few hundred payments a second, and nobody waits long.
SECONDS_MIN = 0.015
# What a group costs all services together, 12 ms of CPU, is then shared by the payments of a tenth of a second
# (docs/performance.md); half of the 200 ms that a payer may wait is left for judging and committing them.
SECONDS_MAX = 0.1
# Shares of a core between which the pace grows from the least to the most.
_SHARE_MIN, _SHARE_MAX = 0.45, 0.65
_LOOK_SECONDS = 0.1
# What one look weighs against those before it: about half a second back counts.
_WEIGHT = 0.3


class Pace:
    """From the start of one group to the start of the next, at least.

    At rest it is short, for latency. Near saturation it is long, because a payment in a large group costs every
    service less: where a fixed pace must choose, this one asks how busy the process is.

    Args:
        clock: Seconds that only grow.
        cpu: Seconds of CPU this process has used.
    """

    def __init__(self, clock: Callable[[], float], cpu: Callable[[], float]) -> None:
        self._clock = clock
        self._cpu = cpu
        self._looked = clock()
        self._used = cpu()
        self._share = 0.0

    def seconds(self) -> float:
        """The pace as of now."""
        now = self._clock()
        passed = now - self._looked
        if passed >= _LOOK_SECONDS:
            used = self._cpu()
            share = (used - self._used) / passed
            self._share += (share - self._share) * _WEIGHT
            self._looked, self._used = now, used
        busy = (self._share - _SHARE_MIN) / (_SHARE_MAX - _SHARE_MIN)
        return SECONDS_MIN + (SECONDS_MAX - SECONDS_MIN) * min(max(busy, 0.0), 1.0)
