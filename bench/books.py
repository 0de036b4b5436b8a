"""What clients were told, held against what the database says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services import sql
from services.payment import audit, store
from services.payment.domain.payment import State

_ROWS_AT_ONCE = 5_000


@dataclass(frozen=True)
class Books:
    """What was found.

    Attributes:
        wrong: What does not match, at most ten; empty when the books are right.
        states: Stored payments by state.
        group_sizes: How many transactions settled so many payments, by size.
    """

    wrong: list[str]
    states: dict[str, int]
    group_sizes: Counter[int]

    @property
    def match(self) -> bool:
        """Nothing is wrong."""
        return not self.wrong


async def check(database_url: str, told: Mapping[str, int], *, unanswered: int) -> Books:
    """Compare, and check every law.

    Args:
        database_url: The ledger's.
        told: By request id, the state its client was told; 0 for a refusal or no answer.
        unanswered: How many of those got no answer at all: they may be stored or not.
    """
    engine = sql.create_engine(database_url)
    try:
        stored = await _payments(engine)
        wrong = _differences(stored, told, unanswered)
        findings = await audit.check(engine)
    finally:
        await engine.dispose()
    wrong += [
        f"law {number}: {finding.first_broken}"
        for number, finding in findings.items()
        if not finding.holds
    ]
    states = Counter(State(state).name for state, _ in stored.values())
    # Every payment of a group was created at the same instant.
    groups = Counter(create_time for _, create_time in stored.values())
    return Books(wrong[:10], dict(states), Counter(groups.values()))


def _differences(
    stored: Mapping[str, tuple[int, datetime]], told: Mapping[str, int], unanswered: int
) -> list[str]:
    wrong = [
        f"request {request_id}: told {State(state).name}, stored "
        f"{State(stored[request_id][0]).name if request_id in stored else 'nothing'}"
        for request_id, state in told.items()
        if state and (request_id not in stored or stored[request_id][0] != state)
    ]
    wrong += [f"request {found}: stored, never sent" for found in stored if found not in told]
    silent = sum(1 for request_id, state in told.items() if not state and request_id in stored)
    if silent > unanswered:
        wrong.append(
            f"{silent} payments stored that were refused; only {unanswered} went unanswered"
        )
    return wrong


async def _payments(engine: AsyncEngine) -> dict[str, tuple[int, datetime]]:
    table = store.payments
    columns = (table.c.payment_id, table.c.request_id, table.c.state, table.c.create_time)
    query = sa.select(*columns).order_by(table.c.payment_id).limit(_ROWS_AT_ONCE)
    found: dict[str, tuple[int, datetime]] = {}
    async with sql.reading(engine) as connection:
        last: UUID | None = None
        while True:
            page = query if last is None else query.where(table.c.payment_id > last)
            rows = (await connection.execute(page)).all()
            for row in rows:
                if (
                    str(row.request_id) in found
                ):  # a second payment of one request is itself a finding
                    found[f"{row.request_id} again"] = (row.state, row.create_time)
                found[str(row.request_id)] = (row.state, row.create_time)
            if len(rows) < _ROWS_AT_ONCE:
                return found
            last = rows[-1].payment_id
