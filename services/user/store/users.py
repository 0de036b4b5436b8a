"""Accounts, their credentials and their sites."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services.user.domain.lockout import Attempts
from services.user.domain.site import Position, Site
from services.user.domain.user import Role, State, Tier, User
from services.user.store.tables import attempts, credentials, sites, users


@dataclass(frozen=True, slots=True)
class Credential:
    """What a password is checked against.

    Attributes:
        user_id: Whose.
        password_hash: Argon2id in PHC form.
        change_time: When the password last changed.
    """

    user_id: UUID
    password_hash: str
    change_time: datetime


async def find_user(connection: AsyncConnection, user_id: UUID) -> User | None:
    """Read an account. None if there is no such row."""
    row = (
        await connection.execute(sa.select(users).where(users.c.user_id == user_id))
    ).one_or_none()
    return None if row is None else _user(row)


async def lock_user(connection: AsyncConnection, user_id: UUID) -> User | None:
    """Read an account and hold its row until the transaction ends. None if there is no such row."""
    query = sa.select(users).where(users.c.user_id == user_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _user(row)


async def find_users(connection: AsyncConnection, user_ids: Iterable[UUID]) -> list[User]:
    """The accounts there are, in any order."""
    query = sa.select(users).where(users.c.user_id.in_(list(user_ids)))
    return [_user(row) for row in await connection.execute(query)]


async def list_users(
    connection: AsyncConnection,
    *,
    before: UUID | None,
    limit: int,
    state: State | None,
    role: Role | None,
    tier: Tier | None,
) -> list[User]:
    """Accounts older than `before`, newest first."""
    query = sa.select(users).order_by(users.c.user_id.desc()).limit(limit)
    if before is not None:
        query = query.where(users.c.user_id < before)
    if state is not None:
        query = query.where(users.c.state == state.value)
    if role is not None:
        query = query.where(users.c.role == role.value)
    if tier is not None:
        query = query.where(users.c.tier == tier.value)
    return [_user(row) for row in await connection.execute(query)]


async def username_exists(connection: AsyncConnection, username: str) -> bool:
    """Somebody has it."""
    query = sa.select(users.c.user_id).where(users.c.username == username)
    return (await connection.execute(query)).first() is not None


async def admin_exists(connection: AsyncConnection) -> bool:
    """There is an operator, in whatever state."""
    query = sa.select(users.c.user_id).where(users.c.role == Role.ADMIN.value).limit(1)
    return (await connection.execute(query)).first() is not None


async def insert_user(connection: AsyncConnection, user: User, password_hash: str) -> None:
    """Put an account on record, with its password."""
    await connection.execute(sa.insert(users), _values(user))
    await connection.execute(
        sa.insert(credentials),
        {
            "user_id": user.user_id,
            "password_hash": password_hash,
            "change_time": user.create_time,
        },
    )


async def update_user(connection: AsyncConnection, user: User) -> None:
    """Store what a verb made of an account."""
    statement = sa.update(users).where(users.c.user_id == user.user_id).values(_values(user))
    await connection.execute(statement)


async def find_credential(connection: AsyncConnection, username: str) -> Credential | None:
    """What a sign-in under a username is checked against. None when nobody has it."""
    query = (
        sa.select(credentials)
        .join(users, users.c.user_id == credentials.c.user_id)
        .where(users.c.username == username)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _credential(row)


async def find_credential_of(connection: AsyncConnection, user_id: UUID) -> Credential:
    """What a person's password is checked against. Every account has one."""
    query = sa.select(credentials).where(credentials.c.user_id == user_id)
    return _credential((await connection.execute(query)).one())


async def replace_password_hash(
    connection: AsyncConnection, old: Credential, password_hash: str, change_time: datetime
) -> bool:
    """Store another hash in place of `old`. False when it is not there any more."""
    statement = (
        sa.update(credentials)
        .where(
            credentials.c.user_id == old.user_id,
            credentials.c.password_hash == old.password_hash,
        )
        .values(password_hash=password_hash, change_time=change_time)
    )
    return (await connection.execute(statement)).rowcount == 1


