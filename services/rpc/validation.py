"""The contract's rules for a message's fields, applied."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message


def violations(message: Message) -> list[tuple[str, str]]:
    """(field path, what is wrong with it) for every rule a message breaks; usually none."""
    return [
        (_field(found), found.proto.message or found.proto.rule_id)
        for found in protovalidate.collect_violations(message)
    ]


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
