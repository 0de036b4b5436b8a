"""The first operator of a deployment. Everybody else registers, or is made by an operator."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID, uuid7

from services import event_log, sql
from services.user import events, store
from services.user.domain import user as users
from services.user.events import Change, Circumstances
from services.user.passwords import Passwords
from services.user.store import users as user_store


@dataclass(frozen=True)
class FirstAdmin:
    """Credentials that exist nowhere else: show them to nobody but the operator.

    Attributes:
        username: What to sign in with.
        password: 32 characters, 192 random bits.
    """

    username: str
    password: str


async def create_first_admin(
    engine: AsyncEngine,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_id: Callable[[], UUID] = uuid7,
) -> FirstAdmin | None:
    """Make an operator with a random password where there is none. None when there is one.

    Its event goes out when the service starts. The username is `admin`, or `admin-2` and so on when
    somebody registered under that name first.
    """
    password = secrets.token_urlsafe(24)
    passwords = Passwords(threads=1)
    try:
        password_hash = await passwords.hash(password)
    finally:
        passwords.close()

    async def work(connection: AsyncConnection) -> FirstAdmin | None:
        username = "admin"
        for number in itertools.count(2):
            if not await user_store.username_exists(connection, username):
                break
            username = f"admin-{number}"
        # Of two at once, one fails on the username they chose alike, and runs again. Asked before the choice, it
        # could find no admin, then the other's name taken, and make a second one under the next name.
        if await user_store.admin_exists(connection):
            return None
        moment = now()
        user = users.create_admin(new_id(), username, "Administrator", now=moment)
        await user_store.insert_user(connection, user, password_hash)
        fact = events.user_changed(
            new_id(), Circumstances(events.ITSELF, moment), Change.CHANGE_REGISTERED, user, ()
        )
        await event_log.append(connection, store.event_log, [fact])
        return FirstAdmin(username, password)

    return await sql.transact(engine, work)
