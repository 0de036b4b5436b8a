"""The contract's rules for a message's fields, applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

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


def violations(message: Message) -> list[tuple[str, str]]:
    """(field path, what is wrong with it) for every rule a message breaks; usually none.

    Besides the contract's rules, every Timestamp and Duration must be one: the wire can carry nanoseconds that no
    time has, and the rules of a field compare times, they do not ask whether it is one.
    """
    found = [
        (_field(each), each.proto.message or each.proto.rule_id)
        for each in protovalidate.collect_violations(message)
    ]
    if _holds_times(message.DESCRIPTOR):
        found += _not_times(message, "")
    return found


@cache
def _holds_times(descriptor: Descriptor) -> bool:
    return any(name in _TIMES for name in _types_within(descriptor, {descriptor.full_name}))


def _types_within(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    for field in descriptor.fields:
        kind = field.message_type
        if kind is not None and kind.full_name not in seen and not _is_left_alone(field):
            seen.add(kind.full_name)
            yield kind.full_name
            yield from _types_within(kind, seen)


@cache
def _is_left_alone(field: FieldDescriptor) -> bool:
    """The contract says not to look into it: its handler does, one by one."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return validate_pb2.IGNORE_ALWAYS in (rules.ignore, rules.repeated.items.ignore)


def _not_times(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None or not (kind.full_name in _TIMES or _holds_times(kind)):
            continue
        if _is_left_alone(field):
            continue
        for place, each in _each(value, f"{path}{field.name}"):
            if kind.full_name not in _TIMES:
                yield from _not_times(each, f"{place}.")
            elif not _is_time(each, *_TIMES[kind.full_name]):
                yield place, f"must be a valid {kind.full_name}"


def _each(value: Message | Iterable[Message], path: str) -> Iterator[tuple[str, Message]]:
    if isinstance(value, Message):
        yield path, value
    else:
        for number, each in enumerate(value):
            yield f"{path}[{number}]", each


def _is_time(time: Message, first: int, last: int, least_nanos: int) -> bool:
    assert isinstance(time, timestamp_pb2.Timestamp | duration_pb2.Duration)
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
