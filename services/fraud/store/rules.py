"""Rules with their versions, lists, suppressions, and the revision that counts their changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services import sql
from services.fraud.domain.rules import Action, Entry, List, Mode, Rule, Suppression
from services.fraud.store.tables import entries, rule_revision, rules, suppressions

T = TypeVar("T")

_ROW = 1
_LISTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Version:
    """A rule in one version, who wrote it and when."""

    rule: Rule
    author: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """An entry or a suppression, why and by whom."""

    what: T
    reason: str
    author: str


async def read_revision(connection: AsyncConnection) -> int:
    """The revision; 0 before the first start."""
    query = sa.select(rule_revision.c.revision).where(rule_revision.c.revision_id == _ROW)
    return (await connection.execute(query)).scalar_one_or_none() or 0


async def lock_revision(connection: AsyncConnection) -> int:
    """As `read_revision`, and keep others from changing anything until the transaction ends."""
    query = (
        sa.select(rule_revision.c.revision)
        .where(rule_revision.c.revision_id == _ROW)
        .with_for_update()
    )
    found = (await connection.execute(query)).scalar_one_or_none()
    if found is None:
        await connection.execute(sa.insert(rule_revision), {"revision_id": _ROW, "revision": 0})
    return found or 0


async def save_revision(connection: AsyncConnection, revision: int) -> None:
    """Count a change, under `lock_revision`."""
    await connection.execute(sa.update(rule_revision).values(revision=revision))


async def read_rules(connection: AsyncConnection) -> list[Version]:
    """Every rule as it is now, in the order they came."""
    newest = (
        sa.select(rules.c.name, sa.func.max(rules.c.version).label("version"))
        .group_by(rules.c.name)
        .subquery()
    )
    query = sa.select(rules).join(
        newest, (rules.c.name == newest.c.name) & (rules.c.version == newest.c.version)
    )
    found = [_version(row) for row in await connection.execute(query)]
    return sorted(found, key=lambda each: (each.rule.action, -each.rule.weight, each.rule.name))


async def read_versions(connection: AsyncConnection, name: str) -> list[Version]:
    """All versions of a rule, newest first; none when there is no such rule."""
    query = sa.select(rules).where(rules.c.name == name).order_by(rules.c.version.desc())
    return [_version(row) for row in await connection.execute(query)]


async def insert_rules(
    connection: AsyncConnection, made: Iterable[Rule], *, author: str, now: datetime
) -> None:
    """Put versions on record."""
    rows = [
        {
            "name": rule.name,
            "version": rule.version,
            "expression": rule.expression,
            "action": int(rule.action),
            "mode": int(rule.mode),
            "weight": rule.weight,
            "detail": rule.detail,
            "author": author,
            "create_time": now,
        }
        for rule in made
    ]
    if rows:
        await connection.execute(sa.insert(rules), rows)


async def read_entries(connection: AsyncConnection, *, now: datetime) -> list[Kept[Entry]]:
    """Lists, as far as they have not expired, newest expiry first."""
    query = (
        sa.select(entries)
        .where(entries.c.expire_time > now)
        .order_by(entries.c.expire_time.desc(), entries.c.entity)
        .limit(_LISTED_MAX)
    )
    return [
        Kept(Entry(List(row.list), row.entity, row.expire_time.timestamp()), row.reason, row.author)
        for row in await connection.execute(query)
    ]


async def read_suppressions(
    connection: AsyncConnection, *, now: datetime
) -> list[Kept[Suppression]]:
    """Suppressions, as far as they have not expired, newest expiry first."""
    query = (
        sa.select(suppressions)
        .where(suppressions.c.expire_time > now)
        .order_by(suppressions.c.expire_time.desc(), suppressions.c.entity)
        .limit(_LISTED_MAX)
    )
    return [
        Kept(Suppression(row.rule, row.entity, row.expire_time.timestamp()), row.reason, row.author)
        for row in await connection.execute(query)
    ]


async def save_entry(connection: AsyncConnection, kept: Kept[Entry]) -> None:
    """Put an entry in place of an earlier one, under `lock_revision`."""
    key = (entries.c.list == int(kept.what.list)) & (entries.c.entity == kept.what.entity)
    await connection.execute(sa.delete(entries).where(key))
    values = {
        "list": int(kept.what.list),
        "entity": kept.what.entity,
        "expire_time": sql.instant(round(kept.what.expire_time * 1e6)),
        "reason": kept.reason,
        "author": kept.author,
    }
    await connection.execute(sa.insert(entries), values)


async def save_suppression(connection: AsyncConnection, kept: Kept[Suppression]) -> None:
    """Put a suppression in place of an earlier one, under `lock_revision`."""
    table = suppressions.c
    key = (table.rule == kept.what.rule) & (table.entity == kept.what.entity)
    await connection.execute(sa.delete(suppressions).where(key))
    values = {
        "rule": kept.what.rule,
        "entity": kept.what.entity,
        "expire_time": sql.instant(round(kept.what.expire_time * 1e6)),
        "reason": kept.reason,
        "author": kept.author,
    }
    await connection.execute(sa.insert(suppressions), values)


def _version(row: sa.Row[Any]) -> Version:
    rule = Rule(
        row.name,
        row.expression,
        Action(row.action),
        Mode(row.mode),
        row.weight,
        row.detail,
        row.version,
    )
    return Version(rule, row.author, row.create_time)
