"""Step 1 of settlement: what becomes of items, and which codes they spend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.offline import events, wire
from services.offline.domain import double_spend as double_spends
from services.offline.domain import settlement as rules
from services.offline.domain.code import Code
from services.offline.domain.code import State as CodeState
from services.offline.domain.double_spend import DoubleSpend
from services.offline.domain.item import Entry, Proof, Reason, Spend, State, Verdict, Work
from services.offline.domain.right import Level, Mark, Source
from services.offline.domain.terminal import Terminal
from services.offline.events import PLATFORM, Circumstances
from services.offline.recorder import Recorder
from services.offline.rights import Rights
from services.offline.store import codes as code_store
from services.offline.store import double_spends as double_spend_store
from services.offline.store import journals as store
from services.offline.store import terminals as terminal_store
from tallystick.event.v1 import event_pb2

# Longer than payment is given to answer: then its replica is taken for dead, and another one asks again.
LEASE = timedelta(seconds=30)
# New items are handed over in memory. So long nobody else looks for them on record.
HANDED_OVER = timedelta(seconds=5)
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


class Deciding:
    """Claims items, decides them and spends their codes, a group in a transaction.

    Args:
        recorder: Transactions.
        rights: Suspended, when one code was spent at two vendors.
    """

    def __init__(self, recorder: Recorder, rights: Rights) -> None:
        self._recorder = recorder
        self._rights = rights

    async def decide(
        self, connection: AsyncConnection, limit: int, handed: Sequence[Entry] = ()
    ) -> tuple[list[Entry], int]:
        """Claim and decide; answers the items payment is to be asked about, and how many there were in all.

        Args:
            connection: In a transaction.
            limit: How many to claim at most.
            handed: Items to claim, as they were put on record; none to look for those that wait.
        """
        now = self._recorder.now()
        if handed:
            left = await store.lock_work(connection, [entry.entry_id for entry in handed])
            entries = [entry for entry in handed if left[entry.entry_id][0] is Work.DECIDE]
        else:
            entries = await store.claim_undecided(connection, now=now, limit=limit)
        if not entries:
            return [], len(handed)
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
            events.item_decided(self._recorder.new_id(), circumstances, by_id[entry_id], verdict)
            for entry_id, verdict in refused
        ]
        await self._accuse(connection, group, by_id, circumstances, facts)
        await self._recorder.record(connection, facts)
        spending = [
            _spending(entry, code, group.verdicts[entry.entry_id]) for code, entry in group.spent
        ]
        return spending, len(entries)

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
            connection, paid, work=Work.SETTLE, due_time=now + LEASE, decide_time=None
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
            second = rules.decided(entries[found.second_entry], verdict, now=circumstances.time)
            message = wire.double_spend_message(found, known[found.first_entry], second)
            facts.append(events.double_spend_found(self._recorder.new_id(), circumstances, message))
        for vendor_id, times in sorted(group.strikes.items()):
            await terminal_store.strike(connection, vendor_id, times)
        for owner_id in sorted(group.suspended):
            await self._rights.put_in(
                connection, owner_id, Source.DOUBLE_SPEND, _SUSPENDED, circumstances
            )


def _spending(entry: Entry, code: Code, verdict: Verdict) -> Entry:
    spend = Spend(code.code_id, code.owner_id, code.value.minor_units, code.issue_time)
    return replace(
        entry,
        hold=verdict.reason,
        reason=verdict.reason,
        detail=verdict.detail,
        work=Work.SETTLE,
        spend=spend,
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
