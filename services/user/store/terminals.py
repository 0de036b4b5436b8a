"""Terminals, and the assertions they have used."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.user.domain.terminal import State, Terminal
from services.user.store.tables import assertions, terminals


async def find_terminal(
    connection: AsyncConnection, vendor_id: UUID, terminal_id: UUID
) -> Terminal | None:
    """One terminal of a vendor. None if there is no such row."""
    query = sa.select(terminals).where(
        terminals.c.vendor_id == vendor_id, terminals.c.terminal_id == terminal_id
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _terminal(row)


async def find_terminals(
    connection: AsyncConnection, keys: Collection[tuple[UUID, UUID]]
) -> list[Terminal]:
    """The terminals there are of these (vendor, terminal)."""
    query = sa.select(terminals).where(
        terminals.c.vendor_id.in_({vendor for vendor, _ in keys}),
        terminals.c.terminal_id.in_({terminal for _, terminal in keys}),
    )
    found = (_terminal(row) for row in await connection.execute(query))
    return [terminal for terminal in found if (terminal.vendor_id, terminal.terminal_id) in keys]


async def list_terminals(
    connection: AsyncConnection, vendor_id: UUID, *, after: UUID | None, limit: int
) -> list[Terminal]:
    """A vendor's terminals younger than `after`, oldest first."""
    query = sa.select(terminals).where(terminals.c.vendor_id == vendor_id)
    if after is not None:
        query = query.where(terminals.c.terminal_id > after)
    rows = await connection.execute(query.order_by(terminals.c.terminal_id).limit(limit))
    return [_terminal(row) for row in rows]


async def count_enrolled(connection: AsyncConnection, vendor_id: UUID) -> int:
    """Terminals of a vendor that are not revoked."""
    query = (
        sa.select(sa.func.count())
        .select_from(terminals)
        .where(terminals.c.vendor_id == vendor_id, terminals.c.state == State.ENROLLED.value)
    )
    return (await connection.execute(query)).scalar_one()


async def is_key_taken(connection: AsyncConnection, public_key: bytes) -> bool:
    """A terminal, revoked ones too, has this key."""
    query = sa.select(terminals.c.terminal_id).where(terminals.c.public_key == public_key)
    return (await connection.execute(query)).first() is not None


async def insert_terminal(connection: AsyncConnection, terminal: Terminal) -> None:
    """Put a terminal on record."""
    await connection.execute(sa.insert(terminals), _values(terminal))


async def update_terminal(connection: AsyncConnection, terminal: Terminal) -> None:
    """Store what a revocation changed."""
    statement = (
        sa.update(terminals)
        .where(
            terminals.c.vendor_id == terminal.vendor_id,
            terminals.c.terminal_id == terminal.terminal_id,
        )
        .values(
            state=terminal.state.value,
            revoke_time=terminal.revoke_time,
            revoke_reason=terminal.revoke_reason,
            version=terminal.version,
        )
    )
    await connection.execute(statement)


async def list_revoked(
    connection: AsyncConnection, *, after: datetime
) -> list[tuple[str, datetime]]:
    """Names of terminals revoked after an instant, and when."""
    query = sa.select(terminals).where(terminals.c.revoke_time > after)
    return [(_terminal(row).name, row.revoke_time) for row in await connection.execute(query)]


async def is_assertion_used(
    connection: AsyncConnection, terminal_id: UUID, assertion_id: UUID
) -> bool:
    """The assertion came before."""
    query = sa.select(assertions.c.assertion_id).where(
        assertions.c.terminal_id == terminal_id, assertions.c.assertion_id == assertion_id
    )
    return (await connection.execute(query)).first() is not None


async def save_assertion(
    connection: AsyncConnection, terminal_id: UUID, assertion_id: UUID, *, expire_time: datetime
) -> None:
    """Remember an assertion. An IntegrityError says it was used meanwhile."""
    await connection.execute(
        sa.insert(assertions),
        {
            "terminal_id": terminal_id,
            "assertion_id": assertion_id,
            "expire_time": expire_time,
        },
    )


def _values(terminal: Terminal) -> dict[str, Any]:
    return {
        "vendor_id": terminal.vendor_id,
        "terminal_id": terminal.terminal_id,
        "display_name": terminal.display_name,
        "site_id": terminal.site_id,
        "scope": terminal.scope,
        "public_key": terminal.public_key,
        "state": terminal.state.value,
        "create_time": terminal.create_time,
        "revoke_time": terminal.revoke_time,
        "revoke_reason": terminal.revoke_reason,
        "version": terminal.version,
    }


def _terminal(row: sa.Row[Any]) -> Terminal:
    return Terminal(
        row.vendor_id,
        row.terminal_id,
        row.display_name,
        row.site_id,
        row.scope,
        bytes(row.public_key),
        State(row.state),
        row.create_time,
        row.revoke_time,
        row.revoke_reason,
        row.version,
    )
