"""What becomes of payments when the database or Redis goes away, or a connection breaks in the worst moment."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from unittest.mock import patch

import grpc
import pytest

from services import sql
from services.payment.follow_up import FollowUp
from tallystick.payment.v1 import payment_service_pb2 as pb
from tests.eventually import eventually
from tests.fakes.fraud import ALLOW, REVIEW
from tests.outages import Mariadb, Valkey, line_to, running
from tests.payment_stack import (
    PENDING,
    SUCCESS,
    a_decision,
    a_payment,
    a_payout,
    a_refund,
    a_top_up,
    payment_stack,
    refused,
    to_offline,
)


@pytest.fixture
async def on_a_line(tls_for, valkey_url, database_url):
    """(a payment service, the line to its database)."""
    async with (
        line_to(database_url("payment"), "requests") as line,
        payment_stack(tls_for, valkey_url, line.url) as bank,
    ):
        yield bank, line


async def every_move(bank):
    """One of each call that moves money, ready to be sent any number of times: (send, balances it leaves)."""
    payer, vendor = await bank.a_payer(20_00), await bank.a_vendor(20_00)
    paid = await payer.pay(vendor, 5_00)
    bank.fraud.says(REVIEW)
    held = await payer.pay(vendor, 5_00)
    bank.fraud.says(ALLOW)
    decision, refund, payment = a_decision(held), a_refund(paid, 2_00), a_payment(vendor, 1_00)
    top_up, payout, offline = a_top_up(payer, 3_00), a_payout(vendor, 4_00), to_offline(payer, 1_00)
    sends = {
        "CreatePayment": lambda: payer.payments.CreatePayment(payment),
        "RefundPayment": lambda: vendor.payments.RefundPayment(refund),
        "ResolveHold": lambda: bank.first.reviews.settlements.ResolveHold(decision),
        "TopUp": lambda: bank.admin.wallets.TopUp(top_up),
        "Payout": lambda: vendor.wallets.Payout(payout),
        "MoveBalance": lambda: payer.wallets.MoveBalance(offline),
    }

    async def balances():
        return await payer.balances(), await vendor.balances()

    after = {
        "CreatePayment": ((9_00, 0, 0, 5_00), (26_00, 0, 0, 0)),
        "RefundPayment": ((12_00, 0, 0, 5_00), (23_00, 0, 0, 0)),
        "ResolveHold": ((10_00, 0, 0, 0), (30_00, 0, 0, 0)),
        "TopUp": ((13_00, 0, 0, 5_00), (25_00, 0, 0, 0)),
        "Payout": ((10_00, 0, 0, 5_00), (21_00, 0, 0, 0)),
        "MoveBalance": ((9_00, 1_00, 0, 5_00), (25_00, 0, 0, 0)),
    }
    return sends, after, balances


ALL_MOVES = ["CreatePayment", "RefundPayment", "ResolveHold", "TopUp", "Payout", "MoveBalance"]


@pytest.mark.parametrize(
    ("rpc", "when"), [*((rpc, "cut_after") for rpc in ALL_MOVES), ("CreatePayment", "cut_before")]
)
@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_a_connection_that_breaks_at_the_commit_does_not_change_the_answer(
    on_a_line, rpc, when
):
    bank, line = on_a_line
    sends, after, balances = await every_move(bank)

    setattr(line, when, 1)
    answer = await sends[rpc]()

    assert getattr(line, when) == 0
    assert await balances() == after[rpc]
    async with bank.nothing_changes():
        assert await sends[rpc]() == answer


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_an_outcome_that_stays_unknown_is_said_to_be_and_found_by_repeating(on_a_line):
    bank, line = on_a_line
    sends, after, balances = await every_move(bank)

    line.cut_after = 1
    line.cut_before = 0
    with patch.object(sql, "_LOST_MAX", 0):
        refusal = await refused(sends["CreatePayment"]())

    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert (refusal.domain, refusal.reason) == ("access.tallystick", "DEPENDENCY_UNAVAILABLE")
    assert refusal.metadata == {"dependency": "database"}
    assert refusal.retry_after == timedelta(seconds=1)
    async with bank.nothing_changes():  # it had been carried out
        answer = await sends["CreatePayment"]()
    assert answer.payment.state == SUCCESS
    assert await balances() == after["CreatePayment"]


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_a_group_whose_commit_was_lost_answers_each_member_once(on_a_line):
    bank, line = on_a_line
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    requests = [a_payment(vendor, 1_00) for _ in range(20)]

    line.cut_after = 1
    answers = await asyncio.gather(
        *(payer.payments.CreatePayment(request) for request in requests for _ in range(2))
    )

    assert line.cut_after == 0
    names = {}
    for answer in answers:
        assert answer.payment.state == SUCCESS
        names.setdefault(answer.payment.request_id, set()).add(answer.payment.name)
    assert [len(found) for found in names.values()] == [1] * 20
    assert await vendor.online() == 20_00
    events = [event.event_id for event in await bank.events()]
    assert len(set(events)) == len(events)


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_a_late_assessment_whose_commit_was_lost_is_told_once(on_a_line):
    bank, line = on_a_line
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    bank.fraud.failure = ZeroDivisionError()
    await payer.pay(vendor, 1_00)

    line.cut_after = 1
    bank.fraud.failure = None
    await eventually(lambda: line.cut_after == 0)
    await payer.pay(vendor, 1_00)

    async def told():
        facts = [event.WhichOneof("fact") for event in await bank.events()]
        return facts.count("payment_assessed")

    assert await eventually(told) == 1


@asynccontextmanager
async def own_mariadb(directory):
    async with running(Mariadb(directory)) as server:
        url = server.url("tallystick_payment")
        await asyncio.to_thread(asyncio.run, sql.migrate(url, "payment"))
        yield server, url


async def test_while_the_database_is_away_callers_are_told_to_come_back_and_then_it_goes_on(
    tls_for, valkey_url, tmp_path
):
    async with (
        own_mariadb(tmp_path) as (server, url),
        payment_stack(tls_for, valkey_url, url) as bank,
    ):
        payer, vendor = await bank.a_payer(), await bank.a_vendor()
        await payer.pay(vendor, 1_00)
        with patch.object(FollowUp, "settle_soon"):
            pending = await payer.pay(vendor, 1_00, wait=False)
        request = a_payment(vendor, 1_00)

        await server.stop()
        calls = (
            payer.payments.CreatePayment(request),
            payer.pay(vendor, 1_00, wait=False),
            payer.wallet(),
            payer.get(pending),
            bank.admin.wallets.TopUp(a_top_up(payer)),
            payer.payments.ListPayments(
                pb.ListPaymentsRequest(parent=payer.name, currency_code="INR")
            ),
        )
        async with asyncio.timeout(8):
            for call in calls:
                refusal = await refused(call)
                assert refusal.code is grpc.StatusCode.UNAVAILABLE
                assert refusal.domain == "access.tallystick"
                assert refusal.reason == "DEPENDENCY_UNAVAILABLE"
                assert refusal.metadata == {"dependency": "database"}
                assert refusal.retry_after == timedelta(seconds=1)

        await server.start()
        answer = await insist(lambda: payer.payments.CreatePayment(request))

        assert answer.payment.state == SUCCESS
        assert (await payer.get(pending)).state == PENDING
        bank.clock.advance(timedelta(seconds=6))
        await eventually(lambda: has_settled(payer, pending))
        assert await vendor.online() == 3_00

        await hung_and_back(bank, server)
        await killed_under_load(bank, server)


async def has_settled(person, payment):
    return (await person.get(payment)).state == SUCCESS


async def insist(send):
    """What a careful client does: the same request again while the answer is UNAVAILABLE."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await send()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)


