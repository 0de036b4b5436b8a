"""Step 1 of settlement: what becomes of items, and which codes they spend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

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
LEASE = timedelta(seconds=12)
_SUSPENDED = Mark(Level.SUSPENDED, "One of your codes was spent at two vendors.")


@dataclass(slots=True)
class _Group:
    """What one transaction decides of a group of items.

    Attributes:
        decided: Every item with its result.
        spent: Codes, and those of the items that spend them.
        doubles: Double spends that were found, with the item that was first and the one that is too late.
        suspended: Owners whose codes two vendors took.
        strikes: Vendors whose own terminals took a code twice, and how often.
    """

    decided: list[Entry] = field(default_factory=list)
    spent: list[tuple[Code, Entry]] = field(default_factory=list)
    doubles: list[tuple[DoubleSpend, Entry, Entry]] = field(default_factory=list)
    suspended: set[UUID] = field(default_factory=set)
    strikes: Counter[UUID] = field(default_factory=Counter)


class Deciding:
    """Decides items and spends their codes, a group in a transaction.

    Args:
        recorder: Transactions.
        rights: Suspended, when one code was spent at two vendors.
    """

    def __init__(self, recorder: Recorder, rights: Rights) -> None:
        self._recorder = recorder
        self._rights = rights

    async def decide(
        self, connection: AsyncConnection, entries: Sequence[Entry], now: datetime
    ) -> list[Entry]:
        """Decide items; answers them with their results, which the caller is to put on record in the same transaction.

        An item is REFUSED then; or still RECEIVED, its code spent, and payment to be asked.

        Args:
            connection: In a transaction.
            entries: Items without a result, in the order they are to have their turn.
            now: UTC.
        """
        group = await self._judge(connection, entries, now)
        if group.spent:
            code_ids = [code.code_id for code, _ in group.spent]
            await code_store.set_state(connection, code_ids, CodeState.SPENT, now=now)
            await code_store.insert_spends(connection, group.spent)
        circumstances = Circumstances(PLATFORM, now)
        facts = [
            events.item_decided(self._recorder.new_id(), circumstances, entry, entry.verdict)
            for entry in group.decided
            if entry.state is State.REFUSED
        ]
        await self._accuse(connection, group, circumstances, facts)
        await self._recorder.record(connection, facts)
        return group.decided

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
            if verdict.state is State.RECEIVED:
                assert code is not None
                spending = _spending(entry, code, verdict)
                group.decided.append(spending)
                group.spent.append((code, spending))
                spenders[code.code_id] = spending
                continue
            refused = replace(rules.decided(entry, verdict, now=now), work=Work.NOTHING)
            group.decided.append(refused)
            if verdict.reason is Reason.DUPLICATE_CODE:
                assert code is not None
                assert first is not None
                self._found_twice(group, code, first, refused, now)
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
        found = double_spends.found(
            code, first, second, double_spend_id=self._recorder.new_id(), now=now
        )
        group.doubles.append((found, first, second))
        if first.vendor_id == second.vendor_id:
            group.strikes[second.vendor_id] += 1
        else:
            group.suspended.add(code.owner_id)

    async def _accuse(
        self,
        connection: AsyncConnection,
        group: _Group,
        circumstances: Circumstances,
        facts: list[event_pb2.Event],
    ) -> None:
        """Record double spends, and what they do to their payers and vendors."""
        if not group.doubles:
            return
        await double_spend_store.insert_double_spends(
            connection, [found for found, _, _ in group.doubles]
        )
        for found, first, second in group.doubles:
            message = wire.double_spend_message(found, first, second)
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
