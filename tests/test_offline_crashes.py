"""Sagas of the offline service, broken off at every step, and payment that goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa

from services.offline import deciding, issuing
from services.offline.store import tables
from tallystick.offline.v1 import code_service_pb2 as pb
from tests.eventually import eventually
from tests.offline_stack import RECEIVED, SETTLED, Code, Payer, Reason, to_issue
from tests.payment_stack import refused, to_offline


class Crash(Exception):
    """The process is gone."""


def crashing(monkeypatch, where, method):
    """From now on a process dies where it would call a method."""

    async def dies(*_, **__):
        raise Crash

    monkeypatch.setattr(where, method, dies)


async def test_payment_away_leaves_codes_reserving_and_the_same_request_goes_on(market):
    payer = await market.a_payer()
    request = to_issue(100_00, 50_00)
    market.line.cut = True

    refusal = await refused(payer.codes.IssueCodes(request))

    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.reason == "DEPENDENCY_UNAVAILABLE"
    assert refusal.retry_after
    assert [code.state for code in await payer.list()] == [Code.STATE_RESERVING] * 2
    market.line.cut = False
    answer = await payer.codes.IssueCodes(request)
    assert len(answer.codes) == 2
    assert [code.state for code in await payer.list()] == [Code.STATE_ISSUED] * 2
    assert (await payer.balances())[2] == 150_00


async def test_a_lost_answer_reserves_once(market):
    payer = await market.a_payer()
    request = to_issue(100_00)
    market.line.lost["ReserveFunds"] = 1

    await refused(payer.codes.IssueCodes(request))
    answer = await payer.codes.IssueCodes(request)

    assert len(answer.codes) == 1
    assert (await payer.balances())[2] == 100_00
    asked = market.line.asked["ReserveFunds"]
    assert all(each == asked[0] for each in asked)


async def test_the_sweeper_finishes_what_a_crash_left(market):
    payer = await market.a_payer()
    request = to_issue(100_00)
    market.line.lost["ReserveFunds"] = 1
    await refused(payer.codes.IssueCodes(request))

    async def issued():
        return [code.state for code in await payer.list()] == [Code.STATE_ISSUED]

    await eventually(issued)

    # Who asks again within the quarter of an hour still gets the symbols.
    assert (await payer.codes.IssueCodes(request)).codes[0].symbols


async def test_the_sweeper_abandons_codes_nobody_was_ever_shown(market):
    payer = await market.a_payer()
    market.line.cut = True
    request = to_issue(100_00)
    await refused(payer.codes.IssueCodes(request))

    market.clock.advance(timedelta(minutes=15))
    await eventually(lambda: gone(payer))
    market.line.cut = False

    # The same id begins anew.
    assert len((await payer.codes.IssueCodes(request)).codes) == 1
    market.clock.advance(timedelta(minutes=3))
    await market.release()
    assert (await payer.balances())[2] == 100_00
    assert len(await market.rows(tables.codes)) == 1


async def gone(payer):
    return await payer.list() == []


async def test_money_that_was_reserved_for_abandoned_codes_goes_back(market):
    payer = await market.a_payer(100_00)
    market.line.lost.update({"ReserveFunds": 10**9, "ReleaseReservations": 10**9})
    await refused(payer.codes.IssueCodes(to_issue(100_00)))
    assert (await payer.balances())[2] == 100_00

    market.clock.advance(timedelta(minutes=15))
    await eventually(lambda: gone(payer))
    market.line.lost.clear()
    # Not before a late copy of the call could have come through.
    await market.release()
    assert (await payer.balances())[2] == 100_00
    market.clock.advance(timedelta(minutes=3))
    await market.release()

    assert await payer.balances() == (0, 100_00, 0, 0)
    assert await market.rows(tables.codes) == []


async def test_a_copy_that_comes_after_the_refusal_leaves_no_money_behind(market):
    payer = await market.a_payer(0)
    await market.bank.give(payer.ledger, 100_00)
    request = to_issue(100_00)
    market.line.open.clear()
    async with market.replica() as other:
        elsewhere = Payer(other, payer.ledger)
        late = asyncio.ensure_future(elsewhere.codes.IssueCodes(request))
        await eventually(lambda: market.line.asked["ReserveFunds"])
        # The first copy hangs on the line. The second is refused, and the codes abandoned.
        real = market.line.open
        market.line.open = asyncio.Event()
        market.line.open.set()
        assert (await refused(payer.codes.IssueCodes(request))).reason == "INSUFFICIENT_FUNDS"
        # Now there is money, and the first copy comes through.
        await payer.ledger.wallets.MoveBalance(to_offline(payer.ledger, 100_00))
        real.set()
        assert (await refused(late)).reason == "DEPENDENCY_UNAVAILABLE"

    assert (await payer.balances())[2] == 100_00
    market.clock.advance(timedelta(minutes=3))
    await market.release()
    assert await payer.balances() == (0, 100_00, 0, 0)


async def test_codes_suspended_while_their_money_is_reserved_are_revoked(market):
    payer = await market.a_payer()
    market.line.open.clear()
    asking = asyncio.ensure_future(payer.codes.IssueCodes(to_issue(100_00)))
    await eventually(lambda: market.line.asked["ReserveFunds"])
    await market.admin.codes.SetOfflineRight(
        pb.SetOfflineRightRequest(owner=payer.name, level=3, reason="asked")
    )
    market.line.open.set()
    await asking

    assert [code.state for code in await payer.list()] == [Code.STATE_REVOKED]


async def test_items_wait_while_payment_is_away_and_nothing_is_lost(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 5)
    market.line.cut = True
    batch = (await terminal.submit(*(terminal.sale(each) for each in codes))).batch
    await market.until(sa.select(tables.entries).where(tables.entries.c.attempts > 0))
    assert {item.state for item in (await terminal.get(batch)).items} == {RECEIVED}

    market.line.cut = False
    market.clock.advance(timedelta(minutes=10))

    assert {item.state for item in await terminal.results(batch)} == {SETTLED}
    assert await terminal.vendor.online() == 50_00


async def test_asking_less_and_less_often(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.cut = True
    await terminal.submit(terminal.sale(issued))
    waits = []
    for attempts in range(1, 6):
        (row,) = await market.until(
            sa.select(tables.entries).where(tables.entries.c.attempts == attempts)
        )
        waits.append(row.due_time - market.clock())
        market.clock.advance(waits[-1])
    market.line.cut = False

    for number, wait in enumerate(waits):
        assert timedelta(seconds=2**number - 1) < wait <= timedelta(seconds=2**number)


async def test_a_lost_answer_settles_once(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.lost["SettleOffline"] = 1

    batch = (await terminal.submit(terminal.sale(issued, 4_00))).batch
    await market.until(sa.select(tables.entries).where(tables.entries.c.attempts > 0))
    market.clock.advance(timedelta(minutes=1))

    (item,) = await terminal.results(batch)
    assert item.reason == Reason.REASON_PARTIALLY_SETTLED
    assert await terminal.vendor.online() == 4_00
    first, second = market.line.asked["SettleOffline"]
    assert first == second


@pytest.mark.parametrize("answered", [False, True])
async def test_another_replica_goes_on_when_the_lease_has_run_out(market, monkeypatch, answered):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    async with market.replica() as doomed, market.replica() as other:
        terminal = await market.a_terminal()
        await stop_settling(market.first)
        await stop_settling(other)
        method = "conclude" if answered else "_ask"
        where = doomed.server.settling
        crashing(monkeypatch, where._results if answered else where, method)
        batch = (await terminal.submit(terminal.sale(issued))).batch
        # Who received it does nothing with it.
        market.clock.advance(deciding.LEASE)
        await eventually(lambda: died(doomed))

        # Nobody takes it while the lease lasts.
        await other.server.settling.settle_left()
        assert (await terminal.get(batch)).items[0].state == RECEIVED
        market.clock.advance(deciding.LEASE)
        await other.server.settling.settle_left()

        assert (await terminal.get(batch)).items[0].state == SETTLED
        assert await terminal.vendor.online() == 10_00
        forget(doomed)
        forget(other)
    forget(market.first)


async def test_a_replica_whose_lease_ran_out_before_it_could_record_changes_nothing(
    market, monkeypatch
):
    payer = await market.a_payer()
    issued = await payer.issue(10_00, 10_00)
    async with market.replica():
        terminal = await market.a_terminal()
        results = market.first.server.settling._results
        conclude, submitted, late = results.conclude, asyncio.Event(), asyncio.Event()

        async def conclude_late(told):
            await submitted.wait()
            market.clock.advance(deciding.LEASE)
            await eventually(lambda: is_settled(terminal, batch))
            await conclude(told)
            late.set()

        monkeypatch.setattr(results, "conclude", conclude_late)
        batch = (await terminal.submit(*map(terminal.sale, issued))).batch
        submitted.set()
        await late.wait()

        assert len(await market.events("item_decided")) == 2
        assert await terminal.vendor.online() == 20_00


async def is_settled(terminal, batch):
    return {item.state for item in (await terminal.get(batch)).items} == {SETTLED}


async def test_what_waited_in_memory_beyond_its_lease_is_left_to_others(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    async with market.replica() as other:
        terminal = await market.a_terminal()
        await stop_settling(market.first)
        batch = (await terminal.submit(terminal.sale(issued))).batch
        assert (await terminal.get(batch)).items[0].state == RECEIVED

        market.clock.advance(deciding.LEASE)
        await terminal.results(batch)
        await market.first.server.settling.settle_handed()

        assert len(market.line.asked["SettleOffline"]) == 1
        assert await terminal.vendor.online() == 10_00
        forget(other)
    forget(market.first)


async def stop_settling(replica):
    """The replica serves, and settles nothing by itself."""
    (task,) = [each for each in replica.server.background if "Settling.run" in repr(each)]
    task.cancel()
    await asyncio.wait([task])


async def died(replica):
    return any(task.done() for task in replica.server.background)


def forget(replica):
    """Its settling has ended because the test has ended it."""
    replica.server.background[:] = [
        task for task in replica.server.background if not task.done() or task_failed(task)
    ]


def task_failed(task):
    if task.cancelled():
        return False
    error = task.exception()
    return not (isinstance(error, ExceptionGroup) and error.subgroup(Crash))


async def test_an_upload_that_broke_off_as_its_codes_were_spent_changed_nothing(
    market, monkeypatch
):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    real = deciding.code_store.insert_spends
    failures = iter([True])

    async def fails_once(connection, spent):
        await real(connection, spent)
        if next(failures, False):
            raise ConnectionError

    monkeypatch.setattr(deciding.code_store, "insert_spends", fails_once)

    item = await terminal.sell(issued)

    assert item.state == SETTLED


async def test_an_item_that_breaks_its_group_is_put_off_and_the_others_are_settled(
    market, monkeypatch
):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 3)
    entries = [terminal.sale(each) for each in codes]
    real = deciding.Deciding._verdict

    def stumbles(self, entry, *rest):
        if entry.sequence == 2 and entry.attempts < 1:
            raise ZeroDivisionError
        return real(self, entry, *rest)

    monkeypatch.setattr(deciding.Deciding, "_verdict", stumbles)

    batch = (await terminal.submit(*entries)).batch
    await market.until(sa.select(tables.entries).where(tables.entries.c.attempts > 0))
    await eventually(lambda: settled(terminal, batch, 2))
    market.clock.advance(timedelta(minutes=1))

    assert {item.state for item in await terminal.results(batch)} == {SETTLED}


async def settled(terminal, batch, count):
    return (await terminal.get(batch)).batch.settled_count == count


async def test_a_release_that_broke_off_goes_on(market):
    payer = await market.a_payer(100_00)
    await payer.issue(100_00)
    market.clock.advance(timedelta(days=9))
    market.line.cut = True
    with pytest.raises(grpc.aio.AioRpcError):
        await market.release()
    assert (await payer.balances())[2] == 100_00
    assert (await payer.list())[0].state == Code.STATE_EXPIRED

    market.line.lost["ReleaseReservations"] = 1
    market.line.cut = False

    # The first to ask has its answer lost; whoever asks next is told the same.
    async def back():
        with contextlib.suppress(grpc.aio.AioRpcError):
            await market.release()
        return await payer.balances() == (0, 100_00, 0, 0)

    await eventually(back)
    assert market.line.lost["ReleaseReservations"] == 0


async def test_a_refused_request_was_never_on_record(market):
    payer = await market.a_payer(0)
    await refused(payer.codes.IssueCodes(to_issue(10_00)))

    assert await market.rows(tables.issues) == []
    assert [row.state for row in await market.rows(tables.codes)] == [Code.STATE_UNSPECIFIED]
    market.clock.advance(issuing._IN_FLIGHT + timedelta(minutes=2))
    await market.release()
    assert await market.rows(tables.codes) == []
