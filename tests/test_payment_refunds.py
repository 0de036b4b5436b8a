"""RefundPayment: money back to the payer, in parts or whole, never twice and never too much."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import uuid4

from services.payment.domain.ledger import BALANCE_MINOR_UNITS_MAX
from tallystick.payment.v1 import wallet_pb2
from tallystick.type.v1 import money_pb2
from tests.fakes.fraud import REVIEW
from tests.payment_stack import SUCCESS, a_decision, a_payout, a_refund, inr, refused

INT64_MAX = 2**63 - 1


async def a_settled_payment(bank, minor_units=10_00):
    payer, vendor = await bank.a_payer(minor_units), await bank.a_vendor()
    return payer, vendor, await payer.pay(vendor, minor_units, reference="order 7")


async def test_a_refund_goes_from_the_vendor_back_to_the_payer(bank):
    payer, vendor, payment = await a_settled_payment(bank)

    answer = await vendor.payments.RefundPayment(a_refund(payment, 4_00, reason="returned"))

    assert answer.payment.state == SUCCESS
    assert answer.payment.refunded == inr(4_00)
    assert answer.payment.update_time.ToNanoseconds() > payment.update_time.ToNanoseconds()
    assert answer.transfer.debit_account == f"{vendor.wallet_name}/online"
    assert answer.transfer.credit_account == f"{payer.wallet_name}/online"
    assert answer.transfer.amount == inr(4_00)
    assert answer.transfer.purpose == wallet_pb2.Transfer.PURPOSE_REFUND
    assert (answer.transfer.payment, answer.transfer.reference) == (payment.name, "returned")
    assert await payer.get(payment) == answer.payment
    assert (await payer.online(), await vendor.online()) == (4_00, 6_00)


async def test_an_admin_refunds_for_a_vendor_who_is_suspended(bank):
    payer, vendor, payment = await a_settled_payment(bank)
    await bank.knows(vendor, active=False, version=2)

    answer = await bank.admin.payments.RefundPayment(a_refund(payment, 10_00))

    assert answer.payment.refunded == inr(10_00)
    assert await payer.online() == 10_00


async def test_refunds_at_once_never_give_back_more_than_was_paid(bank):
    payer, vendor, payment = await a_settled_payment(bank)
    await bank.give(vendor, 100_00)

    answers = await asyncio.gather(
        *(vendor.payments.RefundPayment(a_refund(payment, 3_00)) for _ in range(8)),
        return_exceptions=True,
    )

    refusals = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert len(refusals) == 5
    assert {each.code() for each in refusals} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert await payer.online() == 9_00


async def test_a_repeated_refund_gets_the_first_answer_also_after_later_refunds(bank):
    payer, vendor, payment = await a_settled_payment(bank)
    request = a_refund(payment, 4_00)
    first = await vendor.payments.RefundPayment(request)
    await vendor.payments.RefundPayment(a_refund(payment, 6_00))

    async with bank.nothing_changes():
        again = await vendor.payments.RefundPayment(request)

    assert again == first
    assert again.payment.refunded == inr(4_00)
    assert await payer.online() == 10_00


async def test_one_refund_sent_twenty_times_at_once_is_made_once(bank):
    payer, vendor, payment = await a_settled_payment(bank)
    request = a_refund(payment, 1_00)

    answers = await asyncio.gather(*(vendor.payments.RefundPayment(request) for _ in range(20)))

    assert all(answer == answers[0] for answer in answers)
    assert await payer.online() == 1_00


async def test_a_payment_approved_by_a_reviewer_can_be_refunded(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.says(REVIEW)
    payment = await payer.pay(vendor, 10_00)
    await bank.first.reviews.settlements.ResolveHold(a_decision(payment))

    await vendor.payments.RefundPayment(a_refund(payment, 10_00))

    assert await payer.balances() == (10_00, 0, 0, 0)


async def test_a_refund_is_refused_for_the_first_reason_in_the_contracts_order(bank):
    """All reasons are in the way at once; each time the first one is removed."""
    payer, vendor, payment = await a_settled_payment(bank)
    bank.fraud.says(REVIEW)
    held = await (await bank.a_payer(10_00)).pay(vendor, 10_00)
    request_id = str(uuid4())
    await vendor.payments.RefundPayment(a_refund(payment, 1_00, request_id=request_id))
    shillings = money_pb2.Money(minor_units=INT64_MAX, currency_code="KES")

    async def reason(of, who=vendor, **changes):
        async with bank.nothing_changes():
            return await refused(who.payments.RefundPayment(a_refund(of, **changes)))

    used = {"request_id": request_id, "amount": shillings}
    elsewhere = await bank.a_vendor()
    refusal = await reason(held, elsewhere, **used)
    assert refusal.reason == "PAYMENT_NOT_FOUND"
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.metadata == {"payment": held.name}
    nowhere = f"payments/{uuid4()}"
    assert (await reason(held, name=nowhere, **used)).metadata == {"payment": nowhere}

    refusal = await reason(held, **used)
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS

    refusal = await reason(held, amount=shillings)
    assert refusal.reason == "CURRENCY_MISMATCH"
    assert refusal.metadata == {"askedCurrencyCode": "KES", "currencyCode": "INR"}

    refusal = await reason(held, amount=inr(INT64_MAX))
    assert refusal.reason == "PAYMENT_NOT_SETTLED"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"state": "FLAGGED"}

    await vendor.wallets.Payout(a_payout(vendor, 9_00))
    await bank.give(payer, BALANCE_MINOR_UNITS_MAX - 1_00)
    refusal = await reason(payment, amount=inr(9_01))
    assert refusal.reason == "REFUND_EXCEEDS_PAYMENT"
    assert refusal.metadata == {
        "askedMinorUnits": "901",
        "refundableMinorUnits": "900",
        "currencyCode": "INR",
    }

    refusal = await reason(payment, amount=inr(9_00))
    assert refusal.reason == "VENDOR_FUNDS_INSUFFICIENT"
    assert refusal.metadata == {"askedMinorUnits": "900", "currencyCode": "INR"}

    await bank.give(vendor, 9_00)
    refusal = await reason(payment, amount=inr(9_00))
    assert refusal.reason == "BALANCE_OVER_LIMIT"
    assert refusal.metadata["limitMinorUnits"] == str(BALANCE_MINOR_UNITS_MAX)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_payer_cannot_refund_to_themselves(bank):
    payer, _, payment = await a_settled_payment(bank)

    refusal = await refused(payer.payments.RefundPayment(a_refund(payment)))

    assert (
        refusal.reason == "CALLER_NOT_ALLOWED"
    )  # a USER; a VENDOR who only paid is told there is none
    buyer, seller = await bank.a_vendor(10_00), await bank.a_vendor()
    paid = await buyer.pay(seller, 10_00)
    refusal = await refused(buyer.payments.RefundPayment(a_refund(paid)))
    assert refusal.reason == "PAYMENT_NOT_FOUND"


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_field_that_breaks_the_contract_is_named(bank, subtests):
    _, vendor, payment = await a_settled_payment(bank)
    bad = [
        ({"name": "payments/17"}, "name"),
        ({"request_id": "17"}, "request_id"),
        ({"amount": None}, "amount"),
        ({"amount": inr(0)}, "amount"),
        ({"amount": inr(-1)}, "amount"),
        ({"reason": "x" * 141}, "reason"),
    ]

    for changes, field in bad:
        with subtests.test(f"{changes}"):
            async with bank.nothing_changes():
                call = vendor.payments.RefundPayment(a_refund(payment, **changes))
                refusal = await refused(call)
            assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", (field,))
