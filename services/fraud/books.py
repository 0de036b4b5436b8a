"""The rules in force in this replica, and the one way to change them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, sql
from services.event_log import Relay
from services.fraud import events, store
from services.fraud.domain import refusals, rules
from services.fraud.domain.language import ExpressionError, compile_expression
from services.fraud.domain.rulebook import RuleBook
from services.fraud.domain.rules import Entry, Mode, Rule, Suppression
from services.fraud.store import rules as kept_rules
from services.fraud.store.rules import Kept, Version

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# Cannot be computed, so that every payment it would have judged is looked at.
_BROKEN = "1 / 0 == 0"


class Books:
    """Keeps a compiled copy of the rules and reads them anew when somebody has changed them.

    Args:
        engine: The fraud service's database.
        relay: Woken after a change.
        now: The clock.
        new_id: Ids of events.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        relay: Relay,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._engine = engine
        self._relay = relay
        self._now = now
        self._new_id = new_id
        self._book = RuleBook(rules.built_in())

    def current(self) -> RuleBook:
        """The rules in force."""
        return self._book

    async def load(self) -> None:
        """Put built-in rules on record that are not there yet, and read all; call it before serving."""

        async def work(connection: AsyncConnection) -> None:
            revision = await kept_rules.lock_revision(connection)
            known = {each.rule.name for each in await kept_rules.read_rules(connection)}
            new = [rule for rule in rules.built_in() if rule.name not in known]
            if new:
                await kept_rules.insert_rules(
                    connection, new, author=events.PLATFORM, now=self._now()
                )
                await kept_rules.save_revision(connection, revision + 1)

        await sql.transact(self._engine, work)
        await self._read()

    async def follow(self) -> None:
        """Read the rules anew whenever their revision has moved, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                async with sql.reading(self._engine) as connection:
                    revision = await kept_rules.read_revision(connection)
                if revision != self._book.revision:
                    await self._read()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("rules wait to be read", extra={"cause": repr(error)[:300]})

    async def put_rule(self, rule: Rule, *, author: str) -> Version:
        """Keep a new version of a rule that `rules.check` has passed.

        Args:
            rule: `version` is the one it replaces; 0 for a new rule.
            author: `users/{uuid}`.

        Raises:
            Refusal: rule_changed, too_many_rules.
        """
        now = self._now()

        async def work(connection: AsyncConnection) -> Version:
            revision = await kept_rules.lock_revision(connection)
            versions = await kept_rules.read_versions(connection, rule.name)
            version = versions[0].rule.version if versions else 0
            if rule.version != version:
                raise refusals.rule_changed(rule.name, version)
            active = [
                each.rule.name
                for each in await kept_rules.read_rules(connection)
                if each.rule.mode is not Mode.OFF and each.rule.name != rule.name
            ]
            if rule.mode is not Mode.OFF and len(active) >= rules.RULES_MAX:
                raise refusals.too_many_rules(rules.RULES_MAX)
            made = replace(rule, version=version + 1)
            await kept_rules.insert_rules(connection, [made], author=author, now=now)
            await self._changed(
                connection, revision, f"rule {made.name}, version {made.version}", author
            )
            return Version(made, author, now)

        return await self._change(work)

    async def put_entry(self, kept: Kept[Entry]) -> None:
        """Put somebody on a list, or off it."""
        said = f"{kept.what.entity} on the {kept.what.list.name.lower()} list"

        async def work(connection: AsyncConnection) -> None:
            revision = await kept_rules.lock_revision(connection)
            await kept_rules.save_entry(connection, kept)
            await self._changed(connection, revision, said, kept.author)

        await self._change(work)

    async def suppress(self, kept: Kept[Suppression]) -> None:
        """Keep a rule quiet about somebody.

        Raises:
            Refusal: rule_not_found.
        """
        said = f"rule {kept.what.rule} quiet about {kept.what.entity}"

        async def work(connection: AsyncConnection) -> None:
            revision = await kept_rules.lock_revision(connection)
            if not await kept_rules.read_versions(connection, kept.what.rule):
                raise refusals.rule_not_found(kept.what.rule)
            await kept_rules.save_suppression(connection, kept)
            await self._changed(connection, revision, said, kept.author)

        await self._change(work)

    async def _change(self, work: Callable[[AsyncConnection], Awaitable[sql.T]]) -> sql.T:
        done = await sql.transact(self._engine, work)
        self._relay.wake()
        await self._read()
        return done

    async def _changed(
        self, connection: AsyncConnection, revision: int, said: str, author: str
    ) -> None:
        await kept_rules.save_revision(connection, revision + 1)
        event = events.rules_changed(
            self._new_id(), revision + 1, said, actor=author, now=self._now()
        )
        await event_log.append(connection, store.event_log, [event])

    async def _read(self) -> None:
        now = self._now()
        async with sql.reading(self._engine, snapshot=True) as connection:
            revision = await kept_rules.read_revision(connection)
            versions = await kept_rules.read_rules(connection)
            entries = await kept_rules.read_entries(connection, now=now)
            suppressions = await kept_rules.read_suppressions(connection, now=now)
        self._book = RuleBook(
            [_usable(each.rule) for each in versions],
            [each.what for each in entries],
            [each.what for each in suppressions],
            revision=revision,
        )
        log.info("rules read", extra={"rules": len(versions), "revision": revision})


def _usable(rule: Rule) -> Rule:
    """The rule; one that no longer compiles, such as after an update, cannot be computed instead."""
    try:
        compile_expression(rule.expression)
    except ExpressionError as error:
        log.error(  # noqa: TRY400
            "rule cannot be used: what it judged is reviewed",
            extra={"rule": rule.name, "cause": error.problem},
        )
        return replace(rule, expression=_BROKEN)
    return rule
