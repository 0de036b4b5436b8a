"""Requests for codes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.offline.store.tables import issues


@dataclass(frozen=True, slots=True)
class Issue:
    """A request for codes.

    Attributes:
        issue_id: What payment knows the request by.
        request_key: Who asked, under which id.
        body_hash: For what.
        owner_id: Whose codes.
        currency_code: Of all of them.
        sealed: The answer with its symbols, sealed; None once it is shown no more.
        show_until: Until when it is shown.
        reserved: Payment has set the money aside.
    """

    issue_id: UUID
    request_key: bytes
    body_hash: bytes
    owner_id: UUID
    currency_code: str
    sealed: bytes | None
    show_until: datetime
    reserved: bool


async def find_issue(connection: AsyncConnection, request_key: bytes) -> Issue | None:
    """A request by who asked under which id."""
    query = sa.select(issues).where(issues.c.request_key == request_key)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _issue(row)


async def lock_issue(connection: AsyncConnection, issue_id: UUID) -> Issue | None:
    """A request, held until the transaction ends; None when it was abandoned."""
    query = sa.select(issues).where(issues.c.issue_id == issue_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _issue(row)


async def list_unreserved(connection: AsyncConnection, *, limit: int) -> list[Issue]:
    """Requests whose money is not known to be set aside, oldest first."""
    query = (
        sa.select(issues).where(issues.c.reserved == 0).order_by(issues.c.show_until).limit(limit)
    )
    return [_issue(row) for row in await connection.execute(query)]


async def insert_issue(connection: AsyncConnection, issue: Issue) -> None:
    """Put a request on record.

    Raises:
        IntegrityError: a copy of it was first.
    """
    await connection.execute(
        sa.insert(issues),
        {
            "issue_id": issue.issue_id,
            "request_key": issue.request_key,
            "body_hash": issue.body_hash,
            "owner_id": issue.owner_id,
            "currency_code": issue.currency_code,
            "sealed": issue.sealed,
            "show_until": issue.show_until,
            "reserved": int(issue.reserved),
        },
    )


async def set_reserved(connection: AsyncConnection, issue_id: UUID) -> None:
    """The money of a request is set aside."""
    await connection.execute(
        sa.update(issues).where(issues.c.issue_id == issue_id).values(reserved=1)
    )


async def delete_issue(connection: AsyncConnection, issue_id: UUID) -> None:
    """Forget a request: repeated, it begins anew."""
    await connection.execute(sa.delete(issues).where(issues.c.issue_id == issue_id))


async def hide_symbols(connection: AsyncConnection, *, now: datetime) -> None:
    """Forget the symbols of requests that are answered no more."""
    over = sa.and_(issues.c.show_until <= now, issues.c.sealed.is_not(None))
    await connection.execute(sa.update(issues).where(over).values(sealed=None))


def _issue(row: sa.Row[Any]) -> Issue:
    return Issue(
        issue_id=row.issue_id,
        request_key=bytes(row.request_key),
        body_hash=bytes(row.body_hash),
        owner_id=row.owner_id,
        currency_code=row.currency_code,
        sealed=None if row.sealed is None else bytes(row.sealed),
        show_until=row.show_until,
        reserved=bool(row.reserved),
    )
