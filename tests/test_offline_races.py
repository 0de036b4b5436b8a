"""Many at once, at several replicas: one code is paid once, whatever arrives in whatever order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
import sqlalchemy as sa

from services import sql
from services.offline.store import tables
from tests.eventually import eventually
from tests.offline_stack import DONE, RECEIVED, REFUSED, SETTLED, SUSPENDED, Code, Reason, to_issue

DUPLICATE = Reason.REASON_DUPLICATE_CODE


async def test_one_code_at_fifty_terminals_and_two_replicas_is_paid_once(market):
    payer = await market.a_payer()
    issued, other = await payer.issue(100_00, 50_00)
    terminals = [await market.a_terminal() for _ in range(50)]
    sales = [terminal.sale(issued) for terminal in terminals]
    async with market.replica() as second:
        answers = await asyncio.gather(
            *(
                terminal.submit(sale, sync=terminal.at((market.first, second)[number % 2]))
                for number, (terminal, sale) in enumerate(zip(terminals, sales, strict=True))
            )
        )
        items = [
            (await terminal.results(answer.batch))[0]
            for terminal, answer in zip(terminals, answers, strict=True)
        ]

    assert Counter((item.state, item.reason) for item in items) == {
        (SETTLED, Reason.REASON_SETTLED): 1,
        (REFUSED, DUPLICATE): 49,
    }
    assert sum([await terminal.vendor.online() for terminal in terminals]) == 100_00
    assert len(await market.rows(tables.spends)) == 1
    assert len(await market.rows(tables.double_spends)) == 49
    assert (await payer.right()).level == SUSPENDED
    assert (await payer.state_of(other)).state == Code.STATE_REVOKED
    assert len(await market.events("offline_right_changed")) == 1


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_one_code_at_fifty_terminals_and_four_processes_is_paid_once(market, tmp_path):
    payer = await market.a_payer()
    (issued,) = await payer.issue(100_00)
    terminals = [await market.a_terminal() for _ in range(50)]
    sales = [terminal.sale(issued) for terminal in terminals]
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(market.process(tmp_path)) for _ in range(3)]
        replicas = [market.first, *others]
        answers = await asyncio.gather(
            *(
                terminal.submit(sale, sync=terminal.at(replicas[number % 4]))
                for number, (terminal, sale) in enumerate(zip(terminals, sales, strict=True))
            )
        )
        reasons = Counter(
            [
                (await terminal.results(answer.batch))[0].reason
                for terminal, answer in zip(terminals, answers, strict=True)
            ]
        )

    assert reasons == {Reason.REASON_SETTLED: 1, DUPLICATE: 49}
    assert sum([await terminal.vendor.online() for terminal in terminals]) == 100_00
    # That all balances still sum to zero, the end of every test checks.
    await market.bank.laws_hold()


async def test_one_batch_uploaded_by_many_at_once_is_on_record_once(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 5)
    entries = [terminal.sale(each) for each in codes]
    async with market.replica() as second:
        answers = await asyncio.gather(
            *(
                terminal.submit(
                    *random.Random(number).sample(entries, 5),
                    sync=terminal.at((market.first, second)[number % 2]),
                )
                for number in range(8)
            )
        )
        results = [await terminal.results(answer.batch) for answer in answers]

    assert len(await market.rows(tables.entries)) == 5
    assert {item.state for items in results for item in items} == {SETTLED}
    assert await terminal.vendor.online() == 50_00


@pytest.mark.parametrize("seed", range(3))
async def test_release_and_settlement_race_for_one_code_and_one_wins(market, seed):
    payer, terminal = await market.a_payer(100_00), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 5)
    sales = [terminal.sale(each) for each in codes]
    release_time = codes[0].code.release_time.ToDatetime(market.clock().tzinfo)
    # Just before the end of the window: the uploads are in time, and the sweeper is near.
    market.clock.advance(release_time - market.clock() - timedelta(milliseconds=300))
    chance = random.Random(seed)

    async def upload(sale):
        await asyncio.sleep(chance.random() * 0.6)
        return (await terminal.submit(sale)).batch

    async def sweep():
        for _ in range(20):
            await asyncio.sleep(0.03)
            market.clock.advance(timedelta(seconds=5))
            await market.release()

    *batches, _ = await asyncio.gather(*map(upload, sales), sweep())
    items = [(await terminal.results(batch))[0] for batch in batches]
    market.clock.advance(timedelta(minutes=5))
    await market.release()

    paid = sum(item.state == SETTLED for item in items)
    late = sum(item.reason == Reason.REASON_LATE_UPLOAD for item in items)
    held = len(items) - paid - late
    assert held == 0
    states = Counter(code.state for code in await payer.list())
    assert states == Counter(
        {state: count for state, count in
         ((Code.STATE_SPENT, paid), (Code.STATE_EXPIRED, late)) if count}
    )  # fmt: skip
    assert await payer.balances() == (0, 50_00 + late * 10_00, 0, 0)
    assert await terminal.vendor.online() == paid * 10_00


async def test_an_item_that_arrived_in_time_keeps_its_code_from_the_sweeper(market):
    payer, terminal = await market.a_payer(100_00), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    sale = terminal.sale(issued)
    release_time = issued.code.release_time.ToDatetime(market.clock().tzinfo)
    market.clock.advance(release_time - market.clock() - timedelta(seconds=30))
    decide = market.first.server.settling._deciding.decide
    mended = asyncio.Event()

    async def broken(connection, entries, now):
        if not mended.is_set():
            raise ZeroDivisionError
        return await decide(connection, entries, now)

    market.first.server.settling._deciding.decide = broken
    batch = (await terminal.submit(sale)).batch
    market.clock.advance(timedelta(hours=5))
    await market.release()
    mended.set()
    market.clock.advance(timedelta(hours=1))

    (item,) = await terminal.results(batch)
    assert item.state == SETTLED


async def test_revoking_and_settling_race_and_the_books_agree(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 5)
    sales = [terminal.sale(each) for each in codes]
    market.clock.advance(timedelta(seconds=1))

    batch, *_ = await asyncio.gather(
        terminal.submit(*sales),
        *(payer.revoke(each) for each in codes),
        return_exceptions=True,
    )
    items = await terminal.results(batch.batch)

    # Sold before they were revoked, they count, whoever came first here.
    assert {item.state for item in items} == {SETTLED}
    assert {code.state for code in await payer.list()} == {Code.STATE_SPENT}


async def test_issuing_spending_and_suspending_at_once(market):
    payers = [await market.a_payer() for _ in range(4)]
    terminals = [await market.a_terminal() for _ in range(4)]
    codes = [await payer.issue(*[10_00] * 5) for payer in payers]
    batches = []

    async def sell(terminal):
        mine = [code for some in codes for code in some]
        random.Random(terminal.name).shuffle(mine)
        sales = [terminal.sale(each) for each in mine]
        batches.append((terminal, (await terminal.submit(*sales)).batch))

    async def more(payer):
        return await payer.codes.IssueCodes(to_issue(*[10_00] * 2))

    async with market.replica():
        await asyncio.gather(*map(sell, terminals), *map(more, payers), return_exceptions=True)
        items = [item for terminal, batch in batches for item in await terminal.results(batch)]

    assert Counter(item.reason for item in items) == {
        Reason.REASON_SETTLED: 20,
        DUPLICATE: 60,
    }
    assert sum([await terminal.vendor.online() for terminal in terminals]) == 200_00
    for payer in payers:
        assert (await payer.right()).level == SUSPENDED
        assert not [code for code in await payer.list() if code.state == Code.STATE_ISSUED]


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_a_backlog_of_ten_thousand_items_drains_unattended(market):
    payers = [await market.a_payer(100_00) for _ in range(100)]
    answers = await asyncio.gather(
        *(payer.issue(*[10_00] * 5) for payer in payers for _ in range(2))
    )
    codes = [code for answer in answers for code in answer]
    first = await market.a_terminal()
    terminals = [first, *[await market.a_terminal(first.vendor) for _ in range(9)]]
    market.line.cut = True
    batches = []
    # Every code at each of the vendor's ten terminals: a thousand are good.
    for terminal in terminals:
        for start in (0, 500):
            sales = [terminal.sale(code) for code in codes[start : start + 500]]
            batches.append((terminal, (await terminal.submit(*sales)).batch))
    market.line.cut = False
    waiting = tables.entries.c.state == RECEIVED
    left = sa.select(sa.func.count()).select_from(tables.entries).where(waiting)

    async with market.replica():

        async def drained():
            # What was put off while payment was away is not waited for in real time.
            market.clock.advance(timedelta(seconds=1))
            async with sql.reading(market.engine) as connection:
                return (await connection.execute(left)).scalar_one() == 0

        await eventually(drained, seconds=60)

    found = [(await terminal.get(batch)).batch for terminal, batch in batches]
    assert all(batch.state == DONE for batch in found)
    assert sum(batch.settled_count for batch in found) == 1_000
    assert sum(batch.refused_count for batch in found) == 9_000
    assert await first.vendor.online() == 10_000_00
    assert len(await market.rows(tables.spends)) == 1_000
    (vendor,) = await market.rows(tables.vendors)
    assert vendor.strikes == 9_000
