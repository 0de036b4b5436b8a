"""The ledger's tables: rows in, domain values out. Decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import bulk, sql
from services import event_log as event_logs
from services.payment.domain.book import Answered, Book, Policy, Task
from services.payment.domain.ledger import Ledger, Transfer, Wallet, WalletKey
from services.payment.domain.payment import Payment, Shown
from services.payment.domain.reservation import Reservation
from services.payment.rows import (
    outcome_of,
    payment_of,
    payment_row,
    request_row,
    reservation_of,
    reservation_row,
    shown_of,
    shown_row,
    transfer_of,
    transfer_row,
    wallet_id,
    wallet_key,
    wallet_of,
    wallet_row,
)

metadata = sa.MetaData()

# A wallet's id is its owner's 16 bytes and the currency's three letters: one column to look up and to lock by, and
# every hot table can be partitioned by the user it leads with.
_WALLET_ID = sql.binary(19)

wallets = sa.Table(
    "wallets",
    metadata,
    sa.Column("wallet_id", _WALLET_ID, primary_key=True),
    sa.Column("online", sa.BigInteger, nullable=False),
    sa.Column("offline", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("is_system", sa.SmallInteger, nullable=False),
    sa.Column("active", sa.SmallInteger, nullable=False),
    sa.Column("is_vendor", sa.SmallInteger, nullable=False),
    sa.Column("owner_version", sa.BigInteger, nullable=False),
    sa.Column("update_time", sql.Instant, nullable=False),
    sa.CheckConstraint(
        "is_system = 1 OR (online >= 0 AND offline >= 0 AND reserved >= 0 AND held >= 0)",
        name="wallets_not_below_zero",
    ),
)

payments = sa.Table(
    "payments",
    metadata,
    sa.Column("payment_id", sql.Id, primary_key=True),
    sa.Column("payer_wallet", _WALLET_ID, nullable=False),
    sa.Column("vendor_wallet", _WALLET_ID, nullable=False),
    sa.Column("site_id", sql.Id),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("refunded", sa.BigInteger, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("failure_reason", sa.SmallInteger, nullable=False),
    sa.Column("risk_decision", sa.SmallInteger, nullable=False),
    sa.Column("risk_score", sa.SmallInteger, nullable=False),
    sa.Column("risk_reasons", sa.String(500), nullable=False),
    sa.Column("latitude", sa.Double),
    sa.Column("longitude", sa.Double),
    sa.Column("accuracy_meters", sa.Double),
    sa.Column("mocked", sa.SmallInteger),
    sa.Column("reference", sa.String(140), nullable=False),
    sa.Column("request_id", sql.Id, nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("update_time", sql.Instant, nullable=False),
    sa.Column("channel", sa.SmallInteger, nullable=False, server_default="1"),
    # Of offline payments alone.
    sa.Column("terminal_id", sql.Id),
    sa.Column("reservation_id", sql.Id),
    sa.Column("spend_time", sql.Instant),
    sa.CheckConstraint("amount > 0", name="payments_amount_above_zero"),
    sa.CheckConstraint("refunded BETWEEN 0 AND amount", name="payments_refunded_in_amount"),
    sa.Index("payments_by_payer", "payer_wallet", "payment_id"),
    sa.Index("payments_by_vendor", "vendor_wallet", "payment_id"),
)

transfers = sa.Table(
    "transfers",
    metadata,
    sa.Column("transfer_id", sql.Id, primary_key=True),
    sa.Column("debit_wallet", _WALLET_ID, nullable=False),
    sa.Column("debit_bucket", sa.SmallInteger, nullable=False),
    sa.Column("credit_wallet", _WALLET_ID, nullable=False),
    sa.Column("credit_bucket", sa.SmallInteger, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("purpose", sa.SmallInteger, nullable=False),
    sa.Column("payment_id", sql.Id),
    sa.Column("reference", sa.String(140), nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.CheckConstraint("amount > 0", name="transfers_amount_above_zero"),
    sa.Index("transfers_by_debit", "debit_wallet", "transfer_id"),
    sa.Index("transfers_by_credit", "credit_wallet", "transfer_id"),
    sa.Index("transfers_by_payment", "payment_id"),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("reservation_id", sql.Id, primary_key=True),
    sa.Column("wallet_id", _WALLET_ID, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("payment_id", sql.Id),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("update_time", sql.Instant, nullable=False),
    sa.CheckConstraint("amount > 0", name="reservations_amount_above_zero"),
    sa.Index("reservations_by_wallet", "wallet_id", "state"),
)

requests = sa.Table(
    "requests",
    metadata,
    # The caller's 16 bytes and the request's.
    sa.Column("request_key", sql.binary(32), primary_key=True),
    sa.Column("body_hash", sql.binary(32), nullable=False),
    sa.Column("payment_id", sql.Id),
    sa.Column("transfer_id", sql.Id),
    # What the answer said that may have changed since: `_MOVED` or `_REFUNDED`.
    sa.Column("snapshot", sa.LargeBinary(64)),
)

payment_tasks = sa.Table(
    "payment_tasks",
    metadata,
    sa.Column("task", sa.SmallInteger, primary_key=True),
    sa.Column("payment_id", sql.Id, primary_key=True),
    sa.Column("create_time", sql.Instant, nullable=False),
    # Of an offline payment that is to be assessed: the age of its code in microseconds, and the payer's device.
    sa.Column("code_age_micros", sa.BigInteger),
    sa.Column("device", sa.String(64)),
)

event_log = event_logs.table(metadata)

# What a payment's moves and refunds change of it.
_PAYMENT_CHANGES = (
    "state",
    "failure_reason",
    "refunded",
    "risk_decision",
    "risk_score",
    "risk_reasons",
    "update_time",
)

# Built once: every group executes them, and building a statement costs as much as executing it.
_LOCK_WALLETS = (
    sa.select(wallets)
    .where(bulk.among_given(wallets.c.wallet_id, "ids"))
    .order_by(wallets.c.wallet_id)
    .with_for_update()
)
_FIND_REQUESTS = sa.select(requests).where(bulk.among_given(requests.c.request_key, "keys"))

_FIND_PAYMENTS = sa.select(payments).where(bulk.among_given(payments.c.payment_id, "ids"))
_FIND_RESERVATIONS = sa.select(reservations).where(
    bulk.among_given(reservations.c.reservation_id, "ids")
)


async def open_book(
    connection: AsyncConnection,
    policy: Policy,
    *,
    keys: Iterable[WalletKey],
    payment_ids: Collection[UUID],
    request_keys: Collection[bytes],
    reservation_ids: Collection[UUID] = (),
) -> Book:
    """Lock wallets in id order, then read the requests, payments and reservations under that lock."""
    locked = await lock_wallets(connection, keys)
    answered, found = await _read_requests(connection, request_keys)
    missing = set(payment_ids) - found.keys()
    if missing:
        found |= await read_payments(connection, missing)
    reserved = await read_reservations(connection, reservation_ids)
    return Book(Ledger(locked), found, answered, policy, reserved)


async def lock_wallets(
    connection: AsyncConnection, keys: Iterable[WalletKey]
) -> dict[WalletKey, Wallet]:
    """Read wallets and hold their rows until the transaction ends. In id order, so that groups cannot deadlock."""
    ids = sorted(wallet_id(key) for key in keys)
    found = map(wallet_of, await connection.execute(_LOCK_WALLETS, {"ids": ids}))
    return {wallet.key: wallet for wallet in found}


async def read_wallets(
    connection: AsyncConnection, keys: Iterable[WalletKey]
) -> dict[WalletKey, Wallet]:
    """The wallets there are of these, as they stand, unlocked."""
    ids = [wallet_id(key) for key in keys]
    rows = await connection.execute(sa.select(wallets).where(wallets.c.wallet_id.in_(ids)))
    return {wallet.key: wallet for wallet in map(wallet_of, rows)}


async def read_wallet(connection: AsyncConnection, key: WalletKey) -> Wallet | None:
    """A wallet as it stands, unlocked. None if there is no such wallet."""
    return (await read_wallets(connection, [key])).get(key)


async def read_payments(
    connection: AsyncConnection, payment_ids: Iterable[UUID]
) -> dict[UUID, Payment]:
    """The payments there are of these."""
    rows = await connection.execute(_FIND_PAYMENTS, {"ids": list(payment_ids)})
    return {row.payment_id: payment_of(row) for row in rows}


async def read_reservations(
    connection: AsyncConnection, reservation_ids: Collection[UUID]
) -> dict[UUID, Reservation]:
    """The reservations there are of these."""
    if not reservation_ids:
        return {}
    rows = await connection.execute(_FIND_RESERVATIONS, {"ids": list(reservation_ids)})
    return {row.reservation_id: reservation_of(row) for row in rows}


async def wallets_behind(
    connection: AsyncConnection, reservation_ids: Collection[UUID]
) -> dict[UUID, WalletKey]:
    """Whose money the reservations are that there are of these. It never changes: no lock is needed."""
    query = sa.select(reservations.c.reservation_id, reservations.c.wallet_id).where(
        reservations.c.reservation_id.in_(list(reservation_ids))
    )
    return {made: wallet_key(stored) for made, stored in await connection.execute(query)}


async def find_payment_of_request(connection: AsyncConnection, request_key: bytes) -> UUID | None:
    """The payment a request made, if it made one."""
    query = sa.select(requests.c.payment_id).where(requests.c.request_key == request_key)
    return (await connection.execute(query)).scalar_one_or_none()


async def list_payments(
    connection: AsyncConnection,
    key: WalletKey,
    *,
    as_payer: bool,
    as_vendor: bool,
    before: UUID | None,
    limit: int,
) -> list[Payment]:
    """Payments a wallet is a side of, newest first, older than `before`. Two index scans at most."""
    columns = [payments.c.payer_wallet] * as_payer + [payments.c.vendor_wallet] * as_vendor
    ids = await _newest(connection, payments.c.payment_id, columns, key, before=before, limit=limit)
    found = await read_payments(connection, ids)
    return [found[payment_id] for payment_id in ids]


async def list_transfers(
    connection: AsyncConnection, key: WalletKey, *, before: UUID | None, limit: int
) -> list[Transfer]:
    """Transfers that touched a wallet, newest first, older than `before`."""
    columns = [transfers.c.debit_wallet, transfers.c.credit_wallet]
    ids = await _newest(
        connection, transfers.c.transfer_id, columns, key, before=before, limit=limit
    )
    found = await _read_transfers(connection, ids)
    return [found[transfer_id] for transfer_id in ids]


async def _newest(
    connection: AsyncConnection,
    id_column: sa.Column[UUID],
    wallet_columns: Sequence[sa.Column[bytes]],
    key: WalletKey,
    *,
    before: UUID | None,
    limit: int,
) -> list[UUID]:
    # One scan per side, each in its index's own order and cut at the limit, then merged: an OR over two columns would
    # read and sort everything the wallet ever did.
    ids: set[UUID] = set()
    for column in wallet_columns:
        query = sa.select(id_column).where(column == wallet_id(key))
        if before is not None:
            query = query.where(id_column < before)
        ids.update(
            (await connection.execute(query.order_by(id_column.desc()).limit(limit))).scalars()
        )
    return sorted(ids, key=lambda found: found.bytes, reverse=True)[:limit]


async def due_tasks(
    connection: AsyncConnection, task: Task, *, before: datetime, limit: int
) -> list[Payment]:
    """Payments with something left to do since before an instant, oldest first."""
    query = (
        sa.select(payments)
        .join(payment_tasks, payment_tasks.c.payment_id == payments.c.payment_id)
        .where(payment_tasks.c.task == int(task), payment_tasks.c.create_time < before)
        .order_by(payment_tasks.c.payment_id)
        .limit(limit)
    )
    return [payment_of(row) for row in await connection.execute(query)]


async def shown(
    connection: AsyncConnection, payment_ids: Iterable[UUID]
) -> dict[UUID, Shown | None]:
    """What payments that are to be assessed were paid with; None for online ones."""
    query = sa.select(payment_tasks).where(
        payment_tasks.c.task == int(Task.ASSESS),
        payment_tasks.c.payment_id.in_(list(payment_ids)),
    )
    return {row.payment_id: shown_of(row) for row in await connection.execute(query)}


async def save(connection: AsyncConnection, book: Book, *, now: datetime) -> None:
    """Write what a book decided; its facts are the caller's to record. Nothing decided writes nothing."""
    rows = [request_row(key, answered) for key, answered in book.new_requests.items()]
    await bulk.insert(connection, requests, rows)
    rows = [payment_row(book.payments[payment_id]) for payment_id in book.new_payments]
    await bulk.insert(connection, payments, rows)
    for payment_id in book.changed_payments:
        await connection.execute(_payment_update(book.payments[payment_id]))
    rows = [transfer_row(transfer) for transfer in book.ledger.transfers]
    await bulk.insert(connection, transfers, rows)
    rows = [reservation_row(book.reservations[made]) for made in sorted(book.new_reservations)]
    await bulk.insert(connection, reservations, rows)
    rows = [reservation_row(book.reservations[each]) for each in sorted(book.changed_reservations)]
    await bulk.upsert(connection, reservations, rows)
    rows = [
        {"task": int(task), "payment_id": payment_id, "create_time": now}
        | shown_row(book.shown.get(payment_id))
        for payment_id, task in book.new_tasks
    ]
    await bulk.insert(connection, payment_tasks, rows)
    for payment_id, task in book.done_tasks:
        done = sa.delete(payment_tasks).where(
            payment_tasks.c.task == int(task), payment_tasks.c.payment_id == payment_id
        )
        await connection.execute(done)
    rows = [wallet_row(book.ledger.wallets[key]) for key in sorted(book.new_wallets)]
    await bulk.insert(connection, wallets, rows)
    changed = sorted(book.ledger.changed - book.new_wallets)
    await bulk.upsert(
        connection, wallets, [wallet_row(book.ledger.wallets[key]) for key in changed]
    )


