"""The offline service's code against its contract and its documentation."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.money import Money
from services.offline.domain import code, item, refusals, right
from services.offline.domain.liability import RULES
from services.refusal import Refusal
from services.rpc.errors import CODES, status
from tallystick.offline.v1 import error_reason_pb2, offline_pb2

ROOT = Path(__file__).parents[1]
CONTRACT = ROOT / "protos/tallystick/offline/v1/error_reason.proto"
DOCS = ROOT / "docs/offline.md"

SAMPLES = {
    "asked": Money(5, "INR"),
    "supported": ["INR"],
    "offered": [10, 20],
    "codes": ["codes/1"],
    "retry_after": timedelta(seconds=5),
    "free_time": datetime(2026, 3, 1, tzinfo=UTC),
}


def every_refusal():
    for name, function in inspect.getmembers(refusals, inspect.isfunction):
        if function.__module__ == refusals.__name__:
            arguments = {
                each: SAMPLES.get(each, 3 if parameter.annotation == "int" else "INR")
                for each, parameter in inspect.signature(function).parameters.items()
            }
            yield name, function(**arguments)


def test_every_reason_of_the_contract_has_one_refusal_and_every_refusal_a_reason():
    contract = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    found = [refusal.reason for _, refusal in every_refusal()]

    assert sorted(found) == sorted(contract - {"UNSPECIFIED"})


def test_a_refusal_is_named_for_its_reason_says_what_to_do_and_quotes_only_text():
    for name, refusal in every_refusal():
        assert isinstance(refusal, Refusal)
        assert refusal.reason == name.upper()
        assert refusal.message.endswith(".")
        assert len(refusal.message) > 20
        assert all(isinstance(value, str) for value in refusal.metadata.values())
        assert status(refusal, "offline").code == CODES[refusal.kind]


def test_metadata_holds_what_the_contract_says_of_each_reason():
    comments, said = {}, ""
    for written in CONTRACT.read_text().splitlines():
        line = written.strip()
        if line.startswith("//"):
            said += line
        elif line.startswith("ERROR_REASON_"):
            _, _, keys = said.partition("Metadata:")
            name = line.split()[0].removeprefix("ERROR_REASON_")
            comments[name] = {word for word in keys.replace("`", " ").split() if word.isalpha()}
            said = ""
        else:
            said = ""

    for _, refusal in every_refusal():
        assert set(refusal.metadata) == comments[refusal.reason], refusal.reason


def test_numbers_are_the_contracts():
    for ours, theirs, prefix in (
        (code.State, offline_pb2.Code.State, "STATE_"),
        (item.State, offline_pb2.Item.State, "STATE_"),
        (item.Reason, offline_pb2.Reason, "REASON_"),
        (item.Liability, offline_pb2.Liability, "LIABILITY_"),
        (right.Level, offline_pb2.OfflineRight.Level, "LEVEL_"),
    ):
        contract = {name.removeprefix(prefix): number for name, number in theirs.items()}
        assert {each.name: each.value for each in ours if each.value} == {
            name: number for name, number in contract.items() if number
        }


def test_the_documented_table_of_liabilities_is_the_one_in_force():
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in DOCS.read_text().splitlines()
        if line.count("|") == 4 and line.split("|")[1].strip() in item.Reason.__members__
    ]

    assert rows == [(rule.reason.name, rule.liability.name, rule.explanation) for rule in RULES]


def test_reasons_are_documented_in_the_order_they_are_checked_in():
    numbers = [rule.reason for rule in RULES]

    assert numbers == sorted(numbers)
