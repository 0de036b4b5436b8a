"""The contract's rules for a message's fields, applied."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import protovalidate
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2

# What google.protobuf says its times may hold: seconds from, seconds to, nanoseconds from; both ends count.
_NANOS = 999_999_999
_TIMES = {
    timestamp_pb2.Timestamp.DESCRIPTOR.full_name: (-62_135_596_800, 253_402_300_799, 0),
    duration_pb2.Duration.DESCRIPTOR.full_name: (-315_576_000_000, 315_576_000_000, -_NANOS),
}
_TIME_TYPES = (timestamp_pb2.Timestamp, duration_pb2.Duration)


def violations(message: Message) -> list[tuple[str, str]]:
    """(field path, what is wrong with it) for every rule a message breaks; usually none.

    Besides the contract's rules, every Timestamp and Duration must be one: the wire can carry nanoseconds that no
    time has, and the rules of a field compare times, they do not ask whether it is one.
    """
    found = [
        (_field(each), each.proto.message or each.proto.rule_id)
        for each in protovalidate.collect_violations(message)
    ]
    if plan := _times_in(message.DESCRIPTOR):
        found += _not_times(message, plan, "")
    return found


# (field, repeated, what it may hold if it is a time, else where times are in it)
_Plan = tuple[tuple[str, bool, "tuple[int, int, int] | None", "_Plan"], ...]


@cache
def _times_in(descriptor: Descriptor) -> _Plan:
    """Where a message has times. No message of ours holds its own kind."""
    plan: list[Any] = []
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or _is_left_alone(field):
            continue
        bounds = _TIMES.get(kind.full_name)
        within = () if bounds or kind.file.package.startswith("google.") else _times_in(kind)
        if bounds or within:
            plan.append((field.name, field.is_repeated, bounds, within))
    return tuple(plan)


def _is_left_alone(field: FieldDescriptor) -> bool:
    """The contract says not to look into it: its handler does, one by one."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return validate_pb2.IGNORE_ALWAYS in (rules.ignore, rules.repeated.items.ignore)


def _not_times(message: Message, plan: _Plan, path: str) -> Iterator[tuple[str, str]]:
    for name, repeated, bounds, within in plan:
        if not repeated and not message.HasField(name):
            continue
        value = getattr(message, name)
        for number, each in enumerate(value if repeated else (value,)):
            place = f"{path}{name}[{number}]" if repeated else f"{path}{name}"
            if bounds is None:
                yield from _not_times(each, within, f"{place}.")
            elif not _is_time(each, *bounds):
                yield place, f"must be a valid {each.DESCRIPTOR.full_name}"


def _is_time(time: Message, first: int, last: int, least_nanos: int) -> bool:
    assert isinstance(time, _TIME_TYPES)
    return (
        first <= time.seconds <= last
        and least_nanos <= time.nanos <= _NANOS
        # The two parts of a negative duration are both negative.
        and (time.seconds * time.nanos >= 0 or least_nanos == 0)
    )


def _field(violation: protovalidate.Violation) -> str:
    """The path as people write it: `requests[2].amount.currency_code`."""
    path = violation.proto.field
    if (
        path is None
    ):  # a rule over several fields: its id starts with the one to change, `site.of_vendor`
        return violation.proto.rule_id.partition(".")[0]
    return ".".join(
        element.field_name + ("" if element.subscript is None else f"[{element.subscript.value}]")
        for element in path.elements
    )