def _payment_update(payment: Payment) -> sa.Update:
    row = payment_row(payment)
    return (
        sa.update(payments)
        .where(payments.c.payment_id == payment.payment_id)
        .values({name: row[name] for name in _PAYMENT_CHANGES})
    )


async def _read_requests(
    connection: AsyncConnection, keys: Collection[bytes]
) -> tuple[dict[bytes, Answered], dict[UUID, Payment]]:
    if not keys:
        return {}, {}
    rows = (await connection.execute(_FIND_REQUESTS, {"keys": list(keys)})).all()
    if not rows:
        return {}, {}
    found = await read_payments(connection, {row.payment_id for row in rows if row.payment_id})
    moved = await _read_transfers(connection, {row.transfer_id for row in rows if row.transfer_id})
    answered = {
        bytes(row.request_key): Answered(bytes(row.body_hash), outcome_of(row, found, moved))
        for row in rows
    }
    return answered, found


async def _read_transfers(
    connection: AsyncConnection, transfer_ids: Collection[UUID]
) -> dict[UUID, Transfer]:
    if not transfer_ids:
        return {}
    query = sa.select(transfers).where(transfers.c.transfer_id.in_(list(transfer_ids)))
    return {row.transfer_id: transfer_of(row) for row in await connection.execute(query)}
