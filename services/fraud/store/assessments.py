"""Assessments with what they were judged on, their labels, and alerts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import bulk
from services.fraud.store.tables import alerts, assessments, label_tasks

UNKNOWN, HONEST, FRAUD = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Stored:
    """An assessment as it is kept; columns as in `tables.assessments`."""

    payment_id: UUID
    create_time: datetime
    decision: int
    model_score: int
    signalled: bool
    record: bytes
    features: bytes
    label: int = UNKNOWN
    label_record: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert as it is kept; columns as in `tables.alerts`."""

    alert_id: UUID
    create_time: datetime
    kind: int
    decision: int
    score: int
    payer_id: UUID | None
    vendor_id: UUID | None
    reasons: Sequence[str]
    record: bytes


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts; what is empty or 0 does not matter."""

    kind: int = 0
    decision: int = 0
    score_min: int = 0
    reason: str = ""
    user_id: UUID | None = None


# Built once: several times a second it is executed, and building it costs as much.
_FIND_KNOWN = sa.select(assessments.c.payment_id).where(
    bulk.among_given(assessments.c.payment_id, "ids")
)


async def known(connection: AsyncConnection, payment_ids: Collection[UUID]) -> set[UUID]:
    """Those of some payments whose assessment is kept."""
    found = await connection.execute(_FIND_KNOWN, {"ids": list(payment_ids)})
    return set(found.scalars())


async def insert(connection: AsyncConnection, made: Iterable[Stored]) -> None:
    """Put assessments on record."""
    rows = [
        {
            "payment_id": each.payment_id,
            "create_time": each.create_time,
            "decision": each.decision,
            "model_score": each.model_score,
            "signalled": int(each.signalled),
            "record": each.record,
            "features": each.features,
            "label": each.label,
            "label_record": each.label_record,
        }
        for each in made
    ]
    await bulk.insert(connection, assessments, rows)


async def find(
    connection: AsyncConnection, payment_id: UUID, *, lock: bool = False
) -> Stored | None:
    """The assessment of a payment; with `lock`, nobody else labels it until the transaction ends."""
    query = sa.select(assessments).where(assessments.c.payment_id == payment_id)
    if lock:
        query = query.with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _stored(row)


async def read_range(
    connection: AsyncConnection,
    start: datetime,
    end: datetime,
    *,
    limit: int,
    signalled: bool = False,
    before: UUID | None = None,
) -> list[Stored]:
    """Assessments made from `start` on and before `end`, newest first.

    Args:
        connection: Where from.
        start: Inclusive.
        end: Exclusive.
        limit: At most so many.
        signalled: Only those that had a reason.
        before: Of those made exactly at `end`, also the ones with a smaller id: the way to page.
    """
    column = assessments.c
    earlier = column.create_time < end
    if before is not None:
        earlier |= (column.create_time == end) & (column.payment_id < before)
    query = (
        sa.select(assessments)
        # Said twice: an index cannot begin where an OR ends, and every page would read those before it.
        .where(column.create_time >= start, column.create_time <= end, earlier)
        .order_by(column.create_time.desc(), column.payment_id.desc())
        .limit(limit)
    )
    if signalled:
        query = query.where(column.signalled == 1)
    return [_stored(row) for row in await connection.execute(query)]


async def count_bands(
    connection: AsyncConnection, start: datetime, end: datetime
) -> list[tuple[int, int, int]]:
    """(model score, label, how many) of the assessments of a time that a model scored."""
    column = assessments.c
    query = (
        sa.select(column.model_score, column.label, sa.func.count())
        .where(column.create_time >= start, column.create_time < end, column.model_score >= 0)
        .group_by(column.model_score, column.label)
    )
    return [(score, label, count) for score, label, count in await connection.execute(query)]


async def save_label(
    connection: AsyncConnection, payment_ids: Collection[UUID], label: int, record: bytes
) -> None:
    """Label payments alike, and have the label taken up by counters and profiles.

    Three statements, however many payments.
    """
    if not payment_ids:
        return
    await connection.execute(
        sa.update(assessments)
        .where(assessments.c.payment_id.in_(payment_ids))
        .values(label=label, label_record=record)
    )
    await delete_label_tasks(connection, payment_ids)
    await bulk.insert(connection, label_tasks, [{"payment_id": each} for each in payment_ids])


async def lock_due_labels(connection: AsyncConnection, *, limit: int) -> list[Stored]:
    """Payments whose label waits to be taken up; nobody else takes them until the transaction ends."""
    query = sa.select(label_tasks.c.payment_id).limit(limit).with_for_update()
    due = [row.payment_id for row in await connection.execute(query)]
    if not due:
        return []
    found = sa.select(assessments).where(assessments.c.payment_id.in_(due))
    return [_stored(row) for row in await connection.execute(found)]


async def delete_label_tasks(connection: AsyncConnection, payment_ids: Collection[UUID]) -> None:
    """Labels were taken up."""
    await connection.execute(
        sa.delete(label_tasks).where(label_tasks.c.payment_id.in_(payment_ids))
    )


async def undisputed(
    connection: AsyncConnection, *, before: datetime, decision: int, limit: int
) -> list[UUID]:
    """Payments with that decision, assessed before a time, of which nothing is known; oldest first.

    Nobody else labels them until the transaction ends: a complaint that comes now is not overwritten.
    """
    column = assessments.c
    query = (
        sa.select(column.payment_id)
        .where(column.label == UNKNOWN, column.create_time < before, column.decision == decision)
        .order_by(column.create_time)
        .limit(limit)
        .with_for_update()
    )
    return [row.payment_id for row in await connection.execute(query)]


async def forget(connection: AsyncConnection, *, before: datetime, limit: int) -> int:
    """Delete the oldest assessments and alerts made before a time; answers how many assessments."""
    column = assessments.c
    query = (
        sa.select(column.payment_id)
        .where(column.create_time < before)
        .order_by(column.create_time)
        .limit(limit)
    )
    old = [row.payment_id for row in await connection.execute(query)]
    if old:
        await connection.execute(sa.delete(assessments).where(column.payment_id.in_(old)))
        await connection.execute(sa.delete(label_tasks).where(label_tasks.c.payment_id.in_(old)))
    query = sa.select(alerts.c.alert_id).where(alerts.c.create_time < before).limit(limit)
    stale = [row.alert_id for row in await connection.execute(query)]
    if stale:
        await connection.execute(sa.delete(alerts).where(alerts.c.alert_id.in_(stale)))
    return len(old)


async def insert_alerts(connection: AsyncConnection, raised: Iterable[StoredAlert]) -> None:
    """Put alerts on record."""
    rows = [
        {
            "alert_id": each.alert_id,
            "create_time": each.create_time,
            "kind": each.kind,
            "decision": each.decision,
            "score": each.score,
            "payer_id": each.payer_id,
            "vendor_id": each.vendor_id,
            "reasons": "".join(["," + reason for reason in each.reasons])[:499] + ",",
            "record": each.record,
        }
        for each in raised
    ]
    await bulk.insert(connection, alerts, rows)


async def list_alerts(
    connection: AsyncConnection, query: AlertQuery, *, before: UUID | None, limit: int
) -> list[tuple[UUID, bytes]]:
    """(id, record) of alerts, newest first, older than the alert `before`."""
    column = alerts.c
    wanted = sa.select(column.alert_id, column.record).order_by(column.alert_id.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(column.alert_id < before)
    if query.kind:
        wanted = wanted.where(column.kind == query.kind)
    if query.decision:
        wanted = wanted.where(column.decision == query.decision)
    if query.score_min:
        wanted = wanted.where(column.score >= query.score_min)
    if query.reason:
        wanted = wanted.where(column.reasons.contains(f",{query.reason},", autoescape=True))
    if query.user_id is not None:
        wanted = wanted.where(
            sa.or_(column.payer_id == query.user_id, column.vendor_id == query.user_id)
        )
    return [(row.alert_id, bytes(row.record)) for row in await connection.execute(wanted)]


def _stored(row: sa.Row[Any]) -> Stored:
    return Stored(
        payment_id=row.payment_id,
        create_time=row.create_time,
        decision=row.decision,
        model_score=row.model_score,
        signalled=bool(row.signalled),
        record=bytes(row.record),
        features=bytes(row.features),
        label=row.label,
        label_record=None if row.label_record is None else bytes(row.label_record),
    )
