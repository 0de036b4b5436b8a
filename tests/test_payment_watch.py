"""WatchPayments: every change as it happens, one's own and no one else's, and nothing missed after a break."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from tallystick.payment.v1 import payment_service_pb2 as pb
from tests.eventually import eventually
from tests.fakes.fraud import DECLINE, REVIEW
from tests.payment_stack import (
    FAILED,
    FLAGGED,
    PENDING,
    PROCESSING,
    SUCCESS,
    a_decision,
    a_payment,
    a_refund,
    a_top_up,
    inr,
    refused,
)

EVENTS = "events:payment"


@asynccontextmanager
async def watching(person, cursor=""):
    """(the stream, where it begins): after its first message, which comes at once."""
    call = person.payments.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))
    try:
        async with asyncio.timeout(5):
            first = await call.read()
        assert first.cursor
        assert (first.event_id, first.HasField("payment")) == ("", False)
        yield call, first.cursor
    finally:
        call.cancel()


async def heard(call, count):
    """The next messages."""
    async with asyncio.timeout(5):
        return [await call.read() for _ in range(count)]


def said(messages):
    return [(message.payment.name, message.payment.state) for message in messages]


async def test_payer_vendor_and_admin_hear_of_every_state_a_payment_goes_through(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with (
        watching(payer) as (by_payer, _),
        watching(vendor) as (by_vendor, _),
        watching(bank.admin) as (by_admin, _),
    ):
        payment = await payer.pay(vendor, 4_00)
        for call in (by_payer, by_vendor, by_admin):
            messages = await heard(call, 3)

            assert said(messages) == [
                (payment.name, PENDING),
                (payment.name, PROCESSING),
                (payment.name, SUCCESS),
            ]
            assert messages[-1].payment == payment
            assert len({message.event_id for message in messages}) == 3


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_change_is_heard_within_a_second_of_its_commit(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with watching(vendor) as (call, _):
        for _ in range(3):
            await payer.pay(vendor)
            async with asyncio.timeout(1):
                await call.read()
                await call.read()
                await call.read()


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_message_shows_the_payment_as_the_change_left_it_also_much_later(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    async with watching(payer) as (_, start):
        pass
    bank.fraud.says(REVIEW, score=70)
    flagged = await payer.pay(vendor, 10_00)
    resolve = bank.first.reviews.settlements.ResolveHold
    resolved = (await resolve(a_decision(flagged))).payment
    first = (await vendor.payments.RefundPayment(a_refund(flagged, 4_00))).payment
    second = (await vendor.payments.RefundPayment(a_refund(flagged, 1_00))).payment
    await eventually(bank.relayed)

    async with watching(payer, start) as (call, _):
        created, processing, *later = [each.payment for each in await heard(call, 6)]

    assert later == [flagged, resolved, first, second]
    assert [created.state, processing.state] == [PENDING, PROCESSING]
    for early in (created, processing):
        assert (early.amount, early.refunded) == (inr(10_00), inr(0))
        assert early.failure_reason == 0
    assert created.risk.decision == 0
    assert processing.risk == flagged.risk


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_failures_are_heard_with_their_reason_and_processing_without_it(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    bank.fraud.says(DECLINE)

    async with watching(payer) as (call, _):
        payment = await payer.pay(vendor, 1_00)
        created, processing, failed = [each.payment for each in await heard(call, 3)]

    assert failed == payment
    assert failed.state == FAILED
    assert (created.failure_reason, processing.failure_reason) == (0, 0)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_stranger_hears_nothing_of_others(bank):
    payer, vendor, stranger = await bank.a_payer(), await bank.a_vendor(), await bank.a_payer()

    async with watching(stranger) as (call, start):
        for _ in range(5):
            await payer.pay(vendor)
        own = await stranger.pay(vendor)
        assert said(await heard(call, 1)) == [(own.name, PENDING)]
        async with watching(stranger, start) as (again, _):
            assert said(await heard(again, 1)) == [(own.name, PENDING)]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_money_that_moves_outside_payments_is_not_heard(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with watching(payer) as (call, _):
        await bank.admin.wallets.TopUp(a_top_up(payer))
        await bank.knows(payer, active=False, version=2)
        await bank.knows(payer, version=3)
        payment = await payer.pay(vendor)

        assert said(await heard(call, 1)) == [(payment.name, PENDING)]


async def test_who_resumes_behind_any_message_misses_nothing_and_hears_nothing_foreign(bank):
    payer, vendor, other = await bank.a_payer(), await bank.a_vendor(), await bank.a_payer()
    async with watching(payer) as (call, start):
        await asyncio.gather(
            *(payer.pay(vendor, 1 + number) for number in range(7)),
            *(other.pay(vendor) for _ in range(7)),
        )
        everything = await heard(call, 21)
    ids = [message.event_id for message in everything]
    assert len(set(ids)) == 21
    assert {message.payment.payer for message in everything} == {payer.name}

    for heard_before in (0, 1, 2, 3, 10, 20, 21):
        cursor = everything[heard_before - 1].cursor if heard_before else start
        async with watching(payer, cursor) as (again, _):
            last = await payer.pay(vendor, 50)
            known, news = set(ids[:heard_before]), []
            while not news or (news[-1].payment.name, news[-1].payment.state) != (
                last.name,
                SUCCESS,
            ):
                (message,) = await heard(again, 1)
                if message.event_id not in known:  # a message may come twice
                    known.add(message.event_id)
                    news.append(message)
        of_before = [each.event_id for each in news if each.payment.amount.minor_units < 50]
        assert of_before == ids[heard_before:]


async def test_listing_after_the_first_message_and_then_hearing_misses_nothing(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    names = []

    async def keep_paying():
        for _ in range(30):
            payment = await payer.pay(vendor, 1)
            names.append(payment.name)

    paying = asyncio.create_task(keep_paying())
    await eventually(lambda: len(names) > 3)
    async with watching(vendor) as (call, _):
        request = pb.ListPaymentsRequest(parent=vendor.name, currency_code="INR", page_size=200)
        listed = await vendor.payments.ListPayments(request)
        known = {each.name for each in listed.payments if each.state == SUCCESS}
        await paying
        async with asyncio.timeout(5):
            while known != set(names):
                message = await call.read()
                if message.payment.state == SUCCESS:
                    known.add(message.payment.name)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_stream_opened_before_anything_ever_happened_can_be_resumed(bank):
    async with watching(bank.admin) as (_, start):
        pass
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    payment = await payer.pay(vendor)

    async with watching(payer, start) as (call, _):
        assert said(await heard(call, 3))[-1] == (payment.name, SUCCESS)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_cursor_that_is_none_or_behind_what_is_kept_has_expired(bank, subtests):
    async with watching(bank.admin) as (_, start):
        pass
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with watching(payer) as (call, _):
        for _ in range(5):
            await payer.pay(vendor)
        cursors = [message.cursor for message in await heard(call, 15)]
    ahead = f"{int(cursors[-1].partition('-')[0]) + 60_000}-0"
    assert start == "0-0"  # given while there was nothing yet
    wrong = [
        "x",
        "1",
        "1-",
        "-1",
        "1-1-1",
        "1-1\n",
        "\u0661-\u0661",
        "9" * 20 + "-0",
        "0-" + "9" * 20,
        ahead,
    ]

    await bank.redis.xtrim(EVENTS, maxlen=1, approximate=False)
    for cursor in (*wrong, start, cursors[0]):
        with subtests.test(repr(cursor)):
            call = payer.payments.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))
            refusal = await refused(call.read())
            assert refusal.code is grpc.StatusCode.OUT_OF_RANGE
            assert (refusal.domain, refusal.reason) == ("access.tallystick", "CURSOR_EXPIRED")
    async with watching(payer, cursors[-1]):
        pass


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_cursor_is_at_most_64_characters(bank):
    payer = await bank.a_payer()

    call = payer.payments.WatchPayments(pb.WatchPaymentsRequest(cursor="1" * 65))

    assert (await refused(call.read())).fields == ("cursor",)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_when_redis_has_lost_the_stream_a_cursor_has_expired(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    async with watching(payer) as (call, _):
        await payer.pay(vendor)
        cursor = (await heard(call, 3))[-1].cursor

    await bank.redis.flushall()
    for _ in range(2):  # with nothing in it, then with something new
        call = payer.payments.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))
        assert (await refused(call.read())).reason == "CURSOR_EXPIRED"
        await payer.pay(vendor)
        await eventually(lambda: bank.redis.exists(EVENTS))


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_watchers_who_go_away_leave_nothing_behind(bank):
    payer = await bank.a_payer()
    feed = bank.first.server._feed

    for _ in range(5):
        async with watching(payer):
            assert feed._watchers

    await eventually(lambda: not feed._watchers)


async def test_a_payment_made_at_one_replica_is_heard_at_another(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with bank.replica() as other, watching(vendor.at(other)) as (call, _):
        here = await payer.pay(vendor)
        there = await payer.at(other).pay(vendor)

        states = said(await heard(call, 6))
    assert [state for state in states if state[0] == here.name] == [
        (here.name, state) for state in (PENDING, PROCESSING, SUCCESS)
    ]
    assert [state for state in states if state[0] == there.name] == [
        (there.name, state) for state in (PENDING, PROCESSING, SUCCESS)
    ]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_what_is_not_waited_for_is_heard_when_it_settles(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    bank.fraud.says(REVIEW)

    async with watching(payer) as (call, _):
        request = pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor) for _ in range(3)])
        answer = await payer.payments.BatchCreatePayments(request)
        messages = said(await heard(call, 9))

    for result in answer.results:
        states = [state for name, state in messages if name == result.payment.name]
        assert states == [PENDING, PROCESSING, FLAGGED]
