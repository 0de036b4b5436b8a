"""SQL engines, column types, transactions that are retried, and migrations, for SQLite and MySQL/MariaDB."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from uuid_utils import UUID

log = logging.getLogger(__name__)

T = TypeVar("T")

MIGRATIONS = Path(__file__).parents[1] / "deploy" / "migrations"

_DUPLICATE_KEY = 1062
# Deadlock, lock wait time-out, Galera certification conflict (arrives as 1213 or 1180 at commit).
_CONFLICT_CODES = {1213, 1205, 1180}
# Gone away, lost, cannot connect, shutting down, killed, read only, node not ready (Galera).
_LOST_CODES = {
    2006,
    2013,
    2003,
    2002,
    1053,
    1927,
    1290,
    1047,
    1040,
    1158,
    1159,
    1160,
    1161,
}

_CONNECT_SECONDS = 2.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Id(sa.types.TypeDecorator[UUID]):
    """A UUID in 16 bytes."""

    impl = sa.LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """BINARY(16) on MySQL, so that it can lead a key; BLOB on SQLite."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(sa.BINARY(16))
        return dialect.type_descriptor(sa.LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> bytes | None:
        """Store the 16 bytes."""
        return None if value is None else value.bytes

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[bytes | None], UUID | None]:
        """Read them back. In one step, not in the three of `process_result_value`: a payment has a dozen of them."""
        return lambda value: None if value is None else UUID(bytes=value)


class Instant(sa.types.TypeDecorator[datetime]):
    """A UTC instant in whole microseconds since 1970: exact, ordered, and free of a server's time zone."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Store microseconds."""
        return None if value is None else micros(value)

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[int | None], datetime | None]:
        """Read an aware datetime back."""
        return lambda value: None if value is None else instant(value)


def micros(value: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (value - _EPOCH) // _MICROSECOND


def instant(value: int) -> datetime:
    """The UTC datetime of microseconds since 1970."""
    return _EPOCH + value * _MICROSECOND


def binary(length: int) -> sa.types.TypeEngine[bytes]:
    """Bytes of a fixed length that can lead a key."""
    return sa.LargeBinary(length).with_variant(sa.BINARY(length), "mysql", "mariadb")


def blob() -> sa.types.TypeEngine[bytes]:
    """Bytes of any length up to 16 MiB."""
    from sqlalchemy.dialects.mysql import MEDIUMBLOB

    return sa.LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb")


def serial() -> sa.types.TypeEngine[int]:
    """An automatically numbered 64-bit key. SQLite numbers only INTEGER columns."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create_engine(url: str, *, pool_size: int = 4) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite:///…` or `mysql+aiomysql://…`. The caller disposes of it.

    SQLite transactions start with BEGIN IMMEDIATE: a transaction that reads first and writes later cannot be
    upgraded when another one wrote in between, and no time-out helps. Commits are durable on both.
    """
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": 10}, pool_size=pool_size)
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        sa.event.listen(engine.sync_engine, "invalidate", _roll_back_sqlite)
        return engine
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=2,
        # A server that went away is noticed by the transaction, which is retried; a ping before
        # each would cost a round trip.
        pool_recycle=1800,
        isolation_level="READ COMMITTED",
        connect_args={
            "charset": "utf8mb4",
            "async_creator_fn": _connect_mysql,
            # A lock waited for longer than this is a conflict, and the transaction runs again.
            "init_command": "SET time_zone='+00:00', innodb_lock_wait_timeout=5",
        },
    )


async def _connect_mysql(*arguments: Any, **keywords: Any) -> Any:
    import aiomysql

    # Not aiomysql's own connect_timeout: that is asyncio.wait_for, which before Python 3.12 swallows a cancellation
    # that arrives as the connection does (gh-86296), and a task that must end goes on for ever.
    async with asyncio.timeout(_CONNECT_SECONDS):
        connection = await aiomysql.connect(*arguments, **keywords)
    connection.escape = _escaping(connection.escape)
    return connection


def _escaping(others: Callable[[Any], str]) -> Callable[[Any], str]:
    """How parameters become text, for the types that hot statements are full of; `others` does the rest.

    The driver escapes bytes character by character, 141 µs for the 4 KB of a row of events; as a hexadecimal literal
    they take 3.
    """
    literals: dict[type, Callable[[Any], str]] = {
        bytes: lambda value: f"x'{value.hex()}'" if value else "''",
        int: str,
        type(None): lambda _: "NULL",
    }

    def escape(value: Any) -> str:
        literal = literals.get(type(value))
        return others(value) if literal is None else literal(value)

    return escape


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    connection.isolation_level = None  # BEGIN is ours


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE")
    )