async def hung_and_back(bank, server):
    """A server that holds its connections and answers nothing is given up in time, and its answer not guessed."""
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    request = a_payment(vendor, 1_00)

    server.hang()
    with patch.object(sql, "_TRANSACTION_SECONDS", 0.3):
        async with asyncio.timeout(5):
            refusal = await refused(payer.payments.CreatePayment(request))
    server.go_on()

    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.metadata == {"dependency": "database"}
    answer = await insist(lambda: payer.payments.CreatePayment(request))
    assert answer.payment.state == SUCCESS
    assert await vendor.online() == 1_00


async def killed_under_load(bank, server):
    """Whatever was under way when the server died is paid once when its client insists."""
    payers, vendor = [await bank.a_payer() for _ in range(4)], await bank.a_vendor()
    paid = 0

    async def keep_paying(payer):
        nonlocal paid
        for _ in range(40):
            request = a_payment(vendor, 1)
            answer = await insist(lambda request=request: payer.payments.CreatePayment(request))
            assert answer.payment.state == SUCCESS
            paid += 1

    paying = [asyncio.create_task(keep_paying(payer)) for payer in payers for _ in range(3)]
    await eventually(lambda: paid > 60)
    await server.stop()
    await server.start()
    await asyncio.gather(*paying)

    assert paid == 480
    assert await vendor.online() == 480


