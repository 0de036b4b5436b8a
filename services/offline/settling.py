"""Settles what terminals have uploaded: has payment move the money, and records the results."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names, sql
from services.offline.clients import Payment
from services.offline.deciding import LEASE, Deciding
from services.offline.domain.item import Entry, Reason, Work
from services.offline.recorder import Recorder
from services.offline.results import Results, may_come_later
from services.offline.store import journals as store
from tallystick.payment.v1 import settlement_service_pb2 as settlement

log = logging.getLogger(__name__)

_GROUP_MAX = 500
# Items in memory beside those on record: forty uploads.
_HANDED_MAX = 20_000
# What was left on record is found within this.
_POLL_SECONDS = 0.25
_AWAY_SECONDS = 0.5
_BACK_OFF_MAX = timedelta(minutes=5)


class Settling:
    """Takes items through their three steps, a group at a time, at any number of replicas.

    1. The transaction that puts an upload on record decides its items, and spends the codes of those that are to be
       paid (`intake`). Items that could not be decided there are decided here.
    2. Payment is asked to settle them, by items that are always the same.
    3. One transaction records the results.

    Whoever dies between the steps leaves items whose lease runs out; anybody goes on from step 2.

    Args:
        recorder: Transactions.
        payment: Whom to ask.
        deciding: Step 1, of items that are on record.
        results: Step 3.
        groups: How many groups are under way at a time.
    """

    def __init__(
        self,
        recorder: Recorder,
        payment: Payment,
        deciding: Deciding,
        results: Results,
        *,
        groups: int,
    ) -> None:
        self._recorder = recorder
        self._payment = payment
        self._deciding = deciding
        self._results = results
        self._groups = groups
        # One for each group that waits: it wakes one of those that have nothing to do.
        self._waiting: asyncio.Queue[None] = asyncio.Queue()
        self._handed: deque[Entry] = deque()

    def hand_over(self, entries: Sequence[Entry]) -> None:
        """Take items that were just decided, as they are: reading 500 back would cost a sixth of all work.

        Nobody else claims them before their lease runs out. Should this process die, or have too many already, they
        are found on record then.
        """
        if entries and len(self._handed) + len(entries) <= _HANDED_MAX:
            self._handed.extend(entries)
            self._waiting.put_nowait(None)

    async def run(self) -> None:
        """Settle until cancelled. Payment and the database may go and come back."""

        async def look_again() -> None:
            await asyncio.sleep(_POLL_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._groups):
                tasks.create_task(self._repeat(self.settle_handed, self._waiting.get))
            tasks.create_task(self._repeat(self.settle_undecided, look_again))
            tasks.create_task(self._repeat(self.settle_left, look_again))

    async def _repeat(
        self, turn: Callable[[], Awaitable[bool]], wait: Callable[[], Awaitable[None]]
    ) -> None:
        while True:
            try:
                if not await turn():
                    await wait()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("settlement waits", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_AWAY_SECONDS)

    async def settle_handed(self) -> bool:
        """Settle one group of what was handed over; False when there is none."""
        handed = [self._handed.popleft() for _ in range(min(len(self._handed), _GROUP_MAX))]
        # What waited for too long may be in other hands by now.
        now = self._recorder.now()
        await self._settle([entry for entry in handed if now < entry.receive_time + LEASE])
        return bool(handed)

    async def settle_undecided(self) -> bool:
        """Take one group of items that intake could not decide through all steps; False when there is none."""
        try:
            decided = await self._recorder.transact(lambda c: self._decide(c, _GROUP_MAX))
        except Exception as error:
            if sql.is_lost(error) or sql.is_conflict(error):
                raise
            # Something in one of them breaks a statement: alone, it holds up only its own.
            log.exception("group failed, items go alone")
            return await self._settle_alone()
        if decided:
            self._recorder.tell()
        await self._settle([entry for entry in decided if entry.work is Work.SETTLE])
        return bool(decided)

    async def _decide(self, connection: AsyncConnection, limit: int) -> list[Entry]:
        """Step 1, for items on record."""
        now = self._recorder.now()
        entries = await store.claim_undecided(connection, now=now, limit=limit)
        if not entries:
            return []
        decided = await self._deciding.decide(connection, entries, now)
        for work, decide_time in ((Work.SETTLE, None), (Work.NOTHING, now)):
            await store.set_verdicts(
                connection,
                [(entry.entry_id, entry.verdict) for entry in decided if entry.work is work],
                work=work,
                due_time=now + LEASE,
                decide_time=decide_time,
            )
        return decided

    async def _settle_alone(self) -> bool:
        for _ in range(_GROUP_MAX):
            try:
                decided = await self._recorder.change(lambda c: self._decide(c, 1))
            except Exception as error:
                if sql.is_lost(error) or sql.is_conflict(error):
                    raise
                log.exception("item failed")
                await self._recorder.transact(self._put_off_first)
                continue
            if not decided:
                return False
            await self._settle([entry for entry in decided if entry.work is Work.SETTLE])
        return True

    async def _put_off_first(self, connection: AsyncConnection) -> None:
        now = self._recorder.now()
        for entry in await store.claim_undecided(connection, now=now, limit=1):
            later = now + _back_off(entry.attempts)
            await store.set_due(connection, [entry.entry_id], due_time=later, tried=True)

    async def settle_left(self) -> bool:
        """Go on with what another process left, or payment could not say; False when more of it gains nothing now."""
        now = self._recorder.now()
        claimed = await self._recorder.transact(
            lambda c: store.claim_unsettled(c, now=now, until=now + LEASE, limit=_GROUP_MAX)
        )
        # Where payment says nothing, asking at once for the next ones would only be more of the same.
        return await self._settle(claimed)

    async def _settle(self, claimed: Sequence[Entry]) -> bool:
        """Steps 2 and 3; whether payment has said anything."""
        if not claimed:
            return False
        answers = await self._ask(claimed)
        told = [
            (entry, answer)
            for entry, answer in zip(claimed, answers, strict=True)
            if answer is not None and not may_come_later(answer)
        ]
        if told:
            await self._results.conclude(told)
        known = {entry.entry_id for entry, _ in told}
        untold = [entry for entry in claimed if entry.entry_id not in known]
        if untold:
            await self._recorder.transact(lambda c: self._put_off(c, untold))
        return bool(told)

    async def _ask(self, entries: Sequence[Entry]) -> Sequence[settlement.OfflineResult | None]:
        """Step 2; None for what payment could not say."""
        try:
            return await self._payment.settle([_payment(entry) for entry in entries])
        except grpc.aio.AioRpcError as error:
            log.warning(
                "payment does not answer",
                extra={"code": error.code().name, "items": len(entries)},
            )
            away = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
            if len(entries) == 1 or error.code() in away:
                return [None] * len(entries)
        # Something in one of them is too much for payment: it must not hold up the others.
        middle = len(entries) // 2
        return [*await self._ask(entries[:middle]), *await self._ask(entries[middle:])]

    async def _put_off(self, connection: AsyncConnection, entries: Sequence[Entry]) -> None:
        now = self._recorder.now()
        by_attempts: dict[int, list[UUID]] = defaultdict(list)
        for entry in entries:
            by_attempts[entry.attempts].append(entry.entry_id)
        for attempts, entry_ids in by_attempts.items():
            later = now + _back_off(attempts)
            await store.set_due(connection, entry_ids, due_time=later, tried=True)


def _back_off(attempts: int) -> timedelta:
    return min(timedelta(seconds=1 << min(attempts, 16)), _BACK_OFF_MAX)


def _payment(entry: Entry) -> settlement.OfflinePayment:
    """What payment is told of an item: the same every time."""
    assert entry.spend is not None
    message = settlement.OfflinePayment.FromString(entry.facts)
    message.payment = names.payment_name(entry.entry_id)
    message.payer = names.user_name(entry.spend.owner_id)
    message.reservation = names.reservation_name(entry.spend.code_id)
    message.hold_reason = "" if entry.hold is Reason.NONE else entry.hold.name
    # The terminal's clock may be behind ours by what it may be.
    age = max(entry.record_time - entry.spend.issue_time, timedelta())
    message.code_age.FromTimedelta(age)
    return message