async def find_attempts(connection: AsyncConnection, username: str) -> Attempts | None:
    """Wrong passwords for what was typed as a username. None if there are none.

    Holds the row until the transaction ends.
    """
    query = (
        sa.select(attempts)
        .where(attempts.c.username_hash == _username_hash(username))
        .with_for_update()
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Attempts(row.wrong, row.last_time, row.retry_time)


async def save_attempts(
    connection: AsyncConnection, username: str, value: Attempts, *, known: bool
) -> None:
    """Store a count; `known` when there was a row."""
    key = _username_hash(username)
    values = {"wrong": value.wrong, "last_time": value.last_time, "retry_time": value.retry_time}
    if known:
        await connection.execute(
            sa.update(attempts).where(attempts.c.username_hash == key).values(values)
        )
    else:
        await connection.execute(sa.insert(attempts), {"username_hash": key, **values})


async def forget_attempts(connection: AsyncConnection, username: str) -> None:
    """The right password came."""
    await connection.execute(
        sa.delete(attempts).where(attempts.c.username_hash == _username_hash(username))
    )


async def list_sites(
    connection: AsyncConnection,
    user_id: UUID,
    *,
    after: UUID | None = None,
    limit: int | None = None,
) -> list[Site]:
    """A vendor's sites younger than `after`, oldest first; all when no limit is given."""
    query = sa.select(sites).where(sites.c.user_id == user_id).order_by(sites.c.site_id)
    if after is not None:
        query = query.where(sites.c.site_id > after)
    if limit is not None:
        query = query.limit(limit)
    return [_site(row) for row in await connection.execute(query)]


async def sites_of(connection: AsyncConnection, user_ids: Iterable[UUID]) -> dict[UUID, list[Site]]:
    """The sites of several vendors, each one's oldest first."""
    query = (
        sa.select(sites)
        .where(sites.c.user_id.in_(list(user_ids)))
        .order_by(sites.c.user_id, sites.c.site_id)
    )
    found: dict[UUID, list[Site]] = {}
    for row in await connection.execute(query):
        found.setdefault(row.user_id, []).append(_site(row))
    return found


async def find_site(connection: AsyncConnection, user_id: UUID, site_id: UUID) -> Site | None:
    """One site of a vendor. None if there is no such row."""
    query = sa.select(sites).where(sites.c.user_id == user_id, sites.c.site_id == site_id)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _site(row)


async def insert_site(connection: AsyncConnection, site: Site) -> None:
    """Put a site on record."""
    await connection.execute(
        sa.insert(sites),
        {
            "user_id": site.user_id,
            "site_id": site.site_id,
            "display_name": site.display_name,
            "latitude": site.position.latitude,
            "longitude": site.position.longitude,
            "accuracy_meters": site.position.accuracy_meters,
            "mocked": site.position.mocked,
            "is_open": site.is_open,
            "create_time": site.create_time,
        },
    )


async def update_site(connection: AsyncConnection, site: Site) -> None:
    """Store whether a site is open; nothing else about it changes."""
    statement = (
        sa.update(sites)
        .where(sites.c.user_id == site.user_id, sites.c.site_id == site.site_id)
        .values(is_open=site.is_open)
    )
    await connection.execute(statement)


def _username_hash(username: str) -> bytes:
    return hashlib.sha256(username.encode()).digest()


def _values(user: User) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "username": user.username,
        "display_name": user.display_name,
        "role": user.role.value,
        "state": user.state.value,
        "state_reason": user.state_reason,
        "create_time": user.create_time,
        "update_time": user.update_time,
        "version": user.version,
        "tier": user.tier.value,
        "tier_reason": user.tier_reason,
    }


def _user(row: sa.Row[Any]) -> User:
    return User(
        row.user_id,
        row.username,
        row.display_name,
        Role(row.role),
        State(row.state),
        row.state_reason,
        row.create_time,
        row.update_time,
        row.version,
        Tier(row.tier),
        row.tier_reason,
    )


def _credential(row: sa.Row[Any]) -> Credential:
    return Credential(row.user_id, row.password_hash, row.change_time)


def _site(row: sa.Row[Any]) -> Site:
    position = Position(row.latitude, row.longitude, row.accuracy_meters, row.mocked)
    return Site(row.user_id, row.site_id, row.display_name, position, row.is_open, row.create_time)
