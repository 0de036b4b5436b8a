"""Two payment services on one database: every request is carried out once, wherever and how often it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from unittest.mock import patch

import grpc
import pytest
from uuid_utils import uuid4

from services.payment import store
from services.payment.follow_up import FollowUp
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1.settlement_service_pb2 import ReleaseReservationsRequest
from tests.eventually import eventually
from tests.fakes.fraud import REVIEW
from tests.offline_items import RELEASED, SETTLED, Codes, an_item, to_reserve
from tests.payment_stack import (
    FAILED,
    SUCCESS,
    a_decision,
    a_payment,
    a_payout,
    a_refund,
    a_top_up,
    to_offline,
)


@pytest.fixture
async def two(bank):
    """(the bank, its first replica, a second one)."""
    async with bank.replica() as second:
        yield bank, bank.first, second


async def at_once(one, other, times=10):
    """The answers to calls sent many times to both replicas at the same time."""
    return await asyncio.gather(*(send() for _ in range(times) for send in (one, other)))


async def test_a_payment_sent_to_both_at_once_is_made_once(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00)

    answers = await at_once(
        lambda: payer.at(first).payments.CreatePayment(request),
        lambda: payer.at(second).payments.CreatePayment(request),
    )

    assert all(answer == answers[0] for answer in answers)
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)


async def test_a_payment_not_waited_for_and_sent_to_both_at_once_is_made_once(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00, wait=False)

    answers = await at_once(
        lambda: payer.at(first).payments.CreatePayment(request),
        lambda: payer.at(second).payments.CreatePayment(request),
    )

    assert len({answer.payment.name for answer in answers}) == 1
    await eventually(lambda: has_settled(payer, answers[0].payment))
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)


async def has_settled(person, payment):
    return (await person.get(payment)).state == SUCCESS


async def test_everything_else_sent_to_both_at_once_happens_once(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(20_00), await bank.a_vendor(20_00)
    paid = await payer.pay(vendor, 5_00)
    bank.fraud.says(REVIEW)
    held = await payer.pay(vendor, 5_00)
    admins = [bank.admin, bank.admin.at(second)]
    other = await bank.a_payer(20_00)
    (unspent,) = await Codes(first).reserve(other, 4_00)
    await other.wallets.MoveBalance(to_offline(other, 3_00))
    requests = {
        "RefundPayment": (
            [vendor.at(replica).payments.RefundPayment for replica in (first, second)],
            a_refund(paid, 2_00),
        ),
        "ResolveHold": (
            [replica.reviews.settlements.ResolveHold for replica in (first, second)],
            a_decision(held),
        ),
        "TopUp": ([admin.wallets.TopUp for admin in admins], a_top_up(payer, 3_00)),
        "Payout": (
            [vendor.at(replica).wallets.Payout for replica in (first, second)],
            a_payout(vendor, 4_00),
        ),
        "MoveBalance": (
            [payer.at(replica).wallets.MoveBalance for replica in (first, second)],
            to_offline(payer, 1_00),
        ),
        "ReserveFunds": (
            [replica.codes.settlements.ReserveFunds for replica in (first, second)],
            to_reserve(other, 2_00, 1_00),
        ),
        "ReleaseReservations": (
            [replica.codes.settlements.ReleaseReservations for replica in (first, second)],
            ReleaseReservationsRequest(names=[unspent]),
        ),
    }

    async def send_to_both(calls, request):
        return await asyncio.gather(*(call(request) for _ in range(5) for call in calls))

    found = await asyncio.gather(*(send_to_both(*each) for each in requests.values()))

    for answers in found:
        assert all(answer == answers[0] for answer in answers)
    assert await payer.balances() == (14_00, 1_00, 0, 0)
    assert await vendor.online() == 24_00
    assert await other.balances() == (13_00, 4_00, 3_00, 0)


async def test_one_id_with_two_bodies_sent_to_both_at_once_is_carried_out_for_one(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()

    for _ in range(5):
        request_id = str(uuid4())
        answers = await asyncio.gather(
            payer.at(first).pay(vendor, 1, request_id=request_id),
            payer.at(second).pay(vendor, 2, request_id=request_id),
            return_exceptions=True,
        )
        (refusal,) = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert refusal.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_one_payer_at_two_replicas_spends_what_is_there_and_no_more(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()

    payments = await at_once(
        lambda: payer.at(first).pay(vendor, 1_00), lambda: payer.at(second).pay(vendor, 1_00)
    )

    assert Counter(payment.state for payment in payments) == {SUCCESS: 10, FAILED: 10}
    assert (await payer.online(), await vendor.online()) == (0, 10_00)


async def test_a_hot_vendor_and_people_who_pay_each_other_both_ways_do_not_lock_each_other_out(two):
    bank, first, second = two
    people = await asyncio.gather(*(bank.a_vendor(100_00) for _ in range(6)))
    hot = people[0]

    async def pays(number):
        payer = people[1 + number % 5]
        vendor = hot if number % 3 else people[1 + (number + 1 + number // 5 % 4) % 5]
        if vendor is payer:
            vendor = hot
        return await payer.at((first, second)[number % 2]).pay(vendor, 1)

    payments = await asyncio.gather(*(pays(number) for number in range(120)))

    assert {payment.state for payment in payments} == {SUCCESS}
    assert sum([await person.online() for person in people]) == 600_00


async def test_wallets_of_one_owner_opened_at_both_at_once_are_opened_once(two):
    bank, _, second = two
    people = [await bank.an_account() for _ in range(3)]
    rows = len(await bank.rows(store.wallets))

    # The first money ever in this ledger: the system's funding account is made by both.
    await asyncio.gather(
        *(
            admin.wallets.TopUp(a_top_up(person, 1_00))
            for person in people
            for admin in (bank.admin, bank.admin.at(second))
        )
    )

    assert [await person.online() for person in people] == [2_00] * 3
    assert len(await bank.rows(store.wallets)) == rows + 1


async def test_what_was_left_pending_is_settled_once_though_both_find_it(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(100_00), await bank.a_vendor()
    with patch.object(FollowUp, "settle_soon"):
        left = [
            await payer.at(replica).pay(vendor, 1_00, wait=False)
            for replica in (first, second) * 10
        ]

    bank.clock.advance(timedelta(seconds=6))
    for payment in left:
        await eventually(lambda payment=payment: has_settled(payer, payment))

    assert await vendor.online() == 20_00
    states = Counter(event.WhichOneof("fact") for event in await bank.events())
    assert states["payment_processing"] == states["payment_succeeded"] == 20


async def test_a_suspension_told_to_one_counts_at_the_other(two):
    bank, _, second = two
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    await bank.knows(payer, active=False, version=2)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await payer.at(second).pay(vendor)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_payment_made_at_one_is_found_and_refunded_at_the_other(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    payment = await payer.at(first).pay(vendor, 10_00)

    assert await payer.at(second).get(payment) == payment
    answer = await vendor.at(second).payments.RefundPayment(a_refund(payment, 10_00))

    assert await payer.at(first).get(payment) == answer.payment
    assert isinstance(answer.payment, payment_pb2.Payment)
    assert await payer.online() == 10_00


async def test_an_item_sent_to_both_at_once_is_settled_once(two):
    bank, first, second = two
    payer, vendor = await bank.a_payer(100_00), await bank.a_vendor()
    (reservation,) = await Codes(first).reserve(payer, 10_00)
    item = an_item(payer, reservation, vendor, 7_00)

    answers = await at_once(
        lambda: Codes(first).settle(item), lambda: Codes(second).settle(item, item)
    )

    results = [result for answer in answers for result in answer]
    assert all(result == results[0] for result in results)
    assert results[0].payment.state == SUCCESS
    assert await payer.balances() == (90_00, 3_00, 0, 0)
    assert await vendor.online() == 7_00


async def test_one_reservation_spent_at_fifty_terminals_pays_one_of_them(two):
    bank, first, second = two
    payer = await bank.a_payer(100_00)
    vendors = [await bank.a_vendor() for _ in range(5)]
    (reservation,) = await Codes(first).reserve(payer, 10_00)
    items = [an_item(payer, reservation, vendors[number % 5]) for number in range(50)]

    answers = await asyncio.gather(
        *(
            Codes((first, second)[number % 2]).settle(*items[number * 5 : number * 5 + 5])
            for number in range(10)
        )
    )

    results = [result for answer in answers for result in answer]
    (paid,) = [each.payment for each in results if each.HasField("payment")]
    refusals = [each.refusal for each in results if each.HasField("refusal")]
    assert {refusal.reason for refusal in refusals} == {"RESERVATION_SETTLED"}
    assert len(refusals) == 49
    assert {refusal.metadata["payment"] for refusal in refusals} == {paid.name}
    assert sum([await vendor.online() for vendor in vendors]) == 10_00
    assert await payer.balances() == (90_00, 0, 0, 0)


async def test_of_a_settlement_and_a_release_at_the_same_time_one_wins(two):
    bank, first, _ = two
    payer, vendor = await bank.a_payer(100_00), await bank.a_vendor()
    reservations = await Codes(first).reserve(payer, *[1_00] * 40)

    async def race(number, reservation):
        settling, releasing = (Codes(each) for each in two[1:][:: 1 if number % 2 else -1])
        return await asyncio.gather(
            settling.settle(an_item(payer, reservation, vendor, 1_00)),
            releasing.release(reservation),
        )

    ends = Counter()
    for (result,), (state,) in await asyncio.gather(*map(race, range(40), reservations)):
        if result.HasField("payment"):
            assert state == SETTLED
        else:
            assert (result.refusal.reason, state) == ("RESERVATION_RELEASED", RELEASED)
        ends[state] += 1

    assert await vendor.online() == 1_00 * ends[SETTLED]
    assert await payer.balances() == (60_00, 1_00 * ends[RELEASED], 0, 0)


async def test_money_reserved_at_two_replicas_at_once_is_what_is_there_and_no_more(two):
    bank, first, second = two
    payer = await bank.a_payer(100_00)
    await payer.wallets.MoveBalance(to_offline(payer, 10_00))

    answers = await asyncio.gather(
        *(Codes(each).reserve_as(to_reserve(payer, 3_00)) for each in (first, second) * 5),
        return_exceptions=True,
    )

    refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert len(refused) == 7
    assert await payer.balances() == (90_00, 1_00, 9_00, 0)
