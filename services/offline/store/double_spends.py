"""Codes that were spent twice."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.offline.domain.double_spend import DoubleSpend
from services.offline.store.tables import double_spends


async def insert_double_spends(connection: AsyncConnection, found: Sequence[DoubleSpend]) -> None:
    """Put double spends on record."""
    rows = [
        {
            "double_spend_id": each.double_spend_id,
            "code_id": each.code_id,
            "owner_id": each.owner_id,
            "first_entry": each.first_entry,
            "second_entry": each.second_entry,
            "proven": int(each.proven),
            "find_time": each.find_time,
        }
        for each in found
    ]
    await connection.execute(sa.insert(double_spends), rows)


async def list_double_spends(
    connection: AsyncConnection, *, before: UUID | None, limit: int
) -> list[DoubleSpend]:
    """Double spends, newest first, older than the one `before`."""
    query = sa.select(double_spends).order_by(double_spends.c.double_spend_id.desc()).limit(limit)
    if before is not None:
        query = query.where(double_spends.c.double_spend_id < before)
    return [
        DoubleSpend(
            double_spend_id=row.double_spend_id,
            code_id=row.code_id,
            owner_id=row.owner_id,
            first_entry=row.first_entry,
            second_entry=row.second_entry,
            proven=bool(row.proven),
            find_time=row.find_time,
        )
        for row in await connection.execute(query)
    ]
