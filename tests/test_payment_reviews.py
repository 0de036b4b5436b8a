"""ResolveHold: the end of a review, exactly once, and only by the service that reviews."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import uuid4

from services.payment.domain.ledger import BALANCE_MINOR_UNITS_MAX
from tallystick.payment.v1 import payment_pb2, settlement_service_pb2, wallet_pb2
from tallystick.payment.v1 import wallet_service_pb2 as wallet_pb
from tests.fakes.fraud import ALLOW, REVIEW
from tests.payment_stack import FAILED, SUCCESS, a_decision, a_refund, inr, refused

ACTOR = f"users/{uuid4()}"


async def a_flagged_payment(bank, minor_units=10_00):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.says(REVIEW, score=70)
    payment = await payer.pay(vendor, minor_units)
    bank.fraud.says(ALLOW)
    return payer, vendor, payment


async def resolve(bank, payment, /, **changes):
    answer = await bank.first.reviews.settlements.ResolveHold(a_decision(payment, **changes))
    return answer.payment


async def test_an_approved_payment_reaches_the_vendor_and_keeps_what_the_check_had_said(bank):
    payer, vendor, payment = await a_flagged_payment(bank)

    resolved = await resolve(bank, payment)

    assert resolved.state == SUCCESS
    assert resolved.failure_reason == 0
    assert resolved.risk == payment.risk
    assert await payer.balances() == (0, 0, 0, 0)
    assert await vendor.online() == 10_00
    listed = await vendor.wallets.ListTransfers(
        wallet_pb.ListTransfersRequest(parent=vendor.wallet_name)
    )
    (transfer,) = listed.transfers
    assert transfer.purpose == wallet_pb2.Transfer.PURPOSE_HOLD_CAPTURE
    assert transfer.debit_account == f"{payer.wallet_name}/held"


async def test_a_rejected_payment_goes_back_to_the_payer(bank):
    payer, vendor, payment = await a_flagged_payment(bank)

    resolved = await resolve(bank, payment, approve=False)

    assert resolved.state == FAILED
    assert resolved.failure_reason == payment_pb2.Payment.FAILURE_REASON_REVIEW_REJECTED
    assert await payer.balances() == (10_00, 0, 0, 0)
    assert await vendor.online() == 0


async def test_the_reviewer_and_their_words_are_kept_in_the_event(bank):
    _, _, approved = await a_flagged_payment(bank)
    _, _, rejected = await a_flagged_payment(bank)

    await resolve(bank, approved, actor=ACTOR, reason="spoke to her")
    await resolve(bank, rejected, approve=False, actor=ACTOR, reason="stolen")

    last = (await bank.events())[-2:]
    assert [event.actor for event in last] == [ACTOR, ACTOR]
    assert last[0].payment_succeeded.review_reason == "spoke to her"
    assert last[1].payment_failed.review_reason == "stolen"


async def test_a_repeated_decision_gets_the_first_answer_also_after_a_refund(bank):
    _, vendor, payment = await a_flagged_payment(bank)
    request = a_decision(payment)
    first = await bank.first.reviews.settlements.ResolveHold(request)
    await vendor.payments.RefundPayment(a_refund(payment, 4_00))

    async with bank.nothing_changes():
        again = await bank.first.reviews.settlements.ResolveHold(request)

    assert again == first
    assert again.payment.refunded == inr(0)


@pytest.mark.parametrize("approve", [True, False])
async def test_one_decision_sent_twenty_times_at_once_is_carried_out_once(bank, approve):
    payer, vendor, payment = await a_flagged_payment(bank)
    request = a_decision(payment, approve=approve)

    answers = await asyncio.gather(
        *(bank.first.reviews.settlements.ResolveHold(request) for _ in range(20))
    )

    assert all(answer == answers[0] for answer in answers)
    assert await payer.balances() == ((0, 0, 0, 0) if approve else (10_00, 0, 0, 0))
    assert await vendor.online() == (10_00 if approve else 0)


async def test_of_two_reviewers_who_decide_at_once_one_is_refused(bank):
    payer, vendor, payment = await a_flagged_payment(bank)

    answers = await asyncio.gather(
        resolve(bank, payment), resolve(bank, payment, approve=False), return_exceptions=True
    )

    (refusal,) = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert refusal.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await payer.online() + await vendor.online() == 10_00


async def test_a_hold_is_resolved_although_its_sides_were_suspended_since(bank):
    payer, vendor, payment = await a_flagged_payment(bank)
    await bank.knows(payer, active=False, version=2)
    await bank.knows(vendor, active=False, version=2)

    assert (await resolve(bank, payment)).state == SUCCESS


async def test_a_decision_is_refused_for_the_first_reason_in_the_contracts_order(bank):
    payer, vendor, payment = await a_flagged_payment(bank, 5_00)
    settled = await payer.pay(vendor, 1_00)
    _, _, other = await a_flagged_payment(bank)
    request_id = str(uuid4())
    await resolve(bank, other, request_id=request_id)
    nowhere = f"payments/{uuid4()}"

    async def reason(of, **changes):
        async with bank.nothing_changes():
            return await refused(resolve(bank, of, **changes))

    refusal = await reason(payment, payment=nowhere, request_id=request_id)
    assert refusal.reason == "PAYMENT_NOT_FOUND"
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.metadata == {"payment": nowhere}

    refusal = await reason(settled, request_id=request_id)
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert (await reason(other, request_id=request_id, approve=False)).reason == refusal.reason

    refusal = await reason(settled)
    assert refusal.reason == "PAYMENT_NOT_FLAGGED"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"state": "SUCCESS"}
    assert (await reason(other)).reason == "PAYMENT_NOT_FLAGGED"

    await bank.give(vendor, BALANCE_MINOR_UNITS_MAX - 2_00)
    refusal = await reason(payment)
    assert refusal.reason == "BALANCE_OVER_LIMIT"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (await resolve(bank, payment, approve=False)).state == FAILED


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_only_the_reviewing_service_ends_a_review(bank):
    payer, vendor, payment = await a_flagged_payment(bank)
    fraud = bank.first.service("fraud")

    for who in (payer, vendor, bank.admin, fraud):
        async with bank.nothing_changes():
            refusal = await refused(who.settlements.ResolveHold(a_decision(payment)))
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
        assert (refusal.domain, refusal.reason) == ("access.tallystick", "CALLER_NOT_ALLOWED")
        method = "/tallystick.payment.v1.SettlementService/ResolveHold"
        assert refusal.metadata == {"method": method}


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_field_that_breaks_the_contract_is_named(bank, subtests):
    _, _, payment = await a_flagged_payment(bank)
    unspecified = settlement_service_pb2.ResolveHoldRequest.DECISION_UNSPECIFIED
    bad = [
        ({"request_id": ""}, "request_id"),
        ({"payment": "payments/"}, "payment"),
        ({"decision": unspecified}, "decision"),
        ({"decision": 3}, "decision"),
        ({"actor": "services/admin"}, "actor"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 501}, "reason"),
    ]

    for changes, field in bad:
        with subtests.test(f"{changes}"):
            async with bank.nothing_changes():
                refusal = await refused(resolve(bank, payment, **changes))
            assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", (field,))
