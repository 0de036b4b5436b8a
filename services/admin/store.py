"""Cases and the event log."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import event_log as log
from services import sql
from services.admin.domain.case import Case, Decision, Kind, State

metadata = sa.MetaData()

cases = sa.Table(
    "cases",
    metadata,
    sa.Column("case_id", sql.Id, primary_key=True),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("subject_id", sql.Id, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    # The user or payment as it stood when the case opened: a serialized message of their contracts.
    sa.Column("subject", sql.blob(), nullable=False),
    sa.Column("decision", sa.SmallInteger),
    sa.Column("decider_id", sql.Id),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("create_time", sql.Instant),
    sa.Column("decide_time", sql.Instant),
    # Events come twice and through several replicas; whatever they say of one thing is one case.
    sa.UniqueConstraint("kind", "subject_id", name="cases_subject"),
    sa.Index("cases_state", "state", "case_id"),
    sa.Index("cases_kind_state", "kind", "state", "case_id"),
)

event_log = log.table(metadata)


async def find_case(connection: AsyncConnection, case_id: UUID) -> Case | None:
    """A case by its id. One that never opened is none."""
    query = sa.select(cases).where(
        cases.c.case_id == case_id, cases.c.state != State.UNOPENED.value
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _case(row)


async def lock_case(connection: AsyncConnection, case_id: UUID) -> Case | None:
    """As `find_case`, and hold the row until the transaction ends."""
    query = (
        sa.select(cases)
        .where(cases.c.case_id == case_id, cases.c.state != State.UNOPENED.value)
        .with_for_update()
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _case(row)


async def lock_subject(connection: AsyncConnection, kind: Kind, subject_id: UUID) -> Case | None:
    """The case about a user or payment, also one that never opened; held until the transaction ends."""
    query = (
        sa.select(cases)
        .where(cases.c.kind == kind.value, cases.c.subject_id == subject_id)
        .with_for_update()
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _case(row)


async def list_cases(
    connection: AsyncConnection,
    *,
    kind: Kind | None,
    state: State | None,
    before: UUID | None,
    limit: int,
) -> list[Case]:
    """Cases, newest first, older than the case `before`; of any kind and state where none is given."""
    query = sa.select(cases).order_by(cases.c.case_id.desc()).limit(limit)
    if kind is not None:
        query = query.where(cases.c.kind == kind.value)
    if state is not None:
        query = query.where(cases.c.state == state.value)
    else:
        query = query.where(cases.c.state != State.UNOPENED.value)
    if before is not None:
        query = query.where(cases.c.case_id < before)
    return [_case(row) for row in await connection.execute(query)]


async def list_deciding(
    connection: AsyncConnection, *, after: UUID | None, limit: int
) -> list[Case]:
    """Cases whose decision has yet to take effect, oldest first, younger than the case `after`."""
    query = (
        sa.select(cases)
        .where(cases.c.state == State.DECIDING.value)
        .order_by(cases.c.case_id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(cases.c.case_id > after)
    return [_case(row) for row in await connection.execute(query)]


async def insert_case(connection: AsyncConnection, case: Case) -> None:
    """Put a new case on record.

    Raises:
        IntegrityError: another transaction just did, for the same kind and subject.
    """
    values = {
        "case_id": case.case_id,
        "kind": case.kind.value,
        "subject_id": case.subject_id,
        **_changing(case),
    }
    await connection.execute(sa.insert(cases), values)


async def update_case(connection: AsyncConnection, case: Case) -> None:
    """Record how a case that is locked has moved."""
    statement = sa.update(cases).where(cases.c.case_id == case.case_id).values(_changing(case))
    await connection.execute(statement)


def _changing(case: Case) -> dict[str, Any]:
    return {
        "state": case.state.value,
        "subject": case.subject,
        "decision": None if case.decision is None else case.decision.value,
        "decider_id": case.decider_id,
        "reason": case.reason,
        "create_time": case.create_time,
        "decide_time": case.decide_time,
    }


def _case(row: sa.Row[Any]) -> Case:
    return Case(
        case_id=row.case_id,
        kind=Kind(row.kind),
        subject_id=row.subject_id,
        state=State(row.state),
        subject=bytes(row.subject),
        decision=None if row.decision is None else Decision(row.decision),
        decider_id=row.decider_id,
        reason=row.reason,
        create_time=row.create_time,
        decide_time=row.decide_time,
    )
