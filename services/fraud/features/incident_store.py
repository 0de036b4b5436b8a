"""Keeps what went wrong with offline codes in Redis or Valkey, beside the counters and profiles."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from services.fraud.features.incidents import Incident, Incidents, Kind
from services.fraud.features.layout import event_time
from services.fraud.features.observation import Observation

_SCRIPT = Path(__file__).with_name("incidents.lua").read_text()
# Time and value, as incidents.lua packs them.
_COUNTER = struct.Struct("<dd")
# By then a thousandth is left.
_LIVES = 10


class IncidentStore:
    """Counters of incidents.

    Args:
        redis: Where they are kept. Not closed.
        prefix: Of every key, with the hash tag of `FeatureStore`.
    """

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._script = redis.register_script(_SCRIPT)
        self._prefix = prefix

    async def count(self, incidents: Sequence[Incident], *, latest: float) -> None:
        """Count incidents; one that was counted before counts no more.

        Args:
            incidents: In any order.
            latest: Seconds since 1970; what claims to have happened later is taken to have happened then.

        Raises:
            RedisError: some may have been counted.
        """
        arguments: list[str | float] = []
        for each in incidents:
            half_life = each.kind.half_life_seconds
            time = min(max(each.occur_time, 0.0), latest)
            key = _key(each.kind, each.user)
            lives = int(_LIVES * half_life)
            arguments += [each.incident_id, key, repr(time), each.count, half_life, lives]
        if arguments:
            await self._script(keys=[self._prefix], args=arguments)

    async def read(self, observations: Sequence[Observation], *, latest: float) -> list[Incidents]:
        """What is known of each payment's sides when it happened, in one round trip.

        Raises:
            RedisError: nothing is known.
        """
        keys = [
            f"{self._prefix}:{_key(kind, user)}"
            for seen in observations
            for kind, user in (
                (Kind.WRONG_CODES, seen.vendor),
                (Kind.OWN_DUPLICATE, seen.vendor),
                (Kind.DOUBLE_SPEND, seen.payer),
            )
        ]
        kept: Any = iter(await self._redis.mget(keys) if keys else ())
        return [
            Incidents(
                _faded(wrong, Kind.WRONG_CODES, event_time(seen, latest)),
                _faded(own, Kind.OWN_DUPLICATE, event_time(seen, latest)),
                _faded(double, Kind.DOUBLE_SPEND, event_time(seen, latest)),
            )
            for seen, wrong, own, double in zip(observations, kept, kept, kept, strict=True)
        ]


def _key(kind: Kind, user: str) -> str:
    return f"i{kind.value}:{user}"


def _faded(kept: bytes | None, kind: Kind, time: float) -> float:
    """A counter as it was, or will be, at some time: around an incident it fades to both sides."""
    if kept is None:
        return 0.0
    at, value = _COUNTER.unpack(kept)
    faded: float = value * 2.0 ** (-abs(time - at) / kind.half_life_seconds)
    return faded
