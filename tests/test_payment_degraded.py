"""When the fraud service is away or slow: small payments pass and are looked at afterwards, larger ones are held."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.payment import store
from services.payment.domain.book import Task
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as fraud_pb
from tallystick.payment.v1 import payment_pb2
from tests.eventually import eventually
from tests.fakes.fraud import DECLINE, REVIEW
from tests.payment_stack import FLAGGED, SUCCESS, a_decision

FLOOR = 500_00
RISK = payment_pb2.Risk
DEGRADED = RISK(decision=RISK.DECISION_DEGRADED, reasons=["FRAUD_UNAVAILABLE"])


async def late_assessments(bank):
    return [
        event for event in await bank.events() if event.WhichOneof("fact") == "payment_assessed"
    ]


async def unassessed(bank):
    return [row[1] for row in await bank.rows(store.payment_tasks) if row[0] == Task.ASSESS]


async def test_without_the_fraud_service_payments_up_to_the_floor_pass_and_larger_ones_are_held(
    bank,
):
    payer, vendor = await bank.a_payer(10_000_00), await bank.a_vendor()
    async with bank.replica(fraud_address="127.0.0.1:1") as alone:
        there = payer.at(alone)

        small = await there.pay(vendor, FLOOR)
        large = await there.pay(vendor, FLOOR + 1)

    assert (small.state, small.risk) == (SUCCESS, DEGRADED)
    assert (large.state, large.risk) == (FLAGGED, DEGRADED)
    assert (await payer.balances())[3] == FLOOR + 1
    assert await vendor.online() == FLOOR


@pytest.mark.parametrize("trouble", ["slow", "failing"])
@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_fraud_service_that_is_slow_or_fails_counts_as_away(bank, trouble):
    payer, vendor = await bank.a_payer(10_000_00), await bank.a_vendor()
    if trouble == "slow":
        bank.fraud.answers.clear()
    else:
        bank.fraud.failure = ZeroDivisionError()
    async with bank.replica(fraud_budget_ms=40) as hurried:
        started = time.monotonic()
        small, large = await asyncio.gather(
            payer.at(hurried).pay(vendor, 1), payer.at(hurried).pay(vendor, FLOOR + 1)
        )
        assert time.monotonic() - started < 2

    assert (small.state, large.state) == (SUCCESS, FLAGGED)
    assert small.risk == large.risk == DEGRADED
    bank.fraud.answers.set()


async def test_what_passed_unseen_is_assessed_afterwards_and_told_once(bank):
    payer, vendor = await bank.a_payer(10_000_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    payments = [await payer.pay(vendor, 1_00) for _ in range(3)]
    held = await payer.pay(vendor, FLOOR + 1)
    assert await late_assessments(bank) == []
    assert len(await unassessed(bank)) == 3

    bank.fraud.says(REVIEW, score=70, signals=[fraud_pb.Signal.CODE_POSITION_MISSING])
    bank.fraud.failure = None
    await eventually(lambda: all_assessed(bank))

    told = await late_assessments(bank)
    assert {event.subject for event in told} == {payment.name for payment in payments}
    assert len(told) == 3
    for event in told:
        assert event.actor == "services/payment"
        assert list(event.audience) == [payer.name, vendor.name]
        assert event.payment_assessed.payment.state == SUCCESS
        assert event.payment_assessed.payment.risk == RISK(
            decision=RISK.DECISION_REVIEW, score=70, reasons=["POSITION_MISSING"]
        )
    # What it was settled by stays on the payment.
    assert (await payer.get(payments[0])).risk == DEGRADED
    assert held.name not in {facts.payment for facts in bank.fraud.asked[-3:]}


async def all_assessed(bank):
    return not await unassessed(bank)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_late_decline_takes_no_money_back_by_itself(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    payment = await payer.pay(vendor, 10_00)

    bank.fraud.says(DECLINE)
    bank.fraud.failure = None
    await eventually(lambda: all_assessed(bank))

    assert await payer.get(payment) == payment
    assert await vendor.online() == 10_00


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_payment_settled_afterwards_in_degraded_mode_is_assessed_as_well(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    payment = await payer.pay(vendor, 1_00, wait=False)
    await eventually(lambda: unassessed(bank))

    bank.fraud.failure = None
    await eventually(lambda: late_assessments(bank))

    assert [event.subject for event in await late_assessments(bank)] == [payment.name]


async def test_two_replicas_that_find_the_same_payment_unseen_tell_of_it_once(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    async with bank.replica(), bank.replica():
        for _ in range(5):
            await payer.pay(vendor, 1_00)
        bank.fraud.failure = None
        await eventually(lambda: all_assessed(bank))

    told = [event.subject for event in await late_assessments(bank)]
    assert len(told) == len(set(told)) == 5


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_one_late_assessment_that_cannot_be_recorded_does_not_stop_the_others(
    bank, monkeypatch
):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    payments = [await payer.pay(vendor, 1_00) for _ in range(3)]
    bad = payments[0].name
    assessed = bank.first.group.submit

    async def submit(command, facts=None):
        if f"payments/{getattr(command, 'payment_id', '')}" == bad and facts is None:
            raise ZeroDivisionError
        return await assessed(command, facts)

    monkeypatch.setattr(bank.first.group, "submit", submit)
    bank.fraud.failure = None
    await eventually(lambda: only_one_left(bank))

    told = {event.subject for event in await late_assessments(bank)}
    assert told == {payment.name for payment in payments[1:]}
    monkeypatch.undo()
    await eventually(lambda: all_assessed(bank))


async def only_one_left(bank):
    return len(await unassessed(bank)) == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_payment_held_because_nobody_looked_is_reviewed_like_any_other(bank):
    payer, vendor = await bank.a_payer(1_000_00), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    held = await payer.pay(vendor, FLOOR + 1)

    answer = await bank.first.reviews.settlements.ResolveHold(a_decision(held))

    assert answer.payment.state == SUCCESS
    assert answer.payment.risk == DEGRADED
    flagged = [each for each in await bank.events() if each.HasField("payment_flagged")]
    assert isinstance(flagged[0], event_pb2.Event)
    assert flagged[0].payment_flagged.payment == held
