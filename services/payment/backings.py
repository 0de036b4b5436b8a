"""The ledger's reservations, for an audit that holds them against codes."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from services import sql
from services.audit_finding import Backing, BackingState
from services.payment.domain.reservation import ReservationState
from services.payment.store import reservations

_STATES = {
    ReservationState.LIVE: BackingState.LIVE,
    ReservationState.SETTLED: BackingState.SETTLED,
    ReservationState.RELEASED: BackingState.RELEASED,
}


class Backings:
    """Reads reservations; an `audit_finding.Ledger`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def backings(self, reservation_ids: Collection[UUID]) -> list[Backing]:
        """Those of some reservations that exist."""
        return await self._read(reservations.c.reservation_id.in_(list(reservation_ids)), None)

    async def backings_after(self, reservation_id: UUID, limit: int) -> list[Backing]:
        """Reservations with greater ids than one, in the order of ids."""
        return await self._read(reservations.c.reservation_id > reservation_id, limit)

    async def _read(self, which: sa.ColumnElement[bool], limit: int | None) -> list[Backing]:
        query = sa.select(
            reservations.c.reservation_id,
            reservations.c.amount,
            reservations.c.state,
            reservations.c.payment_id,
        ).where(which)
        query = query.order_by(reservations.c.reservation_id).limit(limit)
        async with sql.reading(self._engine) as connection:
            return [
                Backing(
                    reservation_id=row.reservation_id,
                    minor_units=row.amount,
                    state=_STATES[ReservationState(row.state)],
                    payment_id=row.payment_id,
                )
                for row in await connection.execute(query)
            ]
