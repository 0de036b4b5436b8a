"""Sessions, refresh tokens and revocations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.user.domain.session import Session
from services.user.store.tables import refresh_tokens, revocations, sessions


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token on record.

    Attributes:
        token_hash: SHA-256 of it.
        session_id: The session it keeps open.
        spent_time: When it was used. None while it is the session's newest.
    """

    token_hash: bytes
    session_id: UUID
    spent_time: datetime | None


async def insert_session(connection: AsyncConnection, session: Session) -> None:
    """Put a sign-in on record."""
    await connection.execute(
        sa.insert(sessions),
        {
            "session_id": session.session_id,
            "user_id": session.user_id,
            "create_time": session.create_time,
            "expire_time": session.expire_time,
            "end_time": session.end_time,
        },
    )


async def find_session_of_token(connection: AsyncConnection, token_hash: bytes) -> Session | None:
    """The session a refresh token belongs to, spent or not. None when there is no such token."""
    query = (
        sa.select(sessions)
        .join(refresh_tokens, refresh_tokens.c.session_id == sessions.c.session_id)
        .where(refresh_tokens.c.token_hash == token_hash)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _session(row)


async def lock_session(connection: AsyncConnection, session_id: UUID) -> Session | None:
    """Read a session and hold its row until the transaction ends. None if there is no such row."""
    query = sa.select(sessions).where(sessions.c.session_id == session_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _session(row)


async def extend_session(connection: AsyncConnection, session: Session) -> None:
    """Store a session's new end."""
    await connection.execute(
        sa.update(sessions)
        .where(sessions.c.session_id == session.session_id)
        .values(expire_time=session.expire_time)
    )


async def end_session(connection: AsyncConnection, session_id: UUID, *, now: datetime) -> None:
    """End one session. Ending an ended one changes nothing."""
    await connection.execute(
        sa.update(sessions)
        .where(sessions.c.session_id == session_id, sessions.c.end_time.is_(None))
        .values(end_time=now)
    )


async def end_sessions(
    connection: AsyncConnection, user_id: UUID, *, but: UUID | None, now: datetime
) -> None:
    """End every session of a person, except one."""
    statement = sa.update(sessions).where(
        sessions.c.user_id == user_id, sessions.c.end_time.is_(None)
    )
    if but is not None:
        statement = statement.where(sessions.c.session_id != but)
    await connection.execute(statement.values(end_time=now))


async def insert_refresh_token(
    connection: AsyncConnection, token_hash: bytes, session_id: UUID
) -> None:
    """Put a session's newest token on record."""
    await connection.execute(
        sa.insert(refresh_tokens),
        {"token_hash": token_hash, "session_id": session_id, "spent_time": None},
    )


async def lock_refresh_token(connection: AsyncConnection, token_hash: bytes) -> RefreshToken | None:
    """Read a token and hold its row until the transaction ends. None if there is no such row."""
    query = (
        sa.select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash).with_for_update()
    )
    row = (await connection.execute(query)).one_or_none()
    return (
        None if row is None else RefreshToken(bytes(row.token_hash), row.session_id, row.spent_time)
    )


async def spend_refresh_token(
    connection: AsyncConnection, token_hash: bytes, *, now: datetime
) -> None:
    """The token was used."""
    await connection.execute(
        sa.update(refresh_tokens)
        .where(refresh_tokens.c.token_hash == token_hash)
        .values(spent_time=now)
    )


async def save_revocation(
    connection: AsyncConnection, user_id: UUID, *, revoke_time: datetime
) -> None:
    """Store a person's latest revocation. The caller holds the account's row."""
    statement = (
        sa.update(revocations)
        .where(revocations.c.user_id == user_id)
        .values(revoke_time=revoke_time)
    )
    if (await connection.execute(statement)).rowcount == 0:
        await connection.execute(
            sa.insert(revocations), {"user_id": user_id, "revoke_time": revoke_time}
        )


async def list_revocations(
    connection: AsyncConnection, *, after: datetime
) -> list[tuple[UUID, datetime]]:
    """Who was revoked after an instant, and when."""
    query = sa.select(revocations).where(revocations.c.revoke_time > after)
    return [(row.user_id, row.revoke_time) for row in await connection.execute(query)]


def _session(row: sa.Row[Any]) -> Session:
    return Session(row.session_id, row.user_id, row.create_time, row.expire_time, row.end_time)
