"""Transactions end with who began them: cancelled at any moment, or given back open, they leave nothing behind."""

from __future__ import annotations

import asyncio
import random

import pytest
import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from services import sql
from services.user.store import event_log

ROUNDS = 60


async def test_a_cancelled_transaction_ends_its_task_and_leaves_no_lock(database_url):
    url = database_url("user")
    chance = random.Random(1)

    async def write(connection):
        await connection.execute(sa.select(event_log).with_for_update())
        await connection.execute(sa.insert(event_log), {"events": b"", "relayed": 1})

    async def keep_writing(engine):
        while True:
            await sql.transact(engine, write)

    async def keep_reading(engine):
        while True:
            async with sql.reading(engine, snapshot=True) as connection:
                (await connection.execute(sa.select(event_log))).all()

    for _ in range(ROUNDS):
        # A fresh engine each time: connecting can be cancelled too.
        engine = sql.create_engine(url)
        tasks = [
            asyncio.create_task(keep_writing(engine)),
            asyncio.create_task(keep_reading(engine)),
        ]
        await asyncio.sleep(chance.random() * 0.03)
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(2):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        async with asyncio.timeout(2):
            await sql.transact(engine, write)
        await engine.dispose()


async def test_a_connection_given_back_inside_a_transaction_is_rolled_back(database_url):
    engine = sql.create_engine(database_url("user"), pool_size=1)

    def leave_open():
        raw = engine.sync_engine.raw_connection()
        cursor = raw.cursor()
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO event_log (events, relayed) VALUES ('left', 1)")
        cursor.close()
        raw.close()

    await greenlet_spawn(leave_open)

    async with sql.reading(engine) as connection:
        assert (await connection.execute(sa.select(event_log))).all() == []
    await engine.dispose()


@pytest.mark.parametrize("dialect", ["mariadb"])
async def test_a_connection_given_back_outside_a_transaction_costs_no_round_trip(database_url):
    engine = sql.create_engine(database_url("user"), pool_size=1)

    async def said(connection):
        counted = "SHOW SESSION STATUS WHERE Variable_name IN ('Questions', 'Com_rollback')"
        found = dict((await connection.exec_driver_sql(counted)).all())
        return int(found["Questions"]), int(found["Com_rollback"])

    async with engine.begin() as connection:
        asked, rolled_back = await said(connection)
    async with engine.begin() as connection:
        # The first transaction's COMMIT, and this question.
        assert await said(connection) == (asked + 2, rolled_back)
    await engine.dispose()
