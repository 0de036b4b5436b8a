"""The database alone: what is replayed is what the payment service sent, and comes to the same."""

from __future__ import annotations

import asyncio
import time

import pytest
import sqlalchemy as sa

from bench import statements
from bench.noted import Notes
from bench.statements import Transaction
from tests.eventually import eventually
from tests.fakes.fraud import REVIEW


@pytest.fixture
async def noted(bank):
    """A payment service whose statements are noted."""
    notes = Notes()
    notes.listen(bank.first.server._engine.sync_engine)
    return notes


async def test_a_replayed_stretch_leaves_the_database_as_the_service_left_it(
    bank, noted, database_url, tmp_path
):
    payers, vendor = [await bank.a_payer() for _ in range(8)], await bank.a_vendor()
    await eventually(bank.relayed)
    rows = await statements.copy(bank.settings.database_url)
    since = time.time()

    await asyncio.gather(*(payer.pay(vendor, 1 + n) for n, payer in enumerate(payers)))
    bank.fraud.says(REVIEW)
    await asyncio.gather(*(payer.pay(vendor) for payer in payers))
    await eventually(bank.relayed)
    after = await statements.copy(bank.settings.database_url)
    file = tmp_path / "notes.pickle"
    statements.write(file, noted.committed)
    fresh = database_url("payment")
    found = await statements.replay(file, rows, [fresh], since=since, directory=tmp_path, parts=1)

    replayed = await statements.copy(fresh)
    assert len(rows["payments"]) == 0
    assert len(after["payments"]) == 16
    for table in ("payments", "transfers", "requests", "wallets", "payment_tasks"):
        assert sorted(map(repr, replayed[table])) == sorted(map(repr, after[table])), table
    assert len(replayed["event_log"]) == len(after["event_log"])
    assert found.payments == 16
    assert found.per_second > 0
    assert found.rounds == [found.per_second]


async def test_what_was_rolled_back_is_not_noted(bank, noted):
    engine = bank.first.server._engine

    async with engine.connect() as connection:
        await connection.execute(sa.select(sa.literal("rolled back")))
        await connection.rollback()
    async with engine.begin() as connection:
        await connection.execute(sa.select(sa.literal("committed")))

    given = [given for found in noted.committed for _, given, _ in found.statements]
    assert any("committed" in str(parameters) for parameters in given)
    assert not any("rolled back" in str(parameters) for parameters in given)


def test_a_transaction_counts_the_payments_it_put_on_record():
    insert = "INSERT INTO payments (payment_id, amount) VALUES (%s, %s)"
    other = "INSERT INTO payment_tasks (task) VALUES (%s)"
    text = "INSERT INTO payments (payment_id, amount) VALUES (x'0a',2),(x'0b',4),(x'0c',5)"

    assert Transaction(0.0, [(text, (), False), (other, (1,), False)]).payments == 3
    assert Transaction(0.0, [(insert, [(1, 2), (3, 4)], True), (other, [(1,)], True)]).payments == 2
    assert Transaction(0.0, [(insert, (1, 2), False)]).payments == 1
    assert Transaction(0.0, [(other, (1,), False)]).payments == 0
