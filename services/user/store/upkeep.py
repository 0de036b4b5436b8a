"""Removing what no answer depends on any more, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.user.store.tables import assertions, attempts, refresh_tokens, revocations, sessions

# Rows one transaction removes: locks are held for some milliseconds.
_ROWS_MAX = 500


async def delete_sessions(connection: AsyncConnection, *, expired_before: datetime) -> int:
    """Forget sessions and their tokens; how many sessions."""
    query = (
        sa.select(sessions.c.session_id)
        .where(sessions.c.expire_time < expired_before)
        .limit(_ROWS_MAX)
    )
    found: Sequence[object] = (await connection.execute(query)).scalars().all()
    if found:
        await connection.execute(
            sa.delete(refresh_tokens).where(refresh_tokens.c.session_id.in_(found))
        )
        await connection.execute(sa.delete(sessions).where(sessions.c.session_id.in_(found)))
    return len(found)


async def delete_spent_tokens(connection: AsyncConnection, *, spent_before: datetime) -> int:
    """Forget tokens spent long ago; how many."""
    return await _delete(
        connection, refresh_tokens.c.token_hash, refresh_tokens.c.spent_time < spent_before
    )


async def delete_attempts(connection: AsyncConnection, *, last_before: datetime) -> int:
    """Forget wrong passwords of long ago; how many rows."""
    return await _delete(connection, attempts.c.username_hash, attempts.c.last_time < last_before)


async def delete_revocations(connection: AsyncConnection, *, revoked_before: datetime) -> int:
    """Forget revocations older than every token; how many."""
    return await _delete(
        connection, revocations.c.user_id, revocations.c.revoke_time < revoked_before
    )


async def delete_assertions(connection: AsyncConnection, *, expired_before: datetime) -> int:
    """Forget assertions that would be refused for their age; how many."""
    return await _delete(
        connection, assertions.c.assertion_id, assertions.c.expire_time < expired_before
    )


async def _delete(
    connection: AsyncConnection, key: sa.Column[object], old: sa.ColumnElement[bool]
) -> int:
    found = (await connection.execute(sa.select(key).where(old).limit(_ROWS_MAX))).scalars().all()
    if found:
        # `old` again: a row may have become new since it was read.
        await connection.execute(sa.delete(key.table).where(key.in_(found), old))
    return len(found)
