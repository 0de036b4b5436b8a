"""Money into, within and out of wallets: what is done, what is refused, and in which order."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import UUID, uuid4

from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    FUNDING_ID,
    SYSTEM_NAMES,
    TRANSFER_MINOR_UNITS_MAX,
)
from tallystick.payment.v1 import wallet_pb2
from tallystick.payment.v1 import wallet_service_pb2 as pb
from tallystick.type.v1 import money_pb2
from tests.payment_stack import (
    a_payout,
    a_top_up,
    inr,
    refused,
    to_offline,
    to_online,
)

INT64_MAX = 2**63 - 1
DOMAIN = "payment.tallystick"


def kes(minor_units):
    return money_pb2.Money(minor_units=minor_units, currency_code="KES")


async def test_a_top_up_comes_from_the_funding_account_and_says_how_it_was_received(bank):
    payer = await bank.a_payer(5_00)

    answer = await bank.admin.wallets.TopUp(a_top_up(payer, 10_00, reference="receipt 42"))

    assert answer.wallet.online == inr(15_00)
    assert answer.transfer.debit_account == "system/funding/INR"
    assert answer.transfer.credit_account == f"{payer.wallet_name}/online"
    assert answer.transfer.amount == inr(10_00)
    assert answer.transfer.purpose == wallet_pb2.Transfer.PURPOSE_TOP_UP
    assert answer.transfer.reference == "receipt 42"
    assert answer.transfer.create_time == answer.wallet.update_time
    assert await payer.wallet() == answer.wallet


async def test_money_goes_offline_and_comes_back_within_one_wallet(bank):
    payer = await bank.a_payer(10_00)

    there = await payer.wallets.MoveBalance(to_offline(payer, 7_00))
    back = await payer.wallets.MoveBalance(to_online(payer, 2_00))

    assert (there.wallet.online, there.wallet.offline) == (inr(3_00), inr(7_00))
    assert (back.wallet.online, back.wallet.offline) == (inr(5_00), inr(5_00))
    assert there.transfer.debit_account == f"{payer.wallet_name}/online"
    assert there.transfer.credit_account == f"{payer.wallet_name}/offline"
    assert back.transfer.purpose == wallet_pb2.Transfer.PURPOSE_MOVE_BALANCE


async def test_a_payout_takes_money_out_to_the_payout_account(bank):
    vendor = await bank.a_vendor(10_00)

    answer = await vendor.wallets.Payout(a_payout(vendor, 10_00, reference="IBAN 9"))

    assert answer.wallet.online == inr(0)
    assert answer.transfer.debit_account == f"{vendor.wallet_name}/online"
    assert answer.transfer.credit_account == "system/payout/INR"
    assert answer.transfer.reference == "IBAN 9"
    assert await vendor.online() == 0


async def test_the_wallets_of_one_owner_are_kept_apart_by_currency(bank):
    payer = await bank.a_payer(5_00)
    shillings = payer.wallet_name.replace("INR", "KES")

    request = a_top_up(payer, wallet=shillings, amount=kes(30))
    answer = await bank.admin.wallets.TopUp(request)

    assert answer.wallet.name == shillings
    assert answer.wallet.online == kes(30)
    assert answer.transfer.debit_account == "system/funding/KES"
    assert await payer.online() == 5_00


REQUESTS = {
    "TopUp": lambda bank, person, **changes: (bank.admin, a_top_up(person, 1_00, **changes)),
    "Payout": lambda bank, person, **changes: (person, a_payout(person, 1_00, **changes)),
    "MoveBalance": lambda bank, person, **changes: (person, to_offline(person, 1_00, **changes)),
}
every_move = pytest.mark.parametrize("rpc", list(REQUESTS))


def call(bank, person, rpc, **changes):
    who, request = REQUESTS[rpc](bank, person, **changes)
    return getattr(who.wallets, rpc)(request)


@every_move
async def test_a_repeated_request_gets_the_first_answer_also_after_later_changes(bank, rpc):
    payer = await bank.a_payer(10_00)
    request_id = str(uuid4())
    first = await call(bank, payer, rpc, request_id=request_id)
    await call(bank, payer, rpc)
    await payer.wallets.Payout(a_payout(payer, 3_00))
    await bank.knows(payer, active=False, version=2)

    async with bank.nothing_changes():
        again = await call(bank, payer, rpc, request_id=request_id)

    assert again == first


@every_move
async def test_one_request_sent_twenty_times_at_once_moves_money_once(bank, rpc):
    payer = await bank.a_payer(10_00)
    request_id = str(uuid4())

    answers = await asyncio.gather(
        *(call(bank, payer, rpc, request_id=request_id) for _ in range(20))
    )

    assert all(answer == answers[0] for answer in answers)
    transfers = await payer.wallets.ListTransfers(pb.ListTransfersRequest(parent=payer.wallet_name))
    assert len(transfers.transfers) == 2  # with the one that paid in


@every_move
async def test_a_request_id_with_another_body_is_refused_and_nothing_moves(bank, rpc):
    payer = await bank.a_payer(10_00)
    request_id = str(uuid4())
    await call(bank, payer, rpc, request_id=request_id)

    async with bank.nothing_changes():
        refusal = await refused(call(bank, payer, rpc, request_id=request_id, amount=inr(1_01)))

    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert (refusal.domain, refusal.reason) == (DOMAIN, "REQUEST_ID_REUSED")
    assert refusal.metadata == {"requestId": request_id}
    assert refusal.retry_after is None


async def test_one_id_used_for_two_different_calls_is_reused(bank):
    payer = await bank.a_payer(10_00)
    request_id = str(uuid4())
    await payer.wallets.Payout(a_payout(payer, request_id=request_id))

    async with bank.nothing_changes():
        moved = payer.wallets.MoveBalance(to_offline(payer, request_id=request_id))
        refusal = await refused(moved)

    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_two_people_may_use_the_same_request_id(bank):
    asha, babu = await bank.a_payer(10_00), await bank.a_payer(10_00)
    request_id = str(uuid4())

    for person in (asha, babu):
        await person.wallets.Payout(a_payout(person, 4_00, request_id=request_id))

    assert (await asha.online(), await babu.online()) == (6_00, 6_00)


async def test_an_id_in_capitals_is_the_same_id(bank):
    payer = await bank.a_payer(10_00)
    request_id = str(uuid4())
    first = await payer.wallets.Payout(a_payout(payer, request_id=request_id))

    again = await payer.wallets.Payout(a_payout(payer, request_id=request_id.upper()))

    assert again == first


BAD_FIELDS = [
    ("TopUp", {"request_id": "17"}, "request_id"),
    ("TopUp", {"request_id": ""}, "request_id"),
    ("TopUp", {"wallet": "users/17/wallets/INR"}, "wallet"),
    ("TopUp", {"wallet": f"users/{UUID(int=2**127)}/wallets/inr"}, "wallet"),
    ("TopUp", {"wallet": f"users/{UUID(int=2**127)}/wallets/INR\n"}, "wallet"),
    ("TopUp", {"amount": inr(0)}, "amount"),
    ("TopUp", {"amount": inr(-1)}, "amount"),
    ("TopUp", {"amount": inr(-(2**63))}, "amount"),
    ("TopUp", {"amount": None}, "amount"),
    ("TopUp", {"amount": money_pb2.Money(minor_units=1)}, "amount.currency_code"),
    ("TopUp", {"reference": ""}, "reference"),
    ("TopUp", {"reference": "x" * 141}, "reference"),
    ("Payout", {"request_id": "17"}, "request_id"),
    ("Payout", {"amount": inr(0)}, "amount"),
    ("Payout", {"reference": ""}, "reference"),
    ("MoveBalance", {"amount": None}, "amount"),
    ("MoveBalance", {"amount": inr(-5)}, "amount"),
    ("MoveBalance", {"direction": 0}, "direction"),
    ("MoveBalance", {"direction": 7}, "direction"),
]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_field_that_breaks_the_contract_is_named_and_nothing_moves(bank, subtests):
    payer = await bank.a_payer(10_00)

    for rpc, changes, field in BAD_FIELDS:
        with subtests.test(f"{rpc} {changes}"):
            async with bank.nothing_changes():
                refusal = await refused(call(bank, payer, rpc, **changes))

            assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
            assert (refusal.domain, refusal.reason) == ("access.tallystick", "FIELDS_INVALID")
            assert refusal.fields == (field,)
            assert refusal.metadata == {"field": field}
            assert field in refusal.message


async def test_every_field_at_fault_is_named_at_once(bank):
    payer = await bank.a_payer(10_00)

    refusal = await refused(call(bank, payer, "Payout", request_id="x", amount=None, reference=""))

    assert set(refusal.fields) == {"request_id", "amount", "reference"}


async def test_a_top_up_is_refused_for_the_first_reason_in_the_contracts_order(bank):
    """Every reason but the last is in the way at once; each time the first one is removed."""
    person = await bank.a_payer(1_00)
    stranger = str(uuid4())
    taken = (await bank.admin.wallets.TopUp(a_top_up(person))) and a_top_up(person)
    await bank.admin.wallets.TopUp(taken)
    nowhere = f"users/{stranger}/wallets/INR"
    over = TRANSFER_MINOR_UNITS_MAX + 1

    async def reason(**changes):
        async with bank.nothing_changes():
            return await refused(bank.admin.wallets.TopUp(a_top_up(person, **changes)))

    reused = {"request_id": taken.request_id, "wallet": nowhere}
    refusal = await reason(**reused, amount=kes(over))
    assert refusal.reason == "CURRENCY_MISMATCH"
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.metadata == {"askedCurrencyCode": "KES", "currencyCode": "INR"}

    refusal = await reason(**reused, amount=inr(over))
    assert refusal.reason == "AMOUNT_OVER_LIMIT"
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    limit = str(TRANSFER_MINOR_UNITS_MAX)
    assert refusal.metadata == {
        "askedMinorUnits": str(over),
        "limitMinorUnits": limit,
        "currencyCode": "INR",
    }

    refusal = await reason(**reused, amount=inr(TRANSFER_MINOR_UNITS_MAX))
    assert refusal.reason == "REQUEST_ID_REUSED"

    refusal = await reason(wallet=nowhere, amount=inr(TRANSFER_MINOR_UNITS_MAX))
    assert refusal.reason == "WALLET_NOT_FOUND"
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.metadata == {"wallet": nowhere}

    await bank.give(person, BALANCE_MINOR_UNITS_MAX - 3_00)
    await bank.knows(person, active=False, version=2)
    refusal = await reason(amount=inr(1))
    assert refusal.reason == "WALLET_NOT_ACTIVE"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"wallet": person.wallet_name}

    await bank.knows(person, version=3)
    refusal = await reason(amount=inr(1))
    assert refusal.reason == "BALANCE_OVER_LIMIT"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    limit = str(BALANCE_MINOR_UNITS_MAX)
    assert refusal.metadata == {"limitMinorUnits": limit, "currencyCode": "INR"}


@pytest.mark.parametrize("rpc", ["Payout", "MoveBalance"])
async def test_moving_ones_own_money_is_refused_for_the_first_reason_in_the_contracts_order(
    bank, rpc
):
    person, other = await bank.a_payer(1_00), await bank.a_payer(1_00)
    request_id = str(uuid4())
    await call(bank, person, rpc, request_id=request_id)

    async def reason(**changes):
        async with bank.nothing_changes():
            return await refused(call(bank, person, rpc, **changes))

    for missing in (other.wallet_name, person.wallet_name.replace("INR", "USD")):
        refusal = await reason(request_id=request_id, wallet=missing, amount=kes(INT64_MAX))
        assert refusal.reason == "WALLET_NOT_FOUND"
        assert refusal.metadata == {"wallet": missing}

    await bank.knows(person, active=False, version=2)
    refusal = await reason(request_id=request_id, amount=kes(INT64_MAX))
    assert refusal.reason == "CURRENCY_MISMATCH"

    refusal = await reason(request_id=request_id, amount=inr(INT64_MAX))
    assert refusal.reason == "REQUEST_ID_REUSED"

    refusal = await reason(amount=inr(INT64_MAX))
    assert refusal.reason == "WALLET_NOT_ACTIVE"

    await bank.knows(person, version=3)
    refusal = await reason(amount=inr(INT64_MAX))
    assert refusal.reason == "INSUFFICIENT_FUNDS"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {
        "askedMinorUnits": str(INT64_MAX),
        "availableMinorUnits": "0",
        "currencyCode": "INR",
    }


async def test_the_offline_cap_is_the_last_thing_in_the_way(bank):
    payer = await bank.a_payer(9_000_00)

    async with bank.nothing_changes():
        refusal = await refused(payer.wallets.MoveBalance(to_offline(payer, 2_000_01)))

    assert refusal.reason == "OFFLINE_CAP_EXCEEDED"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"capMinorUnits": "200000", "currencyCode": "INR"}
    await payer.wallets.MoveBalance(to_offline(payer, 2_000_00))


async def test_money_does_not_come_back_online_into_a_full_account(bank):
    payer = await bank.a_payer(1_00)
    await payer.wallets.MoveBalance(to_offline(payer, 1_00))
    await bank.give(payer, BALANCE_MINOR_UNITS_MAX)

    refusal = await refused(payer.wallets.MoveBalance(to_online(payer, 1)))

    assert refusal.reason == "BALANCE_OVER_LIMIT"


async def test_the_largest_top_up_fits(bank):
    payer = await bank.a_payer(0)

    answer = await bank.admin.wallets.TopUp(a_top_up(payer, TRANSFER_MINOR_UNITS_MAX))

    assert answer.wallet.online.minor_units == TRANSFER_MINOR_UNITS_MAX


async def test_the_systems_own_accounts_are_nobodys_wallet(bank):
    payer = await bank.a_payer(10_00)
    await payer.wallets.Payout(a_payout(payer, 5_00))

    for system_id in SYSTEM_NAMES:
        name = f"users/{system_id}/wallets/INR"
        async with bank.nothing_changes():
            calls = (
                bank.admin.wallets.TopUp(a_top_up(payer, wallet=name)),
                bank.admin.wallets.GetWallet(pb.GetWalletRequest(name=name)),
                bank.admin.wallets.ListTransfers(pb.ListTransfersRequest(parent=name)),
            )
            for each in calls:
                assert (await refused(each)).reason == "WALLET_NOT_FOUND"
    assert FUNDING_ID in SYSTEM_NAMES


@pytest.mark.parametrize("text", ["नमस्ते 🙏", 'it\'s \\ "quoted" %s :x ?', "a\x00b", " ends with "])
async def test_any_reference_comes_back_as_it_was_sent(bank, text):
    payer = await bank.a_payer(0)
    request = a_top_up(payer, reference=text)

    first = await bank.admin.wallets.TopUp(request)

    assert first.transfer.reference == text
    assert await bank.admin.wallets.TopUp(request) == first
