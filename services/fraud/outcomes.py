"""Assessments kept, read for reports, and what their payments turned out to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from services import sql
from services.fraud.store import assessments
from services.fraud.store.assessments import FRAUD, HONEST, Stored
from tallystick.fraud.v1 import fraud_service_pb2 as pb

_PAGE = 250
# After so many the event loop may serve calls: a millisecond or two.
YIELD_EVERY = 50


def count(outcomes: pb.Outcomes, label: int, payments: int = 1) -> None:
    """Add payments with a label."""
    outcomes.payments += payments
    if label == FRAUD:
        outcomes.fraud += payments
    elif label == HONEST:
        outcomes.honest += payments


async def read(
    engine: AsyncEngine, start: datetime, end: datetime, limit: int, *, signalled: bool = False
) -> AsyncIterator[Stored]:
    """Assessments of a time, newest first, a page at a time so that calls are served between.

    Args:
        engine: Where from.
        start: Inclusive.
        end: Exclusive.
        limit: At most so many.
        signalled: Only those that had a reason.
    """
    before: UUID | None = None
    left = limit
    while left > 0:
        async with sql.reading(engine) as connection:
            page = await assessments.read_range(
                connection, start, end, limit=min(_PAGE, left), signalled=signalled, before=before
            )
        for number, stored in enumerate(page):
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            yield stored
        if len(page) < min(_PAGE, left):
            return
        left -= len(page)
        end, before = page[-1].create_time, page[-1].payment_id
