"""The database alone: the very statements of the payment service, sent by nobody who has anything else to do.

A ledger is filled on one fresh database while every statement is noted; then the notes are replayed on another, as text
that was written beforehand, so that what is measured is the database and not Python.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pymysql
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from uuid_utils.compat import uuid7

from bench.seed import CURRENCY, request_of
from services import sql
from services.money import Money
from services.payment.domain.book import Policy
from services.payment.domain.commands import CreatePayment, MoveFunds, SetOwner
from services.payment.domain.ledger import Bucket, Purpose, WalletKey
from services.payment.domain.payment import Position
from services.payment.group import Group
from tallystick.fraud.v1 import fraud_service_pb2

_ALLOW = fraud_service_pb2.Assessment.DECISION_ALLOW
_PAYERS = 500
_VENDORS = 50
_THREADS = 2

# A statement with its parameters; None ends a transaction.
_Note = tuple[str, Any, bool] | None


async def per_second(fresh: Sequence[str], *, payments: int, group_size: int) -> float:
    """How many payments a second the database settles by itself.

    Args:
        fresh: URLs of two databases that may be created and filled.
        payments: How many to replay.
        group_size: Payments in one transaction.
    """
    notes, filled = await _note(fresh[0], payments=payments, group_size=group_size)
    await sql.migrate(fresh[1], "payment")
    url = make_url(fresh[1])
    if url.get_backend_name() == "sqlite":
        return payments / await asyncio.to_thread(_replay_sqlite, str(url.database), notes, filled)
    return payments / await asyncio.to_thread(_replay_mysql, url, notes, filled)


async def _note(url: str, *, payments: int, group_size: int) -> tuple[list[_Note], int]:
    """Fill a ledger; answers the notes, and how many of them come before the first payment."""
    await sql.migrate(url, "payment")
    engine = sql.create_engine(url)
    notes: list[_Note] = []

    def executed(_c: Any, _cursor: Any, text: str, given: Any, _x: Any, many: bool) -> None:  # noqa: FBT001
        notes.append((text, given, many))

    sa.event.listen(engine.sync_engine, "before_cursor_execute", executed)
    sa.event.listen(engine.sync_engine, "commit", lambda _connection: notes.append(None))

    async def allow(
        asked: Sequence[fraud_service_pb2.PaymentFacts],
    ) -> list[fraud_service_pb2.Assessment]:
        return [fraud_service_pb2.Assessment(payment=one.payment, decision=_ALLOW) for one in asked]

    group = Group(
        engine,
        Policy(frozenset({CURRENCY})),
        assess=allow,
        committed=lambda: None,
        now=lambda: datetime.now(UTC),
        new_id=uuid7,
        size_max=group_size,
        queue_max=payments + _PAYERS,
    )
    running = asyncio.create_task(group.run())
    try:
        payers, vendors = [uuid7() for _ in range(_PAYERS)], [uuid7() for _ in range(_VENDORS)]
        await _fill(group, payers, vendors)
        filled = len(notes)
        facts = fraud_service_pb2.PaymentFacts()
        await asyncio.gather(
            *(
                group.submit(_payment(payers[n % _PAYERS], _vendor(vendors, n)), facts)
                for n in range(payments)
            )
        )
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await engine.dispose()
    return notes, filled


def _vendor(vendors: Sequence[UUID], number: int) -> UUID:
    return vendors[0] if number % 5 == 0 else vendors[number % _VENDORS]


async def _fill(group: Group, payers: Sequence[UUID], vendors: Sequence[UUID]) -> None:
    currencies = frozenset({CURRENCY})
    await asyncio.gather(
        *(
            group.submit(
                SetOwner(owner, active=True, is_vendor=is_vendor, version=1, currencies=currencies)
            )
            for owners, is_vendor in ((payers, False), (vendors, True))
            for owner in owners
        )
    )
    await asyncio.gather(
        *(
            group.submit(
                MoveFunds(
                    request=request_of(payer),
                    transfer_id=uuid7(),
                    wallet=WalletKey(payer, CURRENCY),
                    purpose=Purpose.TOP_UP,
                    source=None,
                    target=Bucket.ONLINE,
                    amount=Money(10**9, CURRENCY),
                    reference="bench",
                    actor="services/bench",
                )
            )
            for payer in payers
        )
    )


def _payment(payer: UUID, vendor: UUID) -> CreatePayment:
    return CreatePayment(
        request=request_of(payer),
        payment_id=uuid7(),
        transfer_id=uuid7(),
        payer=WalletKey(payer, CURRENCY),
        vendor_id=vendor,
        site_id=None,
        amount=1_00,
        position=Position(12.97, 77.59, 8.0, mocked=False),
        reference="order",
        wait=True,
    )


def _replay_sqlite(path: str, notes: Sequence[_Note], filled: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        _run_sqlite(connection, notes[:filled])
        started = time.perf_counter()
        _run_sqlite(connection, notes[filled:])
        return time.perf_counter() - started
    finally:
        connection.close()


def _run_sqlite(connection: sqlite3.Connection, notes: Sequence[_Note]) -> None:
    for note in notes:
        if note is None:
            connection.execute("COMMIT")
        elif note[2]:
            connection.executemany(note[0], note[1])
        else:
            connection.execute(note[0], note[1]).fetchall()


def _replay_mysql(url: sa.URL, notes: Sequence[_Note], filled: int) -> float:
    def connect() -> Any:
        return pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            charset="utf8mb4",
        )

    first = connect()
    try:
        transactions = _texts(first, notes)
        before = sum(1 for note in notes[:filled] if note is None)
        for transaction in transactions[:before]:
            _run_mysql(first, transaction)
        shares = [transactions[before + n :: _THREADS] for n in range(_THREADS)]
        connections = [connect() for _ in shares]

        def work(connection: Any, share: Sequence[list[str]]) -> None:
            for transaction in share:
                _run_mysql(connection, transaction)

        threads = [
            threading.Thread(target=work, args=pair)
            for pair in zip(connections, shares, strict=True)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        for connection in connections:
            connection.close()
        return seconds
    finally:
        first.close()


def _run_mysql(connection: Any, transaction: list[str]) -> None:
    for text in transaction:
        connection.query(text)
    connection.commit()


def _texts(connection: Any, notes: Sequence[_Note]) -> list[list[str]]:
    """The notes as text, by transaction; rows of one statement written out as one, as the driver does."""
    transactions: list[list[str]] = [[]]
    cursor = connection.cursor()
    for note in notes:
        if note is None:
            transactions.append([])
            continue
        text, given, many = note
        if not many:
            transactions[-1].append(cursor.mogrify(text, given))
            continue
        head, _, rest = text.partition(" VALUES ")
        row, _, tail = rest.partition(" ON DUPLICATE KEY UPDATE ")
        rows = ",".join(cursor.mogrify(row, values) for values in given)
        tail = f" ON DUPLICATE KEY UPDATE {tail}" if tail else ""
        transactions[-1].append(f"{head} VALUES {rows}{tail}")
    return [transaction for transaction in transactions if transaction]
