"""Payments that are not waited for: on record at once, one by one or in a batch, and settled soon, whatever happens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from unittest.mock import patch

import grpc
import pytest
from uuid_utils import uuid4

from services.payment import store
from services.payment.domain.ledger import TRANSFER_MINOR_UNITS_MAX
from services.payment.follow_up import FollowUp
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tests.eventually import eventually
from tests.fakes.fraud import DECLINE, REVIEW
from tests.payment_stack import FAILED, FLAGGED, PENDING, SUCCESS, a_payment, inr, refused


async def settled(person, payment):
    """The payment, once it is no longer on its way."""

    async def outcome():
        found = await person.get(payment)
        return found if found.state > 2 else None

    return await eventually(outcome)


async def test_a_payment_not_waited_for_is_answered_pending_and_settles_soon(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.answers.clear()

    payment = await payer.pay(vendor, 4_00, wait=False)

    assert payment.state == PENDING
    assert await payer.get(payment) == payment  # durable
    assert await payer.balances() == (10_00, 0, 0, 0)
    bank.fraud.answers.set()
    assert (await settled(payer, payment)).state == SUCCESS
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)
    assert await bank.rows(store.payment_tasks) == []


@pytest.mark.parametrize(("decision", "state"), [(REVIEW, FLAGGED), (DECLINE, FAILED)])
@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_payment_not_waited_for_is_checked_like_any_other(bank, decision, state):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.says(decision)

    payment = await payer.pay(vendor, 4_00, wait=False)

    assert (await settled(payer, payment)).state == state


async def test_repeating_a_request_that_was_not_waited_for_answers_the_payment_as_it_stands(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00, wait=False)
    first = (await payer.payments.CreatePayment(request)).payment
    outcome = await settled(payer, first)

    again = (await payer.payments.CreatePayment(request)).payment

    assert again == outcome


async def test_repeating_a_request_and_waiting_this_time_answers_the_outcome(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00, wait=False)
    with patch.object(FollowUp, "settle_soon"):  # it was put on record, and its process died
        first = (await payer.payments.CreatePayment(request)).payment
    request.wait = True

    again = (await payer.payments.CreatePayment(request)).payment

    assert (first.state, again.state) == (PENDING, SUCCESS)
    assert again.name == first.name
    assert await vendor.online() == 4_00


async def test_one_request_sent_twenty_times_at_once_and_never_waited_for_pays_once(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00, wait=False)

    answers = await asyncio.gather(*(payer.payments.CreatePayment(request) for _ in range(20)))

    assert len({answer.payment.name for answer in answers}) == 1
    await settled(payer, answers[0].payment)
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)


async def test_a_batch_answers_each_in_the_order_asked_and_none_fails_its_neighbours(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    suspended = await bank.a_vendor()
    await bank.knows(suspended, active=False, version=2)
    nobody = f"users/{uuid4()}"
    reused = str(uuid4())
    requests = [
        a_payment(vendor, 1_00, request_id=reused),
        a_payment(payer, 1_00),
        a_payment(vendor, TRANSFER_MINOR_UNITS_MAX + 1),
        a_payment(vendor, 2_00, request_id=reused),
        a_payment(vendor, 1_00, vendor=nobody),
        a_payment(vendor, 2_00),
        a_payment(suspended, 1_00),
        a_payment(vendor, -1),
        a_payment(vendor, 1_00, request_id="17"),
        a_payment(vendor, 3_00),
    ]

    answer = await payer.payments.BatchCreatePayments(
        pb.BatchCreatePaymentsRequest(requests=requests)
    )

    outcomes = [
        result.payment.amount.minor_units
        if result.WhichOneof("outcome") == "payment"
        else result.refusal.reason
        for result in answer.results
    ]
    assert outcomes == [
        1_00,
        "SELF_PAYMENT",
        "AMOUNT_OVER_LIMIT",
        "REQUEST_ID_REUSED",
        "VENDOR_NOT_FOUND",
        2_00,
        "VENDOR_NOT_ACTIVE",
        "FIELDS_INVALID",
        "FIELDS_INVALID",
        3_00,
    ]
    for number in (0, 5, 9):
        payment = answer.results[number].payment
        assert payment.state == PENDING
        assert payment.request_id == requests[number].request_id
        assert (await settled(payer, payment)).state == SUCCESS
    assert (await payer.online(), await vendor.online()) == (4_00, 6_00)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_refusal_in_a_batch_says_what_create_payment_would_have_said(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    requests = [
        a_payment(payer),
        a_payment(vendor, TRANSFER_MINOR_UNITS_MAX + 1),
        a_payment(vendor, 1_00, vendor=f"users/{uuid4()}"),
        a_payment(vendor, 0),
    ]

    async with bank.nothing_changes():
        batch = pb.BatchCreatePaymentsRequest(requests=requests)
        answer = await payer.payments.BatchCreatePayments(batch)
        alone = [await refused(payer.payments.CreatePayment(request)) for request in requests]

    for result, single in zip(answer.results, alone, strict=True):
        told = result.refusal
        assert told.code == single.code.value[0]
        assert (told.reason, told.message) == (single.reason, single.message)
        assert dict(told.metadata) == single.metadata
        assert not told.HasField("retry_delay")


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_batch_holds_one_to_ten_payments(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()

    for count in (0, 11):
        requests = [a_payment(vendor) for _ in range(count)]
        async with bank.nothing_changes():
            call = payer.payments.BatchCreatePayments(
                pb.BatchCreatePaymentsRequest(requests=requests)
            )
            refusal = await refused(call)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", ("requests",))


async def test_a_repeated_batch_pays_once(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    batch = pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor, 1_00) for _ in range(5)])

    first, second = await asyncio.gather(
        payer.payments.BatchCreatePayments(batch), payer.payments.BatchCreatePayments(batch)
    )

    names = [result.payment.name for result in first.results]
    assert [result.payment.name for result in second.results] == names
    for result in first.results:
        await settled(payer, result.payment)
    assert await vendor.online() == 5_00


async def test_what_a_dead_process_left_pending_is_settled_by_another(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    with patch.object(FollowUp, "settle_soon"):
        left = [await payer.pay(vendor, 1_00, wait=False) for _ in range(3)]
    young = [await payer.get(payment) for payment in left]
    assert {payment.state for payment in young} == {PENDING}  # whose process may still be at it

    bank.clock.advance(timedelta(seconds=6))
    async with bank.replica() as other:
        outcomes = [await settled(payer.at(other), payment) for payment in left]

    assert {payment.state for payment in outcomes} == {SUCCESS}
    assert await vendor.online() == 3_00
    assert await bank.rows(store.payment_tasks) == []


async def test_a_payment_whose_vendor_is_suspended_before_it_settles_fails(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    with patch.object(FollowUp, "settle_soon"):
        payment = await payer.pay(vendor, 4_00, wait=False)
    await bank.knows(vendor, active=False, version=2)

    bank.clock.advance(timedelta(seconds=6))
    outcome = await settled(payer, payment)

    assert outcome.state == FAILED
    assert outcome.failure_reason == payment_pb2.Payment.FAILURE_REASON_VENDOR_NOT_ACTIVE
    assert await payer.balances() == (10_00, 0, 0, 0)


async def test_one_that_cannot_be_settled_does_not_stop_the_others(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    await bank.stumbles_over("poison")
    with patch.object(FollowUp, "settle_soon"):
        stuck = await payer.pay(vendor, 1_00, wait=False, reference="poison")
        left = [await payer.pay(vendor, 1_00, wait=False) for _ in range(3)]

    bank.clock.advance(timedelta(seconds=6))
    for payment in left:
        assert (await settled(payer, payment)).state == SUCCESS

    assert (await payer.get(stuck)).state == PENDING
    assert (await payer.pay(vendor, 1_00)).state == SUCCESS
    await bank.stumbles_no_more()
    assert (await settled(payer, stuck)).state == SUCCESS
    assert await vendor.online() == 5_00


async def test_the_amount_of_a_batch_may_be_more_than_there_is_and_then_the_last_fail(bank):
    payer, vendor = await bank.a_payer(3_00), await bank.a_vendor()
    batch = pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor, 1_00) for _ in range(5)])

    answer = await payer.payments.BatchCreatePayments(batch)

    outcomes = [await settled(payer, result.payment) for result in answer.results]
    assert sorted(payment.state for payment in outcomes) == [SUCCESS] * 3 + [FAILED] * 2
    assert inr(await vendor.online()) == inr(3_00)
