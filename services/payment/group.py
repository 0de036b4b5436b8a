"""Group commit: while one group of commands commits, the next one forms and is assessed.

A commit costs the same for one payment as for a hundred: a group is whatever has come while the one before it was busy,
up to a bound. Source: design, section 4; DeWitt et al., "Implementation techniques for main
memory database systems", 1984 (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from opentelemetry import metrics
from opentelemetry.trace import SpanContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, sql, telemetry
from services.payment import events, store, wire
from services.payment.domain.book import Outcome, Policy
from services.payment.domain.commands import Command, CreatePayment, SettlePending
from services.payment.domain.offline_commands import RESERVING, SettleOffline
from services.payment.domain.payment import Decision, Risk
from services.refusal import Refusal
from services.rpc import refusals
from tallystick.fraud.v1 import fraud_service_pb2

log = logging.getLogger(__name__)

# The fraud service's word when it does not answer.
DEGRADED = Risk(Decision.DEGRADED, 0, ("FRAUD_UNAVAILABLE",))
_OVERLOAD_RETRY = timedelta(seconds=1)

Assess = Callable[
    [Sequence[fraud_service_pb2.PaymentFacts]],
    Awaitable[Sequence[fraud_service_pb2.Assessment] | None],
]


class Asked(NamedTuple):
    """A command, as it is submitted.

    Attributes:
        command: What to do.
        facts: What to ask the fraud service first; None for what needs no assessment.
        owner_ids: Accounts a refusal may rest on. Nothing to the group, which knows what the ledger knows.
    """

    command: Command
    facts: fraud_service_pb2.PaymentFacts | None = None
    owner_ids: tuple[UUID, ...] = ()


class Call:
    """Commands that were submitted together: one future for all of them, however many groups they go through.

    Attributes:
        done: Resolves when there is an answer for each. Cancelled when the caller went away.
        answers: In the order submitted; an exception is one too.
    """

    __slots__ = ("_left", "answers", "done")

    def __init__(self, count: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: list[Outcome | Exception] = [None] * count
        self._left = count

    def answer(self, place: int, answer: Outcome | Exception) -> None:
        """Answer one command, once."""
        self.answers[place] = answer
        self._left -= 1
        # The caller may be gone: what became of its commands is found by their ids.
        if not self._left and not self.done.done():
            self.done.set_result(None)


@dataclass(slots=True)
class Member:
    """A command on its way through a group.

    Attributes:
        command: What to do.
        facts: What to ask the fraud service first; None for what needs no assessment.
        call: Where it is answered.
        place: Its place among the commands of that call.
        trace: The trace it belongs to.
    """

    command: Command
    facts: fraud_service_pb2.PaymentFacts | None
    call: Call
    place: int
    trace: SpanContext | None


class Group:
    """The one way commands reach the ledger.

    Args:
        engine: The ledger's database.
        policy: Limits, for the commands.
        assess: Asks the fraud service; None when it does not answer.
        committed: Called after every commit that changed something.
        now: The clock.
        new_id: Ids of events.
        pace: How long after the start of a group the next one may start, now; a full one need not wait.
        size_max: Commands in one transaction.
        queue_max: Commands that may wait.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        policy: Policy,
        *,
        assess: Assess,
        committed: Callable[[], None],
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
        pace: Callable[[], float],
        size_max: int,
        queue_max: int,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._ask_fraud = assess
        self._committed = committed
        self._now = now
        self._new_id = new_id
        self._pace = pace
        self._size_max = size_max
        self._queue_max = queue_max
        self._queue: deque[Member] = deque()
        self._filled = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._sizes = metrics.get_meter("tallystick.payment").create_histogram(
            "tallystick.payment.group_size", "{command}", "Commands in one transaction"
        )

    async def submit(
        self, command: Command, facts: fraud_service_pb2.PaymentFacts | None = None
    ) -> Outcome:
        """Carry out a command; answers when it is committed.

        A caller that goes away does not stop it.

        Raises:
            Refusal: what the command raises, or overloaded.
        """
        (answer,) = await self.submit_all([Asked(command, facts)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit_all(self, asked: Sequence[Asked]) -> list[Outcome | Exception]:
        """Carry out commands, in their order, in as few groups as hold them; answers when the last is committed.

        One answer for each, in the order asked: its outcome, or what `submit` would have raised. What does not fit
        into the queue is refused, and takes no other with it. A caller that goes away does not stop them.
        """
        if not asked:
            return []
        call = Call(len(asked))
        trace = telemetry.current()
        for place, (command, facts, _) in enumerate(asked):
            if len(self._queue) < self._queue_max:
                self._queue.append(Member(command, facts, call, place, trace))
            else:
                call.answer(place, refusals.overloaded(_OVERLOAD_RETRY))
        self._filled.set()
        if len(self._queue) >= self._size_max:
            self._full.set()
        await call.done
        return call.answers

    async def run(self) -> None:
        """Form groups until `close`; what is queued then is still carried out."""
        committing: asyncio.Task[None] | None = None
        clock = asyncio.get_running_loop().time
        began = -math.inf
        while self._queue or not self._closing:
            if not self._queue:
                self._filled.clear()
                await self._filled.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began + self._pace()):
                    await self._full.wait()
            began = clock()
            members = self._take()
            await self._assess(members)
            if committing is not None:
                await committing
            committing = asyncio.create_task(self._commit(members))
        if committing is not None:
            await committing

    def close(self) -> None:
        """Let `run` end once the queue is empty.

        It is not cancelled: that would reach a group on its way to the database, and nobody would answer its members.
        """
        self._closing = True
        self._filled.set()
        self._full.set()

    def _take(self) -> list[Member]:
        size = min(len(self._queue), self._size_max)
        taken = [self._queue.popleft() for _ in range(size)]
        if len(self._queue) < self._size_max and not self._closing:
            self._full.clear()
        return taken

    async def _assess(self, members: list[Member]) -> None:
        asked = [member for member in members if member.facts is not None]
        if not asked:
            return
        with telemetry.shared_span("payment.assess", (member.trace for member in asked)):
            answers = await self._ask_fraud([member.facts for member in asked if member.facts])
        risks = [DEGRADED] * len(asked) if answers is None else map(wire.risk, answers)
        for member, risk in zip(asked, risks, strict=True):
            assert isinstance(member.command, CreatePayment | SettlePending | SettleOffline)
            member.command = member.command._replace(risk=risk)

    async def _commit(self, members: list[Member]) -> None:
        self._sizes.record(len(members))
        try:
            with telemetry.shared_span("payment.commit", (member.trace for member in members)):
                outcomes = await sql.transact(
                    self._engine, lambda connection: self._decide(connection, members)
                )
        except Exception as error:
            if len(members) > 1 and not (sql.is_lost(error) or sql.is_conflict(error)):
                # Something in one of them breaks the statement: alone, it breaks only its own.
                log.exception("group failed, members go alone", extra={"size": len(members)})
                for member in members:
                    await self._commit([member])
                return
            for member in members:
                member.call.answer(member.place, error)
            return
        self._committed()
        for member, outcome in zip(members, outcomes, strict=True):
            member.call.answer(member.place, outcome)

    async def _decide(
        self, connection: AsyncConnection, members: list[Member]
    ) -> list[Outcome | Refusal]:
        commands = [member.command for member in members]
        book = await store.open_book(
            connection,
            self._policy,
            keys={key for command in commands for key in command.wallets()},
            payment_ids={found for command in commands for found in command.payments()},
            request_keys={command.request.key for command in commands if command.request},
            reservation_ids={
                found
                for command in commands
                if isinstance(command, RESERVING)
                for found in command.reservations()
            },
        )
        now = self._now()
        outcomes: list[Outcome | Refusal] = []
        traces: list[str] = []
        for member in members:
            try:
                outcomes.append(member.command.decide(book, now))
            except Refusal as refusal:
                outcomes.append(refusal)
            trace_id = f"{member.trace.trace_id:032x}" if member.trace else ""
            traces += [trace_id] * (len(book.facts) - len(traces))
        await store.save(connection, book, now=now)
        recorded = events.events(zip(book.facts, traces, strict=True), new_id=self._new_id)
        await event_log.append(connection, store.event_log, recorded)
        return outcomes
