"""Instants as Timestamps: as protobuf's own conversions, and faster."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services import times

SECONDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70_000_000_000, 260_000_000_000)
NANOS = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 10**9 - 1)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_datetime_is_written_as_protobuf_writes_it_and_read_back(moment):
    expected = Timestamp()
    expected.FromDatetime(moment)

    assert times.timestamp(moment) == expected
    assert times.instant(expected) == moment


@given(SECONDS, NANOS)
def test_what_is_no_time_is_refused_as_protobuf_refuses_it(seconds, nanos):
    message = Timestamp(seconds=seconds, nanos=nanos)
    try:
        expected = message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        with pytest.raises(ValueError, match="no time"):
            times.instant(message)
    else:
        assert times.instant(message) == expected


def test_the_ends_of_time():
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    assert [times.instant(times.timestamp(end)) for end in (first, last)] == [first, last]
