"""Step 3 of settlement: what payment has said of items, and what reviewers decide of held ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names
from services.offline import events
from services.offline.domain import settlement as rules
from services.offline.domain.code import State as CodeState
from services.offline.domain.item import Entry, State, Verdict, Work
from services.offline.domain.settlement import Paid
from services.offline.events import PLATFORM, Circumstances
from services.offline.recorder import Recorder
from services.offline.store import codes as code_store
from services.offline.store import journals as store
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import settlement_service_pb2 as settlement

# News of a review comes by the event stream; this is for news that Redis lost.
_WATCH_EVERY = timedelta(minutes=10)

# Of what payment says no to: the code is as it was, and the money behind it too.
_GIVE_BACK = frozenset(
    {
        "CURRENCY_MISMATCH",
        "AMOUNT_OVER_RESERVATION",
        "SELF_PAYMENT",
        "VENDOR_NOT_FOUND",
        "FIELDS_INVALID",
    }
)
# Ours and the ledger's books differ: nothing may be made of it but a person's work. `tallystick audit` names it.
_DIVERGED = frozenset(
    {"RESERVATION_NOT_FOUND", "RESERVATION_SETTLED", "RESERVATION_RELEASED", "PAYMENT_EXISTS"}
)


class _OvertakenError(Exception):
    """Somebody else had a hand in one of the items."""


class Results:
    """Records the results of items.

    Args:
        recorder: Transactions.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def conclude(self, told: Sequence[tuple[Entry, settlement.OfflineResult]]) -> None:
        """Record what payment said of each. What somebody else has concluded meanwhile stays as it is."""
        if all(entry.work is Work.SETTLE for entry, _ in told):
            # Nearly always they are as they were handed over, and the writes tell: looking first is half of the work.
            as_known = [(entry, answer, None) for entry, answer in told]
            with contextlib.suppress(_OvertakenError):
                return await self._recorder.change(
                    lambda c: self._conclude(c, as_known, untouched=True)
                )
        return await self._recorder.change(lambda c: self._look_and_conclude(c, told))

    async def _look_and_conclude(
        self,
        connection: AsyncConnection,
        told: Sequence[tuple[Entry, settlement.OfflineResult]],
    ) -> None:
        left = await store.lock_work(connection, [entry.entry_id for entry, _ in told])
        open_ones = [
            (entry, answer, review)
            for entry, answer in told
            for work, review in [left[entry.entry_id]]
            if work is entry.work
        ]
        await self._conclude(connection, open_ones, untouched=False)

    async def _conclude(
        self,
        connection: AsyncConnection,
        told: Sequence[tuple[Entry, settlement.OfflineResult, bool | None]],
        *,
        untouched: bool,
    ) -> None:
        """Record what payment said of each, given what a reviewer did.

        Raises:
            _OvertakenError: one of those said to be untouched is not. Nothing may be committed.
        """
        now = self._recorder.now()
        watch_time = now + _WATCH_EVERY
        held: list[tuple[UUID, Verdict]] = []
        ended: list[tuple[UUID, Verdict]] = []
        still_held: list[UUID] = []
        given_back: list[Entry] = []
        facts: list[event_pb2.Event] = []
        circumstances = Circumstances(PLATFORM, now)
        for entry, answer, review in told:
            verdict = _verdict(entry, answer, review)
            if entry.state is verdict.state:
                still_held.append(entry.entry_id)
                continue
            (held if verdict.state is State.HELD else ended).append((entry.entry_id, verdict))
            if answer.HasField("refusal") and answer.refusal.reason in _GIVE_BACK:
                given_back.append(entry)
            event_id = self._recorder.new_id()
            facts.append(events.item_decided(event_id, circumstances, entry, verdict))
        await store.set_due(connection, still_held, due_time=watch_time, tried=False)
        written = 0
        for some, work, due_time in (
            (held, Work.WATCH, watch_time),
            (ended, Work.NOTHING, now),
        ):
            written += await store.set_verdicts(
                connection, some, work=work, due_time=due_time, decide_time=now, untouched=untouched
            )
        if written < len(held) + len(ended):
            raise _OvertakenError
        await _give_back(connection, given_back, now)
        await self._recorder.record(connection, facts)

    async def review(self, event: event_pb2.Event) -> None:
        """Take up what a reviewer decided of a held payment. Payments of another kind are none of ours."""
        approved = events.review(event)
        entry_id = names.last_id(event.subject)

        async def work(connection: AsyncConnection) -> None:
            for entry in await store.lock_entries(connection, [entry_id]):
                if approved is None or entry.item_id is None:
                    return
                if entry.work is Work.SETTLE:
                    # The review was faster than our own record of the hold, which takes it up.
                    await store.set_review(connection, entry_id, approved=approved)
                elif entry.state is State.HELD:
                    await self._end_hold(connection, entry, event, approved=approved)

        await self._recorder.change(work)

    async def _end_hold(
        self,
        connection: AsyncConnection,
        entry: Entry,
        event: event_pb2.Event,
        *,
        approved: bool,
    ) -> None:
        now = self._recorder.now()
        verdict = rules.conclude(entry, Paid.SUCCESS if approved else Paid.FAILED)
        await store.set_verdicts(
            connection,
            [(entry.entry_id, verdict)],
            work=Work.NOTHING,
            due_time=now,
            decide_time=now,
        )
        circumstances = Circumstances(event.actor, now, event.trace_id)
        fact = events.item_decided(self._recorder.new_id(), circumstances, entry, verdict)
        await self._recorder.record(connection, [fact])


_PAID = {
    payment_pb2.Payment.STATE_SUCCESS: Paid.SUCCESS,
    payment_pb2.Payment.STATE_FLAGGED: Paid.FLAGGED,
    payment_pb2.Payment.STATE_FAILED: Paid.FAILED,
}


def _verdict(
    entry: Entry,
    answer: settlement.OfflineResult,
    review: bool | None,  # noqa: FBT001
) -> Verdict:
    if answer.HasField("refusal"):
        refusal = answer.refusal
        return rules.refused_by_payment(refusal.reason, refusal.message)
    paid = _PAID[answer.payment.state]
    if paid is Paid.FLAGGED and review is not None:
        paid = Paid.SUCCESS if review else Paid.FAILED
    return rules.conclude(entry, paid, answer.payment.risk.reasons)


def may_come_later(answer: settlement.OfflineResult) -> bool:
    """Payment said no, and may say yes another time: a full wallet, a full queue, a defect that is mended."""
    return answer.HasField("refusal") and answer.refusal.reason not in _GIVE_BACK | _DIVERGED


async def _give_back(connection: AsyncConnection, entries: Sequence[Entry], now: datetime) -> None:
    """The codes of items that payment refused can be spent again, or go back to their owners."""
    if not entries:
        return
    code_ids = [entry.spend.code_id for entry in entries if entry.spend is not None]
    await code_store.delete_spends(connection, code_ids)
    codes = await code_store.lock_codes(connection, code_ids)
    for revoked, state in ((False, CodeState.ISSUED), (True, CodeState.REVOKED)):
        some = [
            code.code_id for code in codes.values() if (code.revoke_time is not None) is revoked
        ]
        if some:
            await code_store.set_state(connection, some, state, now=now)