def _roll_back_sqlite(connection: Any, _record: object, _error: object) -> None:
    # A call that is cancelled inside a statement leaves its cursor to the garbage collector, and SQLite closes a
    # connection no earlier than its cursors: until then its transaction would lock everybody else out.
    connection.rollback()


@contextlib.asynccontextmanager
async def reading(engine: AsyncEngine, *, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
    """A transaction that only reads, and on SQLite waits for no writer.

    With `snapshot`, every statement sees the database as it was at the first one.
    """
    async with engine.connect() as connection:
        # In SQLite's WAL mode a transaction that began without IMMEDIATE reads one snapshot anyway.
        options: dict[str, Any] = {"sqlite_begin": "BEGIN"}
        if snapshot and connection.dialect.name != "sqlite":
            options["isolation_level"] = "REPEATABLE READ"
        await connection.execution_options(**options)
        async with connection.begin():
            yield connection


def is_conflict(error: BaseException) -> bool:
    """The transaction lost against another one and may be run again at once."""
    if isinstance(error, IntegrityError):
        # Two copies of one request inserted the same key at the same time: run again, and the
        # loser finds the winner. Any other broken constraint is a defect.
        return _code(error) == _DUPLICATE_KEY or "UNIQUE constraint" in str(error.orig)
    if isinstance(error, DBAPIError):
        return _code(error) in _CONFLICT_CODES or "database is locked" in str(error.orig)
    return False


def is_lost(error: BaseException) -> bool:
    """The database did not answer, so the outcome of the transaction is not known."""
    if isinstance(
        error,
        (
            sa.exc.TimeoutError,
            TimeoutError,
            ConnectionError,
            asyncio.IncompleteReadError,
        ),
    ):
        return True
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or _code(error) in _LOST_CODES
    )


def _code(error: DBAPIError) -> int | None:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


_TRANSACTION_SECONDS = 10.0
# Pooled connections die together when a server restarts: the second new one is alive, or nothing is.
_LOST_MAX = 2


async def transact(
    engine: AsyncEngine,
    work: Callable[[AsyncConnection], Awaitable[T]],
    *,
    attempts: int = 8,
    jitter: Callable[[], float] = random.random,
) -> T:
    """Run `work` in one transaction and commit; run the whole of it again when it lost a conflict.

    `work` must be safe to run again: it reads what it needs inside, and its writes carry their request's id.
    A lost connection is retried twice, at once: pooled connections die together when a server restarts.

    Raises:
        DBAPIError: the last conflict, or a lost connection; `is_lost` tells.
    """
    lost = 0
    for attempt in range(1, attempts + 1):
        try:
            # A server that hangs answers nothing at all, not even an error.
            async with asyncio.timeout(_TRANSACTION_SECONDS), engine.begin() as connection:
                return await work(connection)
        except Exception as error:
            lost += is_lost(error)
            if (
                attempt == attempts
                or lost > _LOST_MAX
                or not (is_conflict(error) or is_lost(error))
            ):
                raise
            log.warning(
                "transaction runs again",
                extra={"attempt": attempt, "cause": type(error).__name__},
            )
            # Full jitter, 10 to 400 ms (notes on Galera: conflicts in step stay in step without it).
            await asyncio.sleep(min(0.4, 0.01 * 2**attempt) * jitter())
    raise AssertionError


async def ensure_database(url: str) -> None:
    """Create the database a URL names where it is missing, so that a fresh server needs no preparation."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
        return
    name = parsed.database
    assert name is not None
    assert name.replace("_", "").isalnum()
    # None would mean "as before" to URL.set.
    server = parsed.set(database="").render_as_string(hide_password=False)
    engine = create_engine(server)
    try:
        async with engine.begin() as connection:
            statement = (
                f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
            )
            await connection.exec_driver_sql(statement)
    finally:
        await engine.dispose()


async def migrate(url: str, service: str) -> None:
    """Bring one service's schema to the current version. Running it again changes nothing."""
    from alembic import command
    from alembic.config import Config

    await ensure_database(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("version_locations", str(MIGRATIONS / service))
    config.set_main_option("path_separator", "os")

    def upgrade(connection: sa.Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    finally:
        await engine.dispose()
