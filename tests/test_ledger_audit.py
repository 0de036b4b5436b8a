"""The audit names what is wrong with offline money: each law broken by hand, on a copy of books that balance."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
import sqlalchemy as sa

from services import sql
from services.payment import audit
from tests.fakes.fraud import ALLOW, REVIEW
from tests.offline_items import Codes, an_item
from tests.payment_stack import a_decision

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"])

# What is done to the books, the laws it breaks, and what one of them says. Purposes: 3 PAYMENT, 6 HOLD_RELEASE,
# 10 RELEASE; buckets: 1 online, 3 reserved; reservations: 1 LIVE, 2 SETTLED (the one of 10.00 by a payment of 9.00),
# 3 RELEASED.
BROKEN = [
    # A code that settled more than once, or never: each way in which rows could say so.
    (
        "UPDATE reservations SET state = 1, payment_id = NULL WHERE amount = 1000",
        {5, 6},
        "is not its",
    ),
    ("UPDATE reservations SET state = 1 WHERE amount = 1000", {5, 6}, "LIVE: settled by"),
    (
        "UPDATE reservations SET payment_id = NULL WHERE amount = 1000",
        {5},
        "SETTLED: settled by None",
    ),
    ("UPDATE reservations SET state = 2 WHERE state = 3", {5}, "SETTLED: settled by None"),
    (
        """UPDATE payments SET reservation_id = (SELECT reservation_id FROM reservations WHERE state = 1)
        WHERE amount = 900""",
        {5},
        "is not paid from it",
    ),
    (
        "UPDATE payments SET channel = 1 WHERE amount = 900",
        {4, 8},
        "its request made no payment",
    ),
    # A second payment of one item would have a name of its own.
    (
        "UPDATE payments SET request_id = reservation_id WHERE amount = 900",
        {4},
        "offline, of request",
    ),
    ("UPDATE reservations SET amount = 899 WHERE amount = 1000", {5}, "does not cover payments/"),
    ("DELETE FROM reservations WHERE amount = 1000", {5}, "is not its"),
    # Money behind codes that is not there, or too much of it.
    (
        "UPDATE reservations SET amount = amount + 1 WHERE state = 1",
        {6},
        "/reserved: balance 700, live reservations say 701",
    ),
    ("UPDATE reservations SET state = 3 WHERE state = 1", {6}, "live reservations say 0"),
    ("UPDATE reservations SET state = 1 WHERE state = 3", {6}, "live reservations say 1200"),
    # Moves that an offline payment may not make.
    (
        "UPDATE transfers SET debit_bucket = 1 WHERE purpose = 3",
        {3, 8},
        "PAYMENT 900 ONLINE->ONLINE",
    ),
    (
        "UPDATE transfers SET credit_bucket = 1 WHERE purpose = 6",
        {3, 8},
        "HOLD_RELEASE 600 HELD->ONLINE",
    ),
    ("DELETE FROM transfers WHERE purpose = 10 AND payment_id IS NULL", {3}, "transfers say"),
    (
        """UPDATE transfers SET payment_id = (SELECT payment_id FROM payments WHERE amount = 900)
        WHERE purpose = 10""",
        {8},
        "RELEASE 500 RESERVED->OFFLINE",
    ),
    ("UPDATE payments SET state = 5 WHERE amount = 900", {7, 8}, "events say SUCCESS"),
    # A terminal's payment that found no money.
    ("UPDATE payments SET failure_reason = 1 WHERE state = 4", {9}, "FAILED, INSUFFICIENT_FUNDS"),
]


@pytest.fixture
async def books(bank, tmp_path):
    """Writes a copy of books in which offline money has moved in every way; answers its URL."""
    payer, vendor = await bank.a_payer(1_000_00), await bank.a_vendor()
    codes = Codes(bank.first)
    paid, held, refused, live, back = await codes.reserve(payer, 10_00, 6_00, 6_00, 7_00, 5_00)
    await codes.pay(payer, paid, vendor, 9_00)
    bank.fraud.says(REVIEW)
    approved = await codes.pay(payer, held, vendor, 6_00)
    rejected = await codes.pay(payer, refused, vendor, 6_00)
    bank.fraud.says(ALLOW)
    await bank.first.reviews.settlements.ResolveHold(a_decision(approved))
    await bank.first.reviews.settlements.ResolveHold(a_decision(rejected, approve=False))
    await codes.release(back)
    assert (
        len(await codes.settle(an_item(payer, live, payer))) == 1
    )  # refused: one cannot pay oneself
    copies = iter(range(100))

    def copy():
        path = tmp_path / f"copy-{next(copies)}.db"
        with contextlib.closing(sqlite3.connect(bank.engine.url.database)) as connection:
            connection.execute("VACUUM INTO ?", [str(path)])
        return f"sqlite+aiosqlite:///{path}"

    return copy


async def broken_laws(url, statement):
    """What is broken once a statement was carried out, by law; it must have changed something."""
    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            changed = await connection.execute(sa.text(statement))
            assert changed.rowcount > 0, statement
        findings = await audit.check(engine)
    finally:
        await engine.dispose()
    return {law: found.first_broken for law, found in findings.items() if not found.holds}


async def test_each_way_to_break_a_law_is_found_and_the_row_named(books, subtests):
    assert await broken_laws(books(), "UPDATE wallets SET owner_version = 1") == {}

    for statement, laws, says in BROKEN:
        with subtests.test(statement):
            broken = await broken_laws(books(), statement)

            assert set(broken) == laws, broken
            assert any(says in found for found in broken.values()), broken


@pytest.mark.parametrize("law", [5, 9])
async def test_what_stands_on_a_later_page_is_found_too(books, law, monkeypatch):
    monkeypatch.setattr(audit, "_ROWS_AT_ONCE", 1)
    statement = {
        5: "UPDATE payments SET reservation_id = payment_id WHERE amount = 600 AND state = 4",
        9: "UPDATE payments SET failure_reason = 1 WHERE state = 4",
    }[law]

    assert law in await broken_laws(books(), statement)
