"""Settles what terminals have uploaded: spends codes, has payment move the money, records the results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from services import names, sql
from services.offline import events, wire
from services.offline.clients import Payment
from services.offline.domain import double_spend as double_spends
from services.offline.domain import settlement as rules
from services.offline.domain.code import Code
from services.offline.domain.code import State as CodeState
from services.offline.domain.double_spend import DoubleSpend
from services.offline.domain.item import Entry, Proof, Reason, Spend, State, Verdict, Work
from services.offline.domain.right import Level, Mark, Source
from services.offline.domain.settlement import Paid
from services.offline.domain.terminal import Terminal
from services.offline.events import PLATFORM, Circumstances
from services.offline.recorder import Recorder
from services.offline.rights import Rights
from services.offline.store import codes as code_store
from services.offline.store import double_spends as double_spend_store
from services.offline.store import journals as store
from services.offline.store import terminals as terminal_store
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import settlement_service_pb2 as settlement

log = logging.getLogger(__name__)

_GROUP_MAX = 500
# Longer than payment is given to answer: then its replica is taken for dead, and another one asks again.
_LEASE = timedelta(seconds=30)
# What another replica received is found within this.
_POLL_SECONDS = 0.25
_AWAY_SECONDS = 0.5
_BACK_OFF_MAX = timedelta(minutes=5)
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
_SUSPENDED = Mark(Level.SUSPENDED, "One of your codes was spent at two vendors.")


@dataclass(slots=True)
class _Group:
    """What one transaction decides of a group of items.

    Attributes:
        spent: Codes and the entries that spend them.
        verdicts: Of every item, by entry.
        doubles: Double spends that were found.
        suspended: Owners whose codes two vendors took.
        strikes: Vendors whose own terminals took a code twice, and how often.
    """

    spent: list[tuple[Code, Entry]] = field(default_factory=list)
    verdicts: dict[UUID, Verdict] = field(default_factory=dict)
    doubles: list[DoubleSpend] = field(default_factory=list)
    suspended: set[UUID] = field(default_factory=set)
    strikes: Counter[UUID] = field(default_factory=Counter)


class Settling:
    """Takes items through their three steps, a group at a time, at any number of replicas.

    1. One transaction claims items that wait, decides each, and spends the codes of those that are to be paid.
    2. Payment is asked to settle them, by items that are always the same.
    3. One transaction records the results.

    Whoever dies between the steps leaves items whose lease runs out; anybody goes on from step 2.

    Args:
        recorder: Transactions.
        payment: Whom to ask.
        rights: Suspended, when one code was spent at two vendors.
        groups: How many groups are under way at a time.
    """

    def __init__(
        self, recorder: Recorder, payment: Payment, rights: Rights, *, groups: int
    ) -> None:
        self._recorder = recorder
        self._payment = payment
        self._rights = rights
        self._groups = groups
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something arrived."""
        self._wake.set()

    async def run(self) -> None:
        """Settle until cancelled. Payment and the database may go and come back."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self.settle_new, _POLL_SECONDS))
            # One looks whether there is work; the others help when there is.
            for _ in range(self._groups - 1):
                tasks.create_task(self._repeat(self.settle_new, None))
            tasks.create_task(self._repeat(self.settle_left, _POLL_SECONDS))

    async def _repeat(
        self, turn: Callable[[], Awaitable[bool]], poll_seconds: float | None
    ) -> None:
        while True:
            try:
                if await turn():
                    continue
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(poll_seconds):
                        await self._wake.wait()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("settlement waits", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_AWAY_SECONDS)

    async def settle_new(self) -> bool:
        """Take one group through all steps; False when nothing waits."""
        try:
            claimed, found = await self._recorder.transact(lambda c: self._decide(c, _GROUP_MAX))
        except Exception as error:
            if sql.is_lost(error) or sql.is_conflict(error):
                raise
            # Something in one of them breaks a statement: alone, it holds up only its own.
            log.exception("group failed, items go alone")
            return await self._settle_alone()
        if found:
            self._recorder.tell()
            self._wake.set()
        await self._settle(claimed)
        return found

    async def _settle_alone(self) -> bool:
        for _ in range(_GROUP_MAX):
            try:
                claimed, found = await self._recorder.change(lambda c: self._decide(c, 1))
            except Exception as error:
                if sql.is_lost(error) or sql.is_conflict(error):
                    raise
                log.exception("item failed")
                await self._recorder.transact(self._put_off_first)
                continue
            if not found:
                return False
            await self._settle(claimed)
        return True

    async def _put_off_first(self, connection: AsyncConnection) -> None:
        now = self._recorder.now()
        for entry in await store.claim_undecided(connection, now=now, limit=1):
            later = now + _back_off(entry.attempts)
            await store.set_due(connection, [entry.entry_id], due_time=later, tried=True)

    async def settle_left(self) -> bool:
        """Go on with what another process left, or payment could not say; False when nothing waits."""
        now = self._recorder.now()
        claimed = await self._recorder.transact(
            lambda c: store.claim_unsettled(c, now=now, until=now + _LEASE, limit=_GROUP_MAX)
        )
        await self._settle(claimed)
        # Never twice in a row: what is put off is not due at once, and new items come first.
        return False

    async def _decide(self, connection: AsyncConnection, limit: int) -> tuple[list[Entry], bool]:
        """Step 1: claim and decide; answers the items payment is to be asked about, and whether there were any."""
        now = self._recorder.now()
        entries = await store.claim_undecided(connection, now=now, limit=limit)
        if not entries:
            return [], False
        group = await self._judge(connection, entries, now)
        await self._spend(connection, group, now)
        circumstances = Circumstances(PLATFORM, now)
        refused = [
            (entry_id, verdict)
            for entry_id, verdict in group.verdicts.items()
            if verdict.state is State.REFUSED
        ]
        await store.set_verdicts(
            connection, refused, work=Work.NOTHING, due_time=now, decide_time=now
        )
        by_id = {entry.entry_id: entry for entry in entries}
        facts = [
            events.item_decided(
                self._recorder.new_id(), circumstances, _decided(by_id[entry_id], verdict, now)
            )
            for entry_id, verdict in refused
        ]
        await self._accuse(connection, group, by_id, circumstances, facts)
        await self._recorder.record(connection, facts)
        return [
            _spending(entry, code, group.verdicts[entry.entry_id]) for code, entry in group.spent
        ], True

    async def _judge(
        self, connection: AsyncConnection, entries: Sequence[Entry], now: datetime
    ) -> _Group:
        codes = await _codes(connection, entries)
        terminals = await terminal_store.find_terminals(
            connection, {entry.terminal_id for entry in entries}
        )
        active = await terminal_store.active_vendors(
            connection, {entry.vendor_id for entry in entries}
        )
        spent = {code.code_id for code in codes.values() if code.state is CodeState.SPENT}
        spenders = await _spenders(connection, spent)
        group = _Group()
        for entry in entries:
            code = codes.get((entry.proof, entry.proof_hash))
            first = None if code is None else spenders.get(code.code_id)
            if code is not None and first is not None:
                # Perhaps by an item of this very group.
                code = replace(code, state=CodeState.SPENT)
            verdict = self._verdict(entry, code, first, terminals, active)
            group.verdicts[entry.entry_id] = verdict
            if verdict.state is State.RECEIVED:
                assert code is not None
                group.spent.append((code, entry))
                spenders[code.code_id] = entry
            elif verdict.reason is Reason.DUPLICATE_CODE:
                assert code is not None
                assert first is not None
                self._found_twice(group, code, first, entry, now)
        return group

    def _verdict(
        self,
        entry: Entry,
        code: Code | None,
        first: Entry | None,
        terminals: Mapping[UUID, Terminal],
        active: Mapping[UUID, bool],
    ) -> Verdict:
        terminal = terminals[entry.terminal_id]
        return rules.decide(
            entry,
            code,
            scope=terminal.scope,
            terminal_revoke_time=terminal.revoke_time,
            vendor_active=active.get(entry.vendor_id, False),
            spent_by_same_vendor=first is not None and first.vendor_id == entry.vendor_id,
        )

    def _found_twice(
        self, group: _Group, code: Code, first: Entry, second: Entry, now: datetime
    ) -> None:
        group.doubles.append(
            double_spends.found(
                code, first, second, double_spend_id=self._recorder.new_id(), now=now
            )
        )
        if first.vendor_id == second.vendor_id:
            group.strikes[second.vendor_id] += 1
        else:
            group.suspended.add(code.owner_id)

    async def _spend(self, connection: AsyncConnection, group: _Group, now: datetime) -> None:
        if not group.spent:
            return
        code_ids = [code.code_id for code, _ in group.spent]
        await code_store.set_state(connection, code_ids, CodeState.SPENT, now=now)
        await code_store.insert_spends(connection, group.spent)
        paid = [(entry.entry_id, group.verdicts[entry.entry_id]) for _, entry in group.spent]
        await store.set_verdicts(
            connection, paid, work=Work.SETTLE, due_time=now + _LEASE, decide_time=None
        )

    async def _accuse(
        self,
        connection: AsyncConnection,
        group: _Group,
        entries: Mapping[UUID, Entry],
        circumstances: Circumstances,
        facts: list[event_pb2.Event],
    ) -> None:
        """Record double spends, and what they do to their payers and vendors."""
        if not group.doubles:
            return
        await double_spend_store.insert_double_spends(connection, group.doubles)
        firsts = await store.find_entries(
            connection, {found.first_entry for found in group.doubles}
        )
        known = {entry.entry_id: entry for entry in firsts}
        for found in group.doubles:
            verdict = group.verdicts[found.second_entry]
            second = _decided(entries[found.second_entry], verdict, circumstances.time)
            message = wire.double_spend_message(found, known[found.first_entry], second)
            facts.append(events.double_spend_found(self._recorder.new_id(), circumstances, message))
        for vendor_id, times in sorted(group.strikes.items()):
            await terminal_store.strike(connection, vendor_id, times)
        for owner_id in sorted(group.suspended):
            await self._rights.put_in(
                connection, owner_id, Source.DOUBLE_SPEND, _SUSPENDED, circumstances
            )

    async def _settle(self, claimed: Sequence[Entry]) -> None:
        """Steps 2 and 3."""
        if not claimed:
            return
        answers = await self._ask(claimed)
        told = [
            (entry, answer)
            for entry, answer in zip(claimed, answers, strict=True)
            if answer is not None and not _may_come_later(answer)
        ]
        if told:
            await self._recorder.change(lambda c: self._conclude(c, told))
        known = {entry.entry_id for entry, _ in told}
        untold = [entry for entry in claimed if entry.entry_id not in known]
        if untold:
            await self._recorder.transact(lambda c: self._put_off(c, untold))

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

    async def _conclude(
        self,
        connection: AsyncConnection,
        told: Sequence[tuple[Entry, settlement.OfflineResult]],
    ) -> None:
        """Step 3. What somebody else has concluded meanwhile stays as it is."""
        now = self._recorder.now()
        watch_time = now + _WATCH_EVERY
        held: list[tuple[UUID, Verdict]] = []
        ended: list[tuple[UUID, Verdict]] = []
        still_held: list[UUID] = []
        given_back: list[Entry] = []
        facts: list[event_pb2.Event] = []
        circumstances = Circumstances(PLATFORM, now)
        left = await store.lock_work(connection, [entry.entry_id for entry, _ in told])
        for entry, answer in told:
            work, review = left[entry.entry_id]
            if work is not entry.work:
                continue
            verdict = _verdict(entry, answer, review)
            if entry.state is verdict.state:
                still_held.append(entry.entry_id)
                continue
            (held if verdict.state is State.HELD else ended).append((entry.entry_id, verdict))
            if answer.HasField("refusal") and answer.refusal.reason in _GIVE_BACK:
                given_back.append(entry)
            after = _decided(entry, verdict, now)
            facts.append(events.item_decided(self._recorder.new_id(), circumstances, after))
        await _give_back(connection, given_back, now)
        await store.set_due(connection, still_held, due_time=watch_time, tried=False)
        await store.set_verdicts(
            connection, held, work=Work.WATCH, due_time=watch_time, decide_time=now
        )
        await store.set_verdicts(
            connection, ended, work=Work.NOTHING, due_time=now, decide_time=now
        )
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
        fact = events.item_decided(
            self._recorder.new_id(), circumstances, _decided(entry, verdict, now)
        )
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


def _may_come_later(answer: settlement.OfflineResult) -> bool:
    """Payment said no, and may say yes another time: a full wallet, a full queue, a defect that is mended."""
    return answer.HasField("refusal") and answer.refusal.reason not in _GIVE_BACK | _DIVERGED


def _back_off(attempts: int) -> timedelta:
    return min(timedelta(seconds=1 << min(attempts, 16)), _BACK_OFF_MAX)


def _payment(entry: Entry) -> settlement.OfflinePayment:
    """What payment is told of an item: the same every time."""
    assert entry.spend is not None
    message = settlement.OfflinePayment.FromString(entry.facts)
    message.payment = names.payment_name(entry.entry_id)
    message.reservation = names.reservation_name(entry.spend.code_id)
    message.hold_reason = entry.reason.name if entry.reason is not Reason.NONE else ""
    # The terminal's clock may be behind ours by what it may be.
    age = max(entry.record_time - entry.spend.issue_time, timedelta())
    message.code_age.FromTimedelta(age)
    return message


def _spending(entry: Entry, code: Code, verdict: Verdict) -> Entry:
    spend = Spend(code.code_id, code.owner_id, code.value.minor_units, code.issue_time)
    return replace(
        entry, reason=verdict.reason, detail=verdict.detail, work=Work.SETTLE, spend=spend
    )


def _decided(entry: Entry, verdict: Verdict, now: datetime) -> Entry:
    return replace(
        entry,
        state=verdict.state,
        reason=verdict.reason,
        detail=verdict.detail,
        liability=verdict.liability,
        decide_time=now,
    )


async def _codes(
    connection: AsyncConnection, entries: Sequence[Entry]
) -> dict[tuple[Proof, bytes], Code]:
    """What the items' proofs stand for, held until the transaction ends."""
    found: dict[tuple[Proof, bytes], Code] = {}
    for proof in (Proof.CODE, Proof.VOUCHER):
        hashes = {entry.proof_hash for entry in entries if entry.proof is proof}
        locked = await code_store.lock_by_proof(connection, proof, hashes - {b""})
        found.update(((proof, proof_hash), code) for proof_hash, code in locked.items())
    return found


async def _spenders(connection: AsyncConnection, code_ids: Collection[UUID]) -> dict[UUID, Entry]:
    """The entries that spent some codes, by code."""
    if not code_ids:
        return {}
    spenders = await code_store.spenders(connection, code_ids)
    ids = [entry_id for entry_id, _ in spenders.values()]
    entries = {entry.entry_id: entry for entry in await store.find_entries(connection, ids)}
    return {code_id: entries[entry_id] for code_id, (entry_id, _) in spenders.items()}


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
