"""Keeps counters and profiles in Redis or Valkey, and reads the features of payments from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from services.fraud.features.derive import FeatureBatch, derive
from services.fraud.features.incidents import Incident
from services.fraud.features.layout import STATE, pack_label, pack_payment, unknown
from services.fraud.features.observation import Label, Observation

_FEATURES = Path(__file__).with_name("features.lua").read_text()
_LABELS = Path(__file__).with_name("labels.lua").read_text()
_INCIDENTS = Path(__file__).with_name("incidents.lua").read_text()
# Half-lives that a counter of incidents is kept for: a thousandth is left by then.
_LIVES = 10
# How far ahead of ours a terminal's clock is believed.
CLOCK_AHEAD_SECONDS = 300.0


class FeatureStore:
    """Counters and profiles of payers and vendors.

    Args:
        redis: Where they are kept. Not closed.
        remember_seconds: For how long observing a payment again gives the first answer.
        prefix: Of every key. Its hash tag keeps all keys in one slot, so that one script may touch
            those of many payers: in a cluster they lie on one shard.
    """

    def __init__(
        self, redis: Redis, *, remember_seconds: int = 600, prefix: str = "{fraud}"
    ) -> None:
        self._features = redis.register_script(_FEATURES)
        self._labels = redis.register_script(_LABELS)
        self._incidents = redis.register_script(_INCIDENTS)
        self._remember_seconds = remember_seconds
        self._prefix = prefix

    async def observe(
        self,
        observations: Sequence[Observation],
        *,
        now: float,
        settled: Sequence[Observation] = (),
    ) -> FeatureBatch:
        """Read the features of payments, then count them: one after the other, in one round trip.

        A payment observed within `remember_seconds` before gets its first answer and is not counted
        again.

        Args:
            observations: In the order they came.
            now: Seconds since 1970. What claims to be more than CLOCK_AHEAD_SECONDS later is taken
                to be that much later.
            settled: As `settle`, done first, in the same round trip.

        Raises:
            RedisError: nothing is known; see `without_history`. It may have counted all the same.
            ValueError: a payer or a vendor has no name, or one too long.
        """
        latest = now + CLOCK_AHEAD_SECONDS
        answer: Any = await self._features(
            keys=[self._prefix],
            args=[_packed(settled, latest), _packed(observations, latest), self._remember_seconds],
        )
        return derive(observations, np.frombuffer(answer, STATE), latest=latest)

    async def settle(self, observations: Sequence[Observation], *, now: float) -> None:
        """Let profiles learn from payments that were let through, at once or by a review.

        A payment observed within `remember_seconds` is learnt from only once.

        Args:
            observations: As they were observed.
            now: As for `observe`.

        Raises:
            RedisError, ValueError: as `observe`.
        """
        latest = now + CLOCK_AHEAD_SECONDS
        await self._features(
            keys=[self._prefix], args=[_packed(observations, latest), b"", self._remember_seconds]
        )

    async def label(self, labels: Sequence[Label]) -> None:
        """Take up what payments turned out to be. Each payment once, when it becomes known.

        Raises:
            RedisError, ValueError: as `observe`.
        """
        packed = b"".join(pack_label(label) for label in labels)
        await self._labels(keys=[self._prefix], args=[packed])

    async def count(self, incidents: Sequence[Incident], *, now: float) -> None:
        """Count what went wrong with offline codes; what was counted before counts no more.

        Args:
            incidents: In any order.
            now: Seconds since 1970. What claims to have happened later is taken to have happened now.

        Raises:
            RedisError: some may have been counted.
        """
        arguments: list[str | float] = []
        for each in incidents:
            half_life = each.kind.half_life_seconds
            time = min(max(each.occur_time, 0.0), now)
            key = f"i{each.kind.value}:{each.user}"
            lives = int(_LIVES * half_life)
            arguments += [each.incident_id, key, repr(time), each.count, half_life, lives]
        if arguments:
            await self._incidents(keys=[self._prefix], args=arguments)


def without_history(observations: Sequence[Observation], *, now: float) -> FeatureBatch:
    """The features that need no history; all others as for a payer and a vendor nobody knows."""
    return derive(observations, unknown(len(observations)), latest=now + CLOCK_AHEAD_SECONDS)


def _packed(observations: Sequence[Observation], latest: float) -> bytes:
    return b"".join([pack_payment(seen, latest=latest) for seen in observations])
