"""The payment service's code against its contract: refusals, numbers, limits of what is stored."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from uuid_utils import UUID

from services.money import Money
from services.payment import wire
from services.payment.domain import ledger, payment, refusals
from services.payment.handlers.request import once
from services.payment.store import payments
from services.refusal import Refusal
from services.rpc import refusals as access_refusals
from services.rpc.errors import CODES, status
from services.rpc.identity import Caller
from tallystick.access.v1 import access_pb2
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import error_reason_pb2, payment_pb2, wallet_pb2
from tallystick.payment.v1.wallet_service_pb2 import PayoutRequest, TopUpRequest

CONTRACT = Path(__file__).parents[1] / "protos/tallystick/payment/v1/error_reason.proto"


def every_refusal():
    samples = {"asked": Money(5, "INR"), "limit": 7, "cap": Money(7, "INR")}
    for name, function in inspect.getmembers(refusals, inspect.isfunction):
        if function.__module__ == refusals.__name__:
            parameters = inspect.signature(function).parameters
            arguments = {
                each: samples.get(each, 3 if parameter.annotation == "int" else "INR")
                for each, parameter in parameters.items()
            }
            if parameters.get("limit") and parameters["limit"].annotation == "Money":
                arguments["limit"] = Money(7, "INR")
            if parameters.get("asked") and parameters["asked"].annotation == "str":
                arguments["asked"] = "KES"
            yield name, function(**arguments)


def test_every_reason_of_the_contract_has_one_refusal_and_every_refusal_a_reason():
    contract = {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118 - an enum, not a dict
    }
    found = [refusal.reason for _, refusal in every_refusal()]

    assert sorted(found) == sorted(contract - {"UNSPECIFIED"})


def test_a_refusal_is_named_for_its_reason_says_what_to_do_and_quotes_only_text():
    for name, refusal in every_refusal():
        assert isinstance(refusal, Refusal)
        assert refusal.reason == name.upper()
        assert refusal.message.endswith(".")
        assert len(refusal.message) > 20
        assert all(isinstance(value, str) for value in refusal.metadata.values())
        assert all(key[0].islower() and "_" not in key for key in refusal.metadata)


def test_metadata_holds_what_the_contract_says_of_each_reason():
    comments, said = {}, ""
    for written in CONTRACT.read_text().splitlines():
        line = written.strip()
        if line.startswith("//"):
            said += line
        elif line.startswith("ERROR_REASON_"):
            name = line.split()[0].removeprefix("ERROR_REASON_")
            _, _, keys = said.partition("Metadata:")
            comments[name] = {word for word in keys.replace("`", " ").split() if word.isalpha()}
            said = ""
        else:
            said = ""

    for _, refusal in every_refusal():
        assert set(refusal.metadata) == comments[refusal.reason], refusal.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix", "zero"),
    [
        (payment.State, payment_pb2.Payment.State, "STATE_", None),
        (payment.FailureReason, payment_pb2.Payment.FailureReason, "FAILURE_REASON_", "NONE"),
        (payment.Decision, payment_pb2.Risk.Decision, "DECISION_", "NONE"),
        (ledger.Purpose, wallet_pb2.Transfer.Purpose, "PURPOSE_", None),
    ],
)
def test_the_numbers_of_the_domain_are_those_of_the_contract(ours, theirs, prefix, zero):
    contract = {name.removeprefix(prefix): number for name, number in theirs.items()}
    unspecified = contract.pop("UNSPECIFIED")
    assert unspecified == 0
    if zero:
        contract[zero] = 0

    assert {member.name: member.value for member in ours} == contract


def test_every_answer_of_the_fraud_service_has_a_meaning_here():
    decisions = fraud_service_pb2.Assessment.Decision
    for name, number in decisions.items():
        found = wire.risk(fraud_service_pb2.Assessment(decision=number)).decision
        expected = "REVIEW" if number == 0 else name.removeprefix("DECISION_")
        assert found.name == expected


def test_the_longest_list_of_reasons_fits_its_column():
    codes = sorted(fraud_service_pb2.Signal.Code.keys(), key=len)[-wire._REASONS_MAX :]

    stored = ",".join(code.removeprefix("CODE_") for code in codes)

    assert len(stored) <= payments.c.risk_reasons.type.length


@pytest.mark.parametrize("bucket", list(ledger.Bucket))
def test_the_name_of_an_account_can_be_read_back(bucket):
    key = ledger.WalletKey(UUID(int=77), "KES")
    account = ledger.Account(key, bucket)

    assert wire.account(wire.account_name(account)) == account
    for system_id in ledger.SYSTEM_NAMES:
        system = ledger.Account(ledger.WalletKey(system_id, "INR"), ledger.Bucket.ONLINE)
        assert wire.account(wire.account_name(system)) == system


def test_the_platforms_refusals_are_the_reasons_of_the_access_contract():
    contract = {
        name.removeprefix("ERROR_REASON_")
        for name in access_pb2.ErrorReason.keys()  # noqa: SIM118 - an enum, not a dict
    }
    made = {
        name.upper()
        for name, function in inspect.getmembers(access_refusals, inspect.isfunction)
        if function.__module__ == access_refusals.__name__
    }

    assert made == contract - {"UNSPECIFIED"}


def test_requests_of_two_rpcs_are_told_apart_though_they_look_alike_on_the_wire():
    caller = Caller(f"users/{UUID(int=7)}", frozenset(), "", 0)
    wallet = f"users/{UUID(int=7)}/wallets/INR"
    fields = {"request_id": str(UUID(int=8)), "wallet": wallet, "reference": "17"}
    top_up, payout = TopUpRequest(**fields), PayoutRequest(**fields)
    assert top_up.SerializeToString() == payout.SerializeToString()

    first, second = (once(caller, each.request_id, each) for each in (top_up, payout))

    assert first.key == second.key
    assert first.body_hash != second.body_hash


def test_every_refusal_travels_as_one_error_info_of_its_domain():
    for _, refusal in every_refusal():
        sent = status(refusal, "payment")

        assert sent.code == CODES[refusal.kind]
        assert [packed.TypeName() for packed in sent.details] == ["google.rpc.ErrorInfo"]