async def test_without_redis_payments_go_on_and_their_events_follow_when_it_is_back(
    tls_for, sqlite_url, tmp_path
):
    async with (
        running(Valkey(tmp_path)) as server,
        payment_stack(tls_for, server.url, sqlite_url("payment")) as bank,
    ):
        payer, vendor = await bank.a_payer(), await bank.a_vendor()
        stream = payer.payments.WatchPayments(pb.WatchPaymentsRequest())
        start = (await stream.read()).cursor
        await payer.pay(vendor)
        await eventually(bank.relayed)

        await server.stop()
        async with asyncio.timeout(5):
            payments = [await payer.pay(vendor, 2) for _ in range(5)]
        assert {payment.state for payment in payments} == {SUCCESS}
        assert not await bank.relayed()
        async with asyncio.timeout(8):
            call = payer.payments.WatchPayments(pb.WatchPaymentsRequest())
            refusal = await refused(call.read())
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.metadata == {"dependency": "redis"}
        assert refusal.retry_after == timedelta(seconds=1)

        await server.start()
        await eventually(bank.relayed)
        again = payer.payments.WatchPayments(pb.WatchPaymentsRequest(cursor=start))
        await again.read()
        heard = {}
        while len(heard) < 18:
            message = await again.read()
            heard.setdefault(message.event_id, message.payment)
        recorded = [
            event.event_id
            for event in await bank.events()
            if (event.WhichOneof("fact") or "").startswith("payment_")
        ]
        assert list(heard) == recorded
        again.cancel()
        stream.cancel()


async def test_a_stream_that_loses_redis_ends_and_can_be_resumed(tls_for, sqlite_url, tmp_path):
    async with (
        running(Valkey(tmp_path)) as server,
        payment_stack(tls_for, server.url, sqlite_url("payment")) as bank,
    ):
        payer, vendor = await bank.a_payer(), await bank.a_vendor()
        stream = payer.payments.WatchPayments(pb.WatchPaymentsRequest())
        cursor = (await stream.read()).cursor
        await payer.pay(vendor)
        for _ in range(3):
            cursor = (await stream.read()).cursor

        await server.stop()
        missed = await payer.pay(vendor, 7)
        async with asyncio.timeout(8):
            refusal = await refused(stream.read())
        assert refusal.retry_after is not None

        await server.start()
        await eventually(bank.relayed)
        again = payer.payments.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))
        await again.read()
        assert [(await again.read()).payment.name for _ in range(3)] == [missed.name] * 3
        again.cancel()
