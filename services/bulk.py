"""Many rows, and many keys, in one statement, for the few tables that every payment writes to and reads from.

SQLAlchemy makes each value of each row a parameter of its own, with a type that processes it, and the driver then
writes it into the statement's text: 4 µs a value, where a payment has a hundred. Here the text is written at once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import sql

# A statement of so many rows of a few kilobytes stays far below what a server takes (16 MiB).
_ROWS_PER_STATEMENT = 500

Row = Mapping[str, Any]


async def insert(connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows that name the same columns.

    Values may be None, integers, floats, text, bytes, UUIDs and aware datetimes; as columns of `sql.Id` and
    `sql.Instant` keep them.

    Raises:
        IntegrityError: a key is taken; as from SQLAlchemy.
        TypeError: a value is of another type.
    """
    await _write(connection, table, rows, "")


async def upsert(connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Give rows that exist new values, in one statement; found by their primary key, of one column."""
    if not rows:
        return
    (key,) = (column.name for column in table.primary_key.columns)
    dialect = connection.dialect
    names = [dialect.identifier_preparer.quote(name) for name in rows[0] if name != key]
    if dialect.name == "sqlite":
        changes = ", ".join(f"{name} = excluded.{name}" for name in names)
        rest = f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
    elif getattr(dialect, "is_mariadb", False):
        changes = ", ".join(f"{name} = VALUES({name})" for name in names)
        rest = f" ON DUPLICATE KEY UPDATE {changes}"
    else:
        changes = ", ".join(f"{name} = made.{name}" for name in names)
        rest = f" AS made ON DUPLICATE KEY UPDATE {changes}"
    await _write(connection, table, rows, rest)


async def _write(
    connection: AsyncConnection, table: sa.Table, rows: Sequence[Row], rest: str
) -> None:
    if not rows:
        return
    columns = tuple(rows[0])
    # Of one column, itemgetter would answer the value alone.
    values = operator.itemgetter(*columns) if columns[1:] else lambda row: (row[columns[0]],)
    names = ", ".join(map(connection.dialect.identifier_preparer.quote, columns))
    head = f"INSERT INTO {table.name} ({names}) VALUES "  # noqa: S608 - names of our own tables
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(columns))
        stored = [tuple(map(_stored, values(row))) for row in rows]
        await connection.exec_driver_sql(f"{head}({marks}){rest}", stored)
        return
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        texts = [
            f"({','.join([_LITERALS[type(value)](value) for value in values(row)])})"
            for row in rows[start : start + _ROWS_PER_STATEMENT]
        ]
        await connection.exec_driver_sql(
            f"{head}{','.join(texts)}{rest}", execution_options={"no_parameters": True}
        )


def among(
    column: sa.ColumnElement[Any], keys: Iterable[bytes | UUID | int]
) -> sa.ColumnElement[bool]:
    """`column IN (keys)`, for many keys. None match nothing."""
    return _in(column, sa.bindparam(None, tuple(keys), type_=_KEYS, literal_execute=True))


def among_given(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """As `among`, for a statement that is built once and given its keys each time, under a name."""
    return _in(column, sa.bindparam(name, type_=_KEYS, literal_execute=True))


def _in(column: sa.ColumnElement[Any], keys: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    return column.op("IN", is_comparison=True, return_type=sa.Boolean())(keys)


class _Keys(sa.types.TypeDecorator[Collection[Any]]):
    """Values as the text of a list; SQLAlchemy puts it into the compiled statement."""

    impl = sa.types.NullType
    cache_ok = True

    def process_literal_param(self, value: Collection[Any] | None, dialect: sa.Dialect) -> str:
        assert value is not None
        return f"({','.join([_LITERALS[type(key)](key) for key in value]) or 'NULL'})"


_KEYS = _Keys()


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise TypeError(f"{value} is no number a column can hold")
    return repr(value)


class _Literals(dict[type, Callable[[Any], str]]):
    def __missing__(self, kind: type) -> Callable[[Any], str]:
        raise TypeError(f"{kind.__name__} has no literal")


# How values stand in the text of a statement. `type`, not `isinstance`: an enum or a bool says which number it is.
_LITERALS = _Literals(
    {
        bytes: lambda value: f"x'{value.hex()}'" if value else "''",
        UUID: lambda value: f"x'{value.hex}'",
        datetime: lambda value: str(sql.micros(value)),
        int: str,
        float: _float,
        # Nothing to escape, so nothing that a server's mode could make mean something else.
        str: lambda value: f"_utf8mb4 x'{value.encode().hex()}'" if value else "''",
        type(None): lambda _: "NULL",
    }
)


def _stored(value: Any) -> Any:
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, datetime):
        return sql.micros(value)
    if type(value) not in _LITERALS:
        raise TypeError(f"{type(value).__name__} has no place in a row")
    return value
