"""Terminals and vendors, as the user service last described them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.offline.domain.terminal import Terminal
from services.offline.store.tables import terminals, vendors


async def find_terminals(
    connection: AsyncConnection, terminal_ids: Collection[UUID]
) -> dict[UUID, Terminal]:
    """Terminals by id."""
    query = sa.select(terminals).where(terminals.c.terminal_id.in_(list(terminal_ids)))
    return {row.terminal_id: _terminal(row) for row in await connection.execute(query)}


async def lock_terminal(connection: AsyncConnection, terminal_id: UUID) -> Terminal | None:
    """A terminal, held until the transaction ends."""
    query = sa.select(terminals).where(terminals.c.terminal_id == terminal_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _terminal(row)


async def insert_terminal(connection: AsyncConnection, terminal: Terminal) -> None:
    """Put a terminal on record.

    Raises:
        IntegrityError: another transaction just did.
    """
    values = {
        "terminal_id": terminal.terminal_id,
        "bundle_version": terminal.bundle_version,
        "head_sequence": terminal.head_sequence,
        "head_hash": terminal.head_hash,
        **_described(terminal),
    }
    await connection.execute(sa.insert(terminals), values)


async def describe_terminal(connection: AsyncConnection, terminal: Terminal) -> None:
    """Record what the user service says of a terminal that is locked."""
    await _update(connection, terminal.terminal_id, _described(terminal))


async def set_bundle_version(connection: AsyncConnection, terminal_id: UUID, version: int) -> None:
    """Record which trust bundle a terminal that is locked is given."""
    await _update(connection, terminal_id, {"bundle_version": version})


async def set_head(
    connection: AsyncConnection, terminal_id: UUID, sequence: int, content_hash: bytes
) -> None:
    """Record how far the journal of a terminal that is locked has arrived."""
    values = {"head_sequence": sequence, "head_hash": content_hash}
    await _update(connection, terminal_id, values)


async def _update(connection: AsyncConnection, terminal_id: UUID, values: dict[str, Any]) -> None:
    await connection.execute(
        sa.update(terminals).where(terminals.c.terminal_id == terminal_id).values(values)
    )


async def active_vendors(
    connection: AsyncConnection, vendor_ids: Collection[UUID]
) -> dict[UUID, bool]:
    """Whether vendors may be paid; without those that are not on record."""
    query = sa.select(vendors.c.vendor_id, vendors.c.active)
    rows = await connection.execute(query.where(vendors.c.vendor_id.in_(list(vendor_ids))))
    return {row.vendor_id: bool(row.active) for row in rows}


async def put_vendor(
    connection: AsyncConnection, vendor_id: UUID, *, active: bool, version: int
) -> None:
    """Record what the user service says of a vendor, unless something newer is on record.

    Raises:
        IntegrityError: another transaction made the row just now; run again.
    """
    query = sa.select(vendors.c.version).where(vendors.c.vendor_id == vendor_id)
    known = (await connection.execute(query.with_for_update())).scalar_one_or_none()
    values = {"active": int(active), "version": version}
    if known is None:
        await connection.execute(
            sa.insert(vendors), {"vendor_id": vendor_id, "strikes": 0, **values}
        )
    elif version > known:
        await connection.execute(
            sa.update(vendors).where(vendors.c.vendor_id == vendor_id).values(values)
        )


async def strike(connection: AsyncConnection, vendor_id: UUID, times: int) -> None:
    """Count codes that a vendor's own terminals took twice."""
    await connection.execute(
        sa.update(vendors)
        .where(vendors.c.vendor_id == vendor_id)
        .values(strikes=vendors.c.strikes + times)
    )


def _described(terminal: Terminal) -> dict[str, Any]:
    return {
        "vendor_id": terminal.vendor_id,
        "site_id": terminal.site_id,
        "scope": terminal.scope,
        "public_key": terminal.public_key,
        "revoke_time": terminal.revoke_time,
        "version": terminal.version,
    }


def _terminal(row: sa.Row[Any]) -> Terminal:
    return Terminal(
        terminal_id=row.terminal_id,
        vendor_id=row.vendor_id,
        site_id=row.site_id,
        scope=row.scope,
        public_key=bytes(row.public_key),
        revoke_time=row.revoke_time,
        version=row.version,
        bundle_version=row.bundle_version,
        head_sequence=row.head_sequence,
        head_hash=bytes(row.head_hash),
    )
