"""Rights to spend offline."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.offline.domain.right import Level, Mark, Right
from services.offline.store.tables import rights


async def find_right(connection: AsyncConnection, owner_id: UUID) -> Right:
    """Somebody's right."""
    query = sa.select(rights).where(rights.c.owner_id == owner_id)
    row = (await connection.execute(query)).one_or_none()
    return Right(owner_id) if row is None else _right(row)


async def lock_right(connection: AsyncConnection, owner_id: UUID) -> Right:
    """As `find_right`, and whoever changes the owner's codes or right waits until the transaction ends.

    Raises:
        IntegrityError: another transaction made the row just now; run again.
    """
    query = sa.select(rights).where(rights.c.owner_id == owner_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is not None:
        return _right(row)
    right = Right(owner_id)
    await connection.execute(sa.insert(rights), {"owner_id": owner_id, **_changing(right)})
    return right


async def update_right(connection: AsyncConnection, right: Right) -> None:
    """Record a right that is locked."""
    statement = (
        sa.update(rights).where(rights.c.owner_id == right.owner_id).values(_changing(right))
    )
    await connection.execute(statement)


def _changing(right: Right) -> dict[str, Any]:
    return {
        "double_spend_level": int(right.double_spend.level),
        "double_spend_reason": right.double_spend.reason,
        "fraud_level": int(right.fraud.level),
        "fraud_reason": right.fraud.reason,
        "fraud_time": right.fraud_time,
        "admin_level": int(right.admin.level),
        "admin_reason": right.admin.reason,
        "update_time": right.update_time,
    }


def _right(row: sa.Row[Any]) -> Right:
    return Right(
        owner_id=row.owner_id,
        double_spend=Mark(Level(row.double_spend_level), row.double_spend_reason),
        fraud=Mark(Level(row.fraud_level), row.fraud_reason),
        admin=Mark(Level(row.admin_level), row.admin_reason),
        fraud_time=row.fraud_time,
        update_time=row.update_time,
    )
