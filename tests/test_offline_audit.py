"""The audit of codes against reservations finds what somebody has broken by hand, and names it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from services import names
from services.offline import audit
from services.offline.store import tables
from services.payment import store as ledger
from tests.eventually import eventually
from tests.offline_stack import SETTLED


async def change(engine, *statements):
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(statement)


async def test_books_in_every_state_agree(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    spent, part, revoked, _ = await payer.issue(*[10_00] * 4)
    await terminal.settle(terminal.sale(spent), terminal.sale(part, 1_00))
    await payer.revoke(revoked)
    assert await market.audited() == []

    market.clock.advance(timedelta(days=9))
    await market.release()

    assert await market.audited() == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"minor_units": 9_99}, "worth 999, 1000 are reserved"),
        ({"state": 4, "release_step": 2}, "EXPIRED, release DONE, its money is LIVE"),
        ({"state": 3}, "SPENT, and no item spent it"),
    ],
)
async def test_a_code_that_its_reservation_does_not_back(market, values, found):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    await change(market.engine, sa.update(tables.codes).values(values))

    assert await market.audited() == [f"{issued.code.name}: {found}"]
    market.books_agree = False


async def test_a_reservation_without_a_code(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    await change(market.engine, sa.delete(tables.codes))

    (found,) = await market.audited()

    code_id = names.last_id(issued.code.name)
    assert found == f"{names.reservation_name(code_id)}: LIVE, and there is no code"
    market.books_agree = False


async def test_a_code_without_a_reservation(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    codes = tables.codes
    (row,) = await market.rows(codes)
    copy = row._asdict() | {
        "code_id": names.last_id(f"codes/{payer.user_id}"),
        "code_hash": bytes(32),
        "voucher_hash": bytes(32),
    }
    await change(market.engine, sa.insert(codes).values(copy))

    (found,) = await market.audited()

    assert found == f"codes/{payer.user_id}: ISSUED, and nothing was ever reserved for it"
    assert issued.code.name not in found
    market.books_agree = False


async def test_a_spent_code_whose_money_another_payment_took(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    item = await terminal.sell(issued)
    assert item.state == SETTLED
    other = names.last_id(payer.name)
    await change(market.engine, sa.update(tables.spends).values(entry_id=other))

    (found,) = await market.audited()

    assert found == f"{issued.code.name}: spent by payments/{other}, its money by {item.payment}"
    market.books_agree = False


async def test_a_sale_refused_as_late_that_was_in_time(market, monkeypatch):
    # Read in pages: it stands on the second.
    monkeypatch.setattr(audit, "_ROWS_AT_ONCE", 1)
    payer, terminal = await market.a_payer(), await market.a_terminal()
    issued, other = await payer.issue(10_00, 20_00)
    assert (await terminal.sell(other)).state == SETTLED
    sale = terminal.sale(issued)
    market.clock.advance(timedelta(days=9))
    await market.release()
    (item,) = await terminal.settle(sale)
    assert await market.audited() == []
    later = market.clock() + timedelta(days=1)
    await change(market.engine, sa.update(tables.codes).values(release_time=later))

    assert await market.audited() == [f"{item.name}: arrived in time and was refused as late"]
    market.books_agree = False


async def test_what_is_on_its_way_is_not_broken(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    market.line.cut = True
    await terminal.submit(terminal.sale(codes[0]))
    await market.until(sa.select(tables.spends))
    assert await market.audited() == []

    # Payment has answered, and the answer was lost.
    market.line.cut = False
    market.line.lost["SettleOffline"] = 1
    market.clock.advance(timedelta(minutes=1))
    settled = sa.select(ledger.reservations).where(ledger.reservations.c.payment_id.is_not(None))

    async def paid():
        async with market.bank.engine.connect() as connection:
            return (await connection.execute(settled)).all()

    await eventually(paid)
    assert await market.audited() == []
