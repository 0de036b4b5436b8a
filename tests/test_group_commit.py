"""Groups: many commands in one transaction, each with its own answer, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from datetime import timedelta

import grpc
import pytest
from uuid_utils import uuid4

from services.payment.domain.ledger import TRANSFER_MINOR_UNITS_MAX
from tallystick.payment.v1 import payment_service_pb2 as pb
from tests.eventually import eventually
from tests.fakes.fraud import REVIEW
from tests.payment_stack import FAILED, FLAGGED, SUCCESS, a_payment, a_top_up, as_refused, refused


@contextlib.asynccontextmanager
async def held_back(bank):
    """What is sent in the block shares one group: the one before it waits for the fraud service until the end."""
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    bank.fraud.answers.clear()
    first = asyncio.create_task(payer.pay(vendor))
    await eventually(lambda: bank.fraud.asked)
    yield
    bank.fraud.answers.set()
    await first


async def queued(bank, count):
    await eventually(lambda: len(bank.first.group._queue) == count)


async def arrived(bank, replica, count):
    """So many wait for the fraud service, or behind those who do."""
    await eventually(lambda: len(bank.fraud.asked) + len(replica.group._queue) == count)


async def test_what_comes_while_a_group_is_busy_shares_the_next_one(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with held_back(bank):
        paying = [asyncio.create_task(payer.pay(vendor)) for _ in range(40)]
        await queued(bank, 40)
    payments = await asyncio.gather(*paying)

    assert {payment.state for payment in payments} == {SUCCESS}
    assert len({payment.create_time.ToNanoseconds() for payment in payments}) == 1
    assert bank.fraud.calls == [1, 40]


async def test_a_group_holds_no_more_than_its_bound(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with bank.replica(group_size_max=7) as small:
        there = payer.at(small)
        bank.fraud.answers.clear()
        paying = [asyncio.create_task(there.pay(vendor)) for _ in range(30)]
        await arrived(bank, small, 30)
        bank.fraud.answers.set()
        payments = await asyncio.gather(*paying)

    assert {payment.state for payment in payments} == {SUCCESS}
    assert max(bank.fraud.calls) == 7


async def test_neither_a_full_group_nor_the_end_of_the_service_waits_for_the_pace(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with bank.replica(group_size_max=7, pace_seconds=3_600) as unhurried:
        there = payer.at(unhurried)
        await there.pay(vendor, 1)
        await asyncio.gather(*(there.pay(vendor, 1) for _ in range(14)))
        assert await vendor.online() == 15
        # Its caller goes away with the service; it is carried out all the same.
        left = asyncio.create_task(there.pay(vendor, 1))
        await eventually(lambda: len(unhurried.group._queue) == 1)
    await asyncio.wait([left])

    assert await vendor.online() == 16


async def test_a_vendor_paid_by_a_hundred_people_at_once_gets_every_payment(bank):
    vendor = await bank.a_vendor()
    payers = await asyncio.gather(*(bank.a_payer(10_00) for _ in range(100)))

    async with held_back(bank):
        paying = [asyncio.create_task(payer.pay(vendor, 1 + n)) for n, payer in enumerate(payers)]
        await queued(bank, 100)
    payments = await asyncio.gather(*paying)

    assert {payment.state for payment in payments} == {SUCCESS}
    assert await vendor.online() == sum(range(1, 101))


async def test_each_member_of_a_group_gets_its_own_answer(bank):
    payer, vendor, poor = await bank.a_payer(10_00), await bank.a_vendor(), await bank.a_payer(1)
    suspended = await bank.a_vendor()
    await bank.knows(suspended, active=False, version=2)
    again = a_payment(vendor, 1_00)
    calls = {
        "pays": lambda: payer.payments.CreatePayment(a_payment(vendor, 1_00)),
        "first": lambda: payer.payments.CreatePayment(again),
        "replay": lambda: payer.payments.CreatePayment(again),
        "reused": lambda: payer.pay(vendor, 2_00, request_id=again.request_id),
        "poor": lambda: poor.payments.CreatePayment(a_payment(vendor, 1_00)),
        "vendor away": lambda: payer.pay(suspended),
        "top-up": lambda: bank.admin.wallets.TopUp(a_top_up(poor, 5_00)),
        "nobody": lambda: payer.pay(vendor, 1_00, vendor=f"users/{uuid4()}"),
        "over": lambda: payer.pay(vendor, TRANSFER_MINOR_UNITS_MAX + 1),
    }
    sending = []

    async with held_back(bank):
        for kind, call in calls.items():  # one after the other, for calls may overtake each other
            sending.append(asyncio.ensure_future(call()))
            if kind == "over":  # it never gets as far as a group
                await asyncio.wait(sending[-1:])
            else:
                await eventually(lambda: len(bank.first.group._queue) == len(sending))
    answers = await asyncio.gather(*sending, return_exceptions=True)
    answers = dict(zip(calls, answers, strict=True))

    said = {
        kind: as_refused(answer).reason
        for kind, answer in answers.items()
        if isinstance(answer, grpc.aio.AioRpcError)
    }
    assert said == {
        "reused": "REQUEST_ID_REUSED",
        "vendor away": "VENDOR_NOT_ACTIVE",
        "over": "AMOUNT_OVER_LIMIT",
        "nobody": "VENDOR_NOT_FOUND",
    }
    assert answers["replay"] == answers["first"]
    assert answers["pays"].payment.state == SUCCESS
    assert answers["poor"].payment.state == FAILED
    assert answers["top-up"].wallet.online.minor_units == 5_01
    assert await payer.online() == 8_00


async def test_one_payment_that_cannot_be_written_fails_alone(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    await bank.stumbles_over("poison")

    async with held_back(bank):
        paying = [
            asyncio.ensure_future(payer.pay(vendor, reference="poison" if n == 5 else ""))
            for n in range(12)
        ]
        await queued(bank, 12)
    answers = await asyncio.gather(*paying, return_exceptions=True)

    failed = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
    assert failed == [5]
    refusal = as_refused(answers[5])
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert (refusal.domain, refusal.reason) == ("access.tallystick", "INTERNAL")
    assert await vendor.online() == 11_00
    listed = await payer.payments.ListPayments(
        pb.ListPaymentsRequest(parent=payer.name, currency_code="INR")
    )
    assert len(listed.payments) == 11  # nothing of the one is left


async def test_the_one_that_failed_alone_can_be_repeated_when_the_cause_is_gone(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    await bank.stumbles_over("poison")
    request = a_payment(vendor, 4_00, reference="poison")
    assert (await refused(payer.payments.CreatePayment(request))).reason == "INTERNAL"

    await bank.stumbles_no_more()
    answer = await payer.payments.CreatePayment(request)

    assert answer.payment.state == SUCCESS
    assert await vendor.online() == 4_00


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with bank.replica(queue_size_max=5) as small:
        there = payer.at(small)
        bank.fraud.answers.clear()
        paying = [asyncio.ensure_future(there.pay(vendor))]
        await eventually(lambda: bank.fraud.asked)  # a group of its own
        paying += [asyncio.ensure_future(there.pay(vendor)) for _ in range(5)]
        await eventually(lambda: len(small.group._queue) == 5)

        async with asyncio.timeout(1), bank.nothing_changes():
            refusal = await refused(there.pay(vendor))
            batch = await there.payments.BatchCreatePayments(
                pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor)])
            )

        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refusal.domain, refusal.reason) == ("access.tallystick", "OVERLOADED")
        assert refusal.retry_after == timedelta(seconds=1)
        told = batch.results[0].refusal
        assert (told.code, told.reason) == (8, "OVERLOADED")
        assert told.retry_delay.ToTimedelta() == timedelta(seconds=1)
        bank.fraud.answers.set()
        assert {payment.state for payment in await asyncio.gather(*paying)} == {SUCCESS}
        assert (await there.pay(vendor)).state == SUCCESS


async def test_what_is_under_way_when_the_service_stops_is_carried_out_and_answered(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with bank.replica(group_size_max=2) as other:
        there = payer.at(other)
        bank.fraud.answers.clear()
        paying = [asyncio.ensure_future(there.pay(vendor)) for _ in range(10)]
        await arrived(bank, other, 10)
        stopping = asyncio.create_task(other.server.stop())
        await asyncio.sleep(0)
        bank.fraud.answers.set()
        payments = await asyncio.gather(*paying)
        await stopping
        other.server.background.clear()

    assert Counter(payment.state for payment in payments) == {SUCCESS: 10}
    assert await vendor.online() == 10_00


async def test_what_nobody_waits_for_is_carried_out_before_the_service_ends(bank):
    """Not waited for, and so not a call that the server's own grace would protect."""
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    bank.fraud.says(REVIEW)
    async with bank.replica() as other:
        bank.fraud.answers.clear()
        answer = await payer.at(other).payments.BatchCreatePayments(
            pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor) for _ in range(3)])
        )
        await arrived(bank, other, 3)
        stopping = asyncio.create_task(other.server.stop())
        await asyncio.sleep(0.05)  # the calls have ended by now, and the group is asked to
        bank.fraud.answers.set()
        await stopping
        other.server.background.clear()

    pending = [result.payment for result in answer.results]
    assert {(await payer.get(payment)).state for payment in pending} == {FLAGGED}


async def test_a_service_can_be_stopped_at_any_moment_after_its_start(bank):
    for moment in range(25):
        async with asyncio.timeout(5), bank.replica(user_address="127.0.0.1:1"):
            await asyncio.sleep(moment / 2_000)


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_groups_of_one_do_the_same(bank):
    payers = await asyncio.gather(*(bank.a_payer(10_00) for _ in range(10)))
    vendor = await bank.a_vendor()
    async with bank.replica(group_size_max=1) as alone:
        paying = [payer.at(alone).pay(vendor, 1_00) for payer in payers for _ in range(3)]
        payments = await asyncio.gather(*paying)

    assert {payment.state for payment in payments} == {SUCCESS}
    assert await vendor.online() == 30_00
