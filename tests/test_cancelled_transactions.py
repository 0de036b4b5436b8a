"""A call may be cancelled at any moment, inside a transaction too: a client gives up, a process stops."""

from __future__ import annotations

import asyncio
import random

import sqlalchemy as sa

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
