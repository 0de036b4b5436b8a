"""Fraud's own copy of the tiers of payers who were ever above the lowest one."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services import names
from services.fraud.domain.tiers import Standing, Tier
from services.fraud.store.tables import tiers


async def read_tiers(connection: AsyncConnection) -> dict[str, Standing]:
    """Every such payer's tier, by the payer's name."""
    return {
        names.user_name(row.payer_id): Standing(row.version, Tier(row.tier))
        for row in await connection.execute(sa.select(tiers))
    }


async def save_tiers(connection: AsyncConnection, changed: Mapping[str, Standing]) -> None:
    """Replace the tiers of some payers, but for those the table knows newer ones of.

    Call it under `lock_cursor`: two replicas must not replace the same payer's at once.
    """
    ids = {names.last_id(payer): news for payer, news in changed.items()}
    query = sa.select(tiers.c.payer_id, tiers.c.version).where(tiers.c.payer_id.in_(ids))
    versions = {row.payer_id: row.version for row in await connection.execute(query)}
    newer = {
        payer_id: news
        for payer_id, news in ids.items()
        if news.version >= versions.get(payer_id, 0)
    }
    if not newer:
        return
    await connection.execute(sa.delete(tiers).where(tiers.c.payer_id.in_(newer)))
    rows = [
        {"payer_id": payer_id, "version": news.version, "tier": news.tier.value}
        for payer_id, news in newer.items()
    ]
    await connection.execute(sa.insert(tiers), rows)
