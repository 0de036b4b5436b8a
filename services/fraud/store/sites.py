"""Fraud's own copy of vendor sites, and how far it has read the streams it keeps copies from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services import names, streams
from services.fraud.domain.assessment import Site
from services.fraud.domain.sites import VendorSites
from services.fraud.store.tables import sites, stream_cursors


async def read_vendors(connection: AsyncConnection) -> dict[str, VendorSites]:
    """Every vendor's sites, by the vendor's name."""
    query = sa.select(sites).order_by(sites.c.vendor_id, sites.c.place)
    versions: dict[str, int] = {}
    found: dict[str, list[Site]] = defaultdict(list)
    for row in await connection.execute(query):
        vendor = names.user_name(row.vendor_id)
        name = names.site_name(row.vendor_id, row.site_id)
        versions[vendor] = row.version
        found[vendor].append(Site(name, row.latitude, row.longitude, row.open))
    return {
        vendor: VendorSites(version, tuple(found[vendor])) for vendor, version in versions.items()
    }


async def read_cursor(connection: AsyncConnection, source: str) -> str | None:
    """How far a stream has been read; None when it never was."""
    query = sa.select(stream_cursors.c.position).where(stream_cursors.c.source == source)
    return (await connection.execute(query)).scalar_one_or_none()


async def lock_cursor(connection: AsyncConnection, source: str) -> str | None:
    """As `read_cursor`, and keep other replicas from saving until the transaction ends."""
    query = (
        sa.select(stream_cursors.c.position)
        .where(stream_cursors.c.source == source)
        .with_for_update()
    )
    return (await connection.execute(query)).scalar_one_or_none()


async def save_vendors(connection: AsyncConnection, changed: Mapping[str, VendorSites]) -> None:
    """Replace the sites of some vendors, but for those the table knows newer ones of.

    Call it under `lock_cursor`: two replicas must not replace the same vendor's at once.
    """
    ids = {names.last_id(vendor): vendor for vendor in changed}
    query = sa.select(sites.c.vendor_id, sites.c.version).where(sites.c.vendor_id.in_(ids))
    versions = {row.vendor_id: row.version for row in await connection.execute(query)}
    newer = [
        vendor_id
        for vendor_id, vendor in ids.items()
        if changed[vendor].version >= versions.get(vendor_id, 0)
    ]
    if not newer:
        return
    await connection.execute(sa.delete(sites).where(sites.c.vendor_id.in_(newer)))
    rows = [
        {
            "vendor_id": vendor_id,
            "site_id": names.last_id(site.name),
            "version": changed[ids[vendor_id]].version,
            "place": place,
            "latitude": site.latitude,
            "longitude": site.longitude,
            "open": site.open,
        }
        for vendor_id in newer
        for place, site in enumerate(changed[ids[vendor_id]].sites)
    ]
    if rows:
        await connection.execute(sa.insert(sites), rows)


async def save_cursor(
    connection: AsyncConnection, source: str, earlier: str | None, position: str
) -> None:
    """Move a cursor on. A replica that lags behind another one leaves the other's.

    Args:
        connection: In the transaction of `lock_cursor`.
        source: What the cursor is kept under.
        earlier: What `lock_cursor` answered.
        position: How far this replica has read.
    """
    if earlier is None:
        await connection.execute(
            sa.insert(stream_cursors), {"source": source, "position": position}
        )
    elif streams.is_behind(position, earlier):
        await connection.execute(
            sa.update(stream_cursors)
            .where(stream_cursors.c.source == source)
            .values(position=position)
        )
