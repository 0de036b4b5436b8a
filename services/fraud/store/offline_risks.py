"""How far payers may be trusted offline."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.fraud.domain.offline_risk import Level, Standing
from services.fraud.store.tables import offline_risks


@dataclass(frozen=True, slots=True)
class Change:
    """A payer whose standing changed, and why."""

    payer_id: UUID
    standing: Standing
    reason: str


async def read(connection: AsyncConnection, payers: Collection[UUID]) -> dict[UUID, Standing]:
    """The standing of some payers; held until the transaction ends. Who has none, has a normal one."""
    if not payers:
        return {}
    query = sa.select(offline_risks).where(offline_risks.c.payer_id.in_(payers)).with_for_update()
    return {
        row.payer_id: Standing(Level(row.level), row.payment_id, row.expire_time)
        for row in await connection.execute(query)
    }


async def save(connection: AsyncConnection, changes: Collection[Change]) -> None:
    """Put standings in place of earlier ones."""
    if not changes:
        return
    payers = [each.payer_id for each in changes]
    await connection.execute(sa.delete(offline_risks).where(offline_risks.c.payer_id.in_(payers)))
    rows = [
        {
            "payer_id": each.payer_id,
            "level": int(each.standing.level),
            "payment_id": each.standing.payment_id,
            "expire_time": each.standing.expire_time,
        }
        for each in changes
        if each.standing.level is not Level.NORMAL
    ]
    if rows:
        await connection.execute(sa.insert(offline_risks), rows)


async def expired(
    connection: AsyncConnection, *, now: datetime, limit: int
) -> dict[UUID, Standing]:
    """Standings that have run out; held until the transaction ends."""
    query = (
        sa.select(offline_risks)
        .where(offline_risks.c.expire_time <= now)
        .limit(limit)
        .with_for_update()
    )
    return {
        row.payer_id: Standing(Level(row.level), row.payment_id, row.expire_time)
        for row in await connection.execute(query)
    }
