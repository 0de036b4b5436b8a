"""What reading costs in a ledger that holds much: rows examined, time, and the plan of every statement.

The queries are the payment service's own functions; the audit's statements are taken down while the audit runs. Rows
examined are MariaDB's own count (`Handler_read_*` of the session), which no cache and no busy machine can change.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from bench.seed import CURRENCY
from services import sql
from services.payment import audit, store
from services.payment.domain.book import Task
from services.payment.domain.ledger import WalletKey

_PAGE = 51
_READS = "SHOW SESSION STATUS LIKE 'Handler_read%%'"
# Plans that read all of a table or of an index.
_WHOLE = frozenset({"ALL", "index"})
_TEXT_MAX = 200

Query = Callable[[AsyncConnection], Awaitable[Any]]


async def costs(
    engine: AsyncEngine, *, payer: UUID, vendor: UUID, before: UUID
) -> dict[str, dict[str, float]]:
    """Rows examined and milliseconds of each query the service makes for its callers; by name.

    Args:
        engine: The ledger's.
        payer: Whose payments and statement are read.
        vendor: The same of somebody who is paid very often.
        before: A payment; the page that starts there, deep in the vendor's list, is read too.
    """
    shop, person = WalletKey(vendor, CURRENCY), WalletKey(payer, CURRENCY)
    named: dict[str, Query] = {
        "payments of a payer, newest page": _payments(person, None),
        "payments of the hot vendor, newest page": _payments(shop, None),
        "payments of the hot vendor, a page deep inside": _payments(shop, before),
        "statement of a payer, newest page": _statement(person),
        "statement of the hot vendor, newest page": _statement(shop),
        "wallet": lambda connection: store.read_wallet(connection, person),
        "payment by request": lambda connection: store.find_payment_of_request(
            connection, payer.bytes + before.bytes
        ),
        "tasks that are due": lambda connection: store.due_tasks(
            connection, next(iter(Task)), before=datetime.now(UTC), limit=100
        ),
    }
    found = {}
    async with sql.reading(engine) as connection:
        nothing = await _rows_of(connection, _no_query)
        for name, query in named.items():
            await query(connection)  # read from disk once, as everything that is asked for often
            rows = await _rows_of(connection, query) - nothing
            began = time.perf_counter()
            await query(connection)
            found[name] = {
                "rows_examined": rows,
                "ms": round((time.perf_counter() - began) * 1000, 2),
            }
    return found


async def statements_of_audit(engine: AsyncEngine) -> dict[str, Any]:
    """What the audit asks, and with which parameters: the last ones of each statement."""
    asked: dict[str, Any] = {}

    def note(_c: Any, _cursor: Any, text: str, given: Any, _context: Any, _many: Any) -> None:
        # A list of ids counts as one statement, however long.
        asked[text.partition(" IN (")[0]] = (text, given)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        await audit.check(engine)
    finally:
        sa.event.remove(engine.sync_engine, "before_cursor_execute", note)
    return {text: given for text, given in asked.values() if text.startswith("SELECT")}


async def plans(engine: AsyncEngine, statements: dict[str, Any]) -> list[dict[str, Any]]:
    """How MariaDB would carry each statement out: table, access type, key and rows it expects."""
    found = []
    async with sql.reading(engine) as connection:
        for text, given in statements.items():
            steps = await connection.exec_driver_sql(f"EXPLAIN {text}", given)
            # MariaDB names no table for what needs none.
            shown = [step for step in steps.mappings() if step["table"]]
            found.append(
                {
                    "statement": " ".join(text.split())[:_TEXT_MAX],
                    "steps": [
                        {name: step[name] for name in ("table", "type", "key", "rows")}
                        for step in shown
                    ],
                    "reads_whole_table": "LIMIT" not in text
                    and any(
                        # What stands in brackets is a list of ids, or a result on the way.
                        step["type"] in _WHOLE and not step["table"].startswith("<")
                        for step in shown
                    ),
                }
            )
    return found


async def bytes_by_table(engine: AsyncEngine) -> dict[str, int]:
    """What each of the ledger's tables takes on disk with its indexes, as MariaDB estimates it."""
    names = [table.name for table in store.metadata.sorted_tables]
    async with engine.connect() as connection:
        await connection.exec_driver_sql(f"ANALYZE TABLE {', '.join(names)}")
        rows = await connection.exec_driver_sql(
            "SELECT table_name, data_length + index_length FROM information_schema.tables "
            "WHERE table_schema = DATABASE()"
        )
        found: dict[str, int] = {name: int(size or 0) for name, size in map(tuple, rows)}
    return {name: found[name] for name in names}


async def event_bytes(engine: AsyncEngine) -> int:
    """What the events take, without their keys."""
    query = sa.select(sa.func.sum(sa.func.length(store.event_log.c.events)))
    async with sql.reading(engine) as connection:
        return int((await connection.execute(query)).scalar_one() or 0)


def _payments(key: WalletKey, before: UUID | None) -> Query:
    async def query(connection: AsyncConnection) -> None:
        await store.list_payments(
            connection, key, as_payer=True, as_vendor=True, before=before, limit=_PAGE
        )

    return query


def _statement(key: WalletKey) -> Query:
    async def query(connection: AsyncConnection) -> None:
        await store.list_transfers(connection, key, before=None, limit=_PAGE)

    return query


async def _no_query(_: AsyncConnection) -> None:
    """Takes what looking costs by itself."""


async def _rows_of(connection: AsyncConnection, query: Query) -> int:
    before = await _reads(connection)
    await query(connection)
    return await _reads(connection) - before


async def _reads(connection: AsyncConnection) -> int:
    rows = await connection.exec_driver_sql(_READS, ())
    counted: list[Any] = [tuple(row)[1] for row in rows]
    return sum(int(count) for count in counted)
