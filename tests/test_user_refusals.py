"""The user service's refusals against its contract."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta

from services.refusal import Refusal
from services.user.domain import refusals
from tallystick.user.v1 import error_reason_pb2


def every_refusal():
    now = datetime(2026, 11, 27, tzinfo=UTC)
    samples = {
        "retry_after": timedelta(seconds=2),
        "limit": 3,
        "server_time": now,
        "revoke_time": now,
    }
    for name, function in inspect.getmembers(refusals, inspect.isfunction):
        if function.__module__ == refusals.__name__:
            parameters = inspect.signature(function).parameters
            yield name, function(**{each: samples.get(each, "USER") for each in parameters})


def test_every_reason_of_the_contract_has_a_refusal_and_every_refusal_a_reason():
    contract = {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118 - an enum, not a dict
    }

    assert {refusal.reason for _, refusal in every_refusal()} == contract - {"UNSPECIFIED"}


def test_every_refusal_says_what_to_do_and_quotes_only_text():
    for name, refusal in every_refusal():
        assert isinstance(refusal, Refusal)
        assert refusal.reason.lower().split("_")[0] in name
        assert len(refusal.message) > 20
        assert all(isinstance(value, str) for value in refusal.metadata.values())
