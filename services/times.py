"""Instants as protobuf Timestamps, to the microsecond.

`Timestamp.FromDatetime` and `ToDatetime` go through the calendar, 8 and 3 µs where a payment has a dozen of them.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from services import sql

_MICROS_PER_SECOND = 1_000_000
_NANOS_PER_SECOND = 1_000_000_000
# The years 1 to 9999.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799


@lru_cache(maxsize=256)
def timestamp(value: datetime) -> Timestamp:
    """An aware datetime as a Timestamp, for copying into messages. Never change it: others are given the same."""
    seconds, rest = divmod(sql.micros(value), _MICROS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def instant(message: Timestamp) -> datetime:
    """A Timestamp as a UTC datetime; what is finer than a microsecond is cut off.

    Raises:
        ValueError: it is no time: the wire can carry such.
    """
    seconds, nanos = message.seconds, message.nanos
    if not (_SECONDS_MIN <= seconds <= _SECONDS_MAX and 0 <= nanos < _NANOS_PER_SECOND):
        raise ValueError(f"{seconds} s and {nanos} ns are no time")
    return sql.instant(seconds * _MICROS_PER_SECOND + nanos // 1_000)
