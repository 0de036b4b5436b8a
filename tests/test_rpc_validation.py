"""What a message's fields break: the contract's rules, and times that are none."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.rpc.validation import violations
from tallystick.access.v1 import access_pb2
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2

NANOS = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-1, 0, 1, 10**9 - 1, 10**9, -(10**9)])
SECONDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-400_000_000_000, 400_000_000_000)


def test_a_times_nanoseconds_are_a_part_of_a_second():
    request = fraud_service_pb2.GetPrecisionRequest(
        start_time=Timestamp(seconds=1), end_time=Timestamp(seconds=1, nanos=-1)
    )

    assert violations(request) == [("end_time", "must be a valid google.protobuf.Timestamp")]


def test_a_time_within_a_list_is_named_by_its_place():
    answer = payment_service_pb2.ListPaymentsResponse()
    for nanos in (0, 10**9):
        answer.payments.add().create_time.nanos = nanos

    assert [field for field, _ in violations(answer)] == ["payments[1].create_time"]


@given(SECONDS, NANOS)
def test_a_timestamp_is_one_when_protobuf_can_write_it(seconds, nanos):
    message = payment_pb2.Payment()
    message.create_time.seconds, message.create_time.nanos = seconds, nanos

    assert (violations(message) == []) == is_written(message.create_time)


@given(SECONDS, NANOS)
def test_a_duration_is_one_when_protobuf_can_write_it(seconds, nanos):
    message = access_pb2.Access()
    message.timeout.seconds, message.timeout.nanos = seconds, nanos

    assert (violations(message) == []) == is_written(message.timeout)


def is_written(time):
    try:
        time.ToJsonString()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("time", [Timestamp(), Duration()])
def test_nothing_set_is_a_time(time):
    assert is_written(time)
