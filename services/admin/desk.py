"""Moves cases: on news, on people's decisions, and on to where the decisions take effect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import names, sql, telemetry
from services.admin import events, store
from services.admin.clients import Answer, Owners
from services.admin.domain import case as cases
from services.admin.domain import refusals
from services.admin.domain.case import Case, Decision, Outcome, State
from services.admin.events import Opening, Settling
from services.event_log import Relay, append
from tallystick.event.v1 import event_pb2

log = logging.getLogger(__name__)

_SWEPT_AT_ONCE = 100


class Desk:
    """The one place where cases change.

    A decision that an owner must bring into effect is a saga of three steps:

    1. one transaction records it: OPEN → DECIDING, with decision, decider and reason;
    2. the owner is asked, by a request that is always the same for the case;
    3. one transaction records what the owner said, and that the case closed.

    Whoever dies between the steps leaves a case DECIDING; `sweep` goes on from step 2.

    Args:
        engine: The admin database.
        relay: Woken after every commit.
        owners: Whom to ask.
        now: The clock.
        new_id: Ids of cases and events; UUIDv7, because cases are listed by age.
        sweep_seconds: How often `sweep` looks.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        relay: Relay,
        owners: Owners,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
        sweep_seconds: float,
    ) -> None:
        self._engine = engine
        self._relay = relay
        self._owners = owners
        self._now = now
        self._new_id = new_id
        self._sweep_seconds = sweep_seconds

    async def take(self, event: event_pb2.Event) -> None:
        """Take an event of another service. A second time changes nothing, nor does another order."""
        news = events.news(event)
        if news is None:
            return

        async def lock(connection: AsyncConnection) -> Case | None:
            return await store.lock_subject(connection, news.kind, news.subject_id)

        def change(known: Case | None) -> Case:
            if isinstance(news, Opening):
                return cases.opened(known, self._new_case(news))
            return cases.settled(known, self._unopened(news))

        await self._change(lock, change)

    async def decide(
        self, case_id: UUID, decision: Decision, decider_id: UUID, reason: str
    ) -> Case:
        """A person decides. Answers the case with the decision in effect.

        Raises:
            Refusal: case_not_found, case_decided, decision_pending, decision_refused.
        """

        async def lock(connection: AsyncConnection) -> Case | None:
            return await store.lock_case(connection, case_id)

        def change(known: Case | None) -> Case:
            if known is None:
                raise refusals.case_not_found(names.case_name(case_id))
            return cases.decide(known, decision, decider_id, reason, now=self._now())

        case = await self._change(lock, change)
        if case.state is not State.DECIDING:
            return case
        owner = case.owner
        assert owner is not None
        case, answer = await self._bring_into_effect(case)
        if case.state in {State.APPROVED, State.REJECTED} and cases.is_decision_of(
            case, decision, decider_id
        ):
            return case
        if answer.outcome is Outcome.UNKNOWN and case.state is State.DECIDING:
            raise refusals.decision_pending(owner.value)
        if answer.outcome is Outcome.REFUSED:
            raise refusals.decision_refused(owner.value, answer.cause)
        raise refusals.case_decided(case.state.name, case.decider)

    async def sweep(self) -> None:
        """Go on with what is DECIDING, at once and then every `sweep_seconds`, until cancelled."""
        while True:
            try:
                await self._sweep()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("sweep waits", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(self._sweep_seconds)

    async def _sweep(self) -> None:
        after: UUID | None = None
        away = set()
        while True:
            async with sql.reading(self._engine) as connection:
                found = await store.list_deciding(connection, after=after, limit=_SWEPT_AT_ONCE)
            for case in found:
                if case.owner not in away:
                    _, answer = await self._bring_into_effect(case)
                    if answer.outcome is Outcome.UNKNOWN:
                        away.add(case.owner)
            if len(found) < _SWEPT_AT_ONCE:
                return
            after = found[-1].case_id

    async def _bring_into_effect(self, asked: Case) -> tuple[Case, Answer]:
        answer = await self._owners.ask(asked)

        async def lock(connection: AsyncConnection) -> Case | None:
            return await store.lock_case(connection, asked.case_id)

        def change(known: Case | None) -> Case:
            assert known is not None
            return cases.conclude(known, asked, answer.outcome, now=self._now())

        return await self._change(lock, change), answer

    async def _change(
        self,
        lock: Callable[[AsyncConnection], Awaitable[Case | None]],
        change: Callable[[Case | None], Case],
    ) -> Case:
        """Read under a lock, decide, record, tell: one transaction."""

        async def work(connection: AsyncConnection) -> Case:
            before = await lock(connection)
            after = change(before)
            if after == before:
                return after
            if before is None:
                await store.insert_case(connection, after)
            else:
                await store.update_case(connection, after)
            now, trace_id = self._now(), telemetry.trace_id()
            told = [
                events.event_of(fact, after, new_id=self._new_id, now=now, trace_id=trace_id)
                for fact in cases.facts(before, after)
            ]
            await append(connection, store.event_log, told)
            return after

        case = await sql.transact(self._engine, work)
        self._relay.wake()
        return case

    def _new_case(self, news: Opening) -> Case:
        return Case(
            case_id=self._new_id(),
            kind=news.kind,
            subject_id=news.subject_id,
            state=State.OPEN,
            subject=news.subject,
            create_time=news.time,
        )

    def _unopened(self, news: Settling) -> Case:
        return Case(
            case_id=self._new_id(),
            kind=news.kind,
            subject_id=news.subject_id,
            state=State.UNOPENED,
            decide_time=news.time,
        )
