"""Terminals' journals as received, and the batches they came in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import bulk
from services.money import Money
from services.offline.domain.item import (
    Entry,
    Liability,
    Proof,
    Reason,
    Spend,
    State,
    Verdict,
    Work,
)
from services.offline.domain.journal import Known
from services.offline.store.tables import batches, entries, spends

_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that arrived together.

    Attributes:
        batch_id: UUIDv7.
        request_key: Which terminal's, under which request id.
        body_hash: Of the request.
        vendor_id: Whose terminal.
        terminal_id: Which.
        item_ids: Its items, those that had arrived before too.
        answer: To its request, but for the batch: a serialized SubmitBatchResponse.
        sealed_entries: The new ones, in the order of their `place`; sealed.
        receive_time: When it arrived.
    """

    batch_id: UUID
    request_key: bytes
    body_hash: bytes
    vendor_id: UUID
    terminal_id: UUID
    item_ids: tuple[UUID, ...]
    answer: bytes
    sealed_entries: bytes
    receive_time: datetime


async def find_batch(connection: AsyncConnection, batch_id: UUID) -> Batch | None:
    """A batch by its id."""
    return await _batch(connection, batches.c.batch_id == batch_id)


async def find_request(connection: AsyncConnection, request_key: bytes) -> Batch | None:
    """The batch a request made."""
    return await _batch(connection, batches.c.request_key == request_key)


async def _batch(connection: AsyncConnection, which: sa.ColumnElement[bool]) -> Batch | None:
    row = (await connection.execute(sa.select(batches).where(which))).one_or_none()
    if row is None:
        return None
    packed = bytes(row.item_ids)
    return Batch(
        batch_id=row.batch_id,
        request_key=bytes(row.request_key),
        body_hash=bytes(row.body_hash),
        vendor_id=row.vendor_id,
        terminal_id=row.terminal_id,
        item_ids=tuple(
            UUID(bytes=packed[start : start + _ID_BYTES])
            for start in range(0, len(packed), _ID_BYTES)
        ),
        answer=bytes(row.answer),
        sealed_entries=bytes(row.sealed_entries),
        receive_time=row.receive_time,
    )


async def insert_batch(connection: AsyncConnection, batch: Batch) -> None:
    """Put a batch on record.

    Raises:
        IntegrityError: a copy of its request was first.
    """
    await connection.execute(
        sa.insert(batches),
        {
            "batch_id": batch.batch_id,
            "request_key": batch.request_key,
            "body_hash": batch.body_hash,
            "vendor_id": batch.vendor_id,
            "terminal_id": batch.terminal_id,
            "item_ids": b"".join(item_id.bytes for item_id in batch.item_ids),
            "answer": batch.answer,
            "sealed_entries": batch.sealed_entries,
            "receive_time": batch.receive_time,
        },
    )


async def known_entries(
    connection: AsyncConnection, terminal_id: UUID, sequences: Collection[int]
) -> dict[int, list[Known]]:
    """Entries of a journal with some numbers, in the order they arrived."""
    numbers = [entries.c.sequence.between(first, last) for first, last in _runs(sequences)]
    query = (
        sa.select(
            entries.c.sequence,
            entries.c.content_hash,
            entries.c.record_time,
            entries.c.bundle_version,
            entries.c.item_id,
        )
        .where(entries.c.terminal_id == terminal_id, sa.or_(sa.false(), *numbers))
        .order_by(entries.c.entry_id)
    )
    found: dict[int, list[Known]] = defaultdict(list)
    for row in await connection.execute(query):
        known = Known(bytes(row.content_hash), row.record_time, row.bundle_version, row.item_id)
        found[row.sequence].append(known)
    return found


def _runs(numbers: Collection[int]) -> list[tuple[int, int]]:
    """Numbers as runs without gaps, first and last. A journal is one: a range costs as much as one of its numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


async def taken_items(connection: AsyncConnection, item_ids: Collection[UUID]) -> set[UUID]:
    """Of some item ids, those that an entry on record has."""
    query = sa.select(entries.c.item_id).where(bulk.among(entries.c.item_id, item_ids))
    return set((await connection.execute(query)).scalars())


async def insert_entries(
    connection: AsyncConnection, new: Sequence[Entry], *, due_time: datetime
) -> None:
    """Put new entries on record, with what is decided of them; whoever looks for work finds them from `due_time` on.

    Raises:
        IntegrityError: another transaction just put one of the same items on record.
    """
    rows = [
        {
            "entry_id": entry.entry_id,
            "vendor_id": entry.vendor_id,
            "terminal_id": entry.terminal_id,
            "sequence": entry.sequence,
            "content_hash": entry.content_hash,
            "record_time": entry.record_time,
            "bundle_version": entry.bundle_version,
            "receive_time": entry.receive_time,
            "batch_id": entry.batch_id,
            "place": entry.place,
            "item_id": entry.item_id,
            "currency_code": None if entry.amount is None else entry.amount.currency_code,
            "minor_units": None if entry.amount is None else entry.amount.minor_units,
            "proof": int(entry.proof),
            "proof_hash": entry.proof_hash or None,
            "spend_hash": entry.spend_hash or None,
            "flaw": entry.flaw,
            "doubt": int(entry.doubt),
            "doubt_detail": entry.doubt_detail,
            "facts": entry.facts,
            "state": int(entry.state),
            "hold": int(entry.hold),
            "reason": int(entry.reason),
            "detail": entry.detail,
            "liability": int(entry.liability),
            "decide_time": entry.decide_time,
            "work": int(entry.work),
            "due_time": due_time,
            "attempts": 0,
            "review": None,
        }
        for entry in new
    ]
    await bulk.insert(connection, entries, rows)


async def count_work(connection: AsyncConnection) -> int:
    """Items without a result."""
    query = (
        sa.select(sa.func.count())
        .select_from(entries)
        .where(entries.c.work.in_([int(Work.DECIDE), int(Work.SETTLE)]))
    )
    return (await connection.execute(query)).scalar_one()


async def oldest_undecided(connection: AsyncConnection) -> datetime | None:
    """When the oldest item that waits for its code to be looked up arrived; None when none waits."""
    query = sa.select(sa.func.min(entries.c.receive_time)).where(entries.c.work == int(Work.DECIDE))
    oldest: datetime | None = (await connection.execute(query)).scalar_one_or_none()
    return oldest


async def claim_undecided(connection: AsyncConnection, *, now: datetime, limit: int) -> list[Entry]:
    """Items whose code is to be looked up, oldest first, held; those that another transaction holds are passed over."""
    query = (
        sa.select(entries)
        .where(entries.c.work == int(Work.DECIDE), entries.c.due_time <= now)
        .order_by(entries.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [_entry(row, None) for row in await connection.execute(query)]


async def claim_unsettled(
    connection: AsyncConnection, *, now: datetime, until: datetime, limit: int
) -> list[Entry]:
    """Items that payment is to be asked about (again), with what they spent; nobody else gets them before `until`."""
    query = (
        sa.select(entries.c.entry_id)
        .where(entries.c.work.in_([int(Work.SETTLE), int(Work.WATCH)]), entries.c.due_time <= now)
        .order_by(entries.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = list((await connection.execute(query)).scalars())
    if not claimed:
        return []
    await set_due(connection, claimed, due_time=until, tried=False)
    return await find_entries(connection, claimed)


async def set_due(
    connection: AsyncConnection, entry_ids: Collection[UUID], *, due_time: datetime, tried: bool
) -> None:
    """Put work off."""
    if not entry_ids:
        return
    values: dict[str, Any] = {"due_time": due_time}
    if tried:
        values["attempts"] = entries.c.attempts + 1
    await connection.execute(
        sa.update(entries).where(bulk.among(entries.c.entry_id, entry_ids)).values(values)
    )


async def lock_work(
    connection: AsyncConnection, entry_ids: Collection[UUID]
) -> dict[UUID, tuple[Work, bool | None]]:
    """What is left to do for entries, and what reviewers have decided; held until the transaction ends."""
    query = (
        sa.select(entries.c.entry_id, entries.c.work, entries.c.review)
        .where(bulk.among(entries.c.entry_id, entry_ids))
        .order_by(entries.c.entry_id)
    )
    rows = await connection.execute(query.with_for_update())
    return {
        row.entry_id: (Work(row.work), None if row.review is None else bool(row.review))
        for row in rows
    }


async def lock_entries(connection: AsyncConnection, entry_ids: Collection[UUID]) -> list[Entry]:
    """Entries with what they spent, held until the transaction ends."""
    await lock_work(connection, entry_ids)
    return await find_entries(connection, entry_ids)


async def find_entries(connection: AsyncConnection, entry_ids: Collection[UUID]) -> list[Entry]:
    """Entries with what they spent, oldest first."""
    query = _with_spend().where(bulk.among(entries.c.entry_id, entry_ids))
    rows = await connection.execute(query.order_by(entries.c.entry_id))
    return [_joined(row) for row in rows]


async def find_items(connection: AsyncConnection, item_ids: Collection[UUID]) -> list[Entry]:
    """Items with what they spent, in the journal's order."""
    return await _items(connection, bulk.among(entries.c.item_id, item_ids))


async def find_decided(connection: AsyncConnection, item_ids: Collection[UUID]) -> list[Entry]:
    """Of some items those that have a result, with what they spent, in the journal's order."""
    some = bulk.among(entries.c.item_id, item_ids)
    return await _items(connection, some, entries.c.state != int(State.RECEIVED))


async def _items(connection: AsyncConnection, *which: sa.ColumnElement[bool]) -> list[Entry]:
    query = _with_spend().where(*which).order_by(entries.c.sequence, entries.c.entry_id)
    return [_joined(row) for row in await connection.execute(query)]


async def count_states(connection: AsyncConnection, item_ids: Collection[UUID]) -> dict[State, int]:
    """How many of some items stand where."""
    if not item_ids:
        return {}
    query = (
        sa.select(entries.c.state, sa.func.count())
        .where(bulk.among(entries.c.item_id, item_ids))
        .group_by(entries.c.state)
    )
    return {State(state): count for state, count in await connection.execute(query)}


async def list_vendor_items(
    connection: AsyncConnection, vendor_id: UUID, *, before: UUID | None, limit: int
) -> list[Entry]:
    """Items of a vendor's terminals, the last to arrive first, older than the entry `before`."""
    query = _with_spend().where(entries.c.vendor_id == vendor_id, entries.c.item_id.is_not(None))
    if before is not None:
        query = query.where(entries.c.entry_id < before)
    rows = await connection.execute(query.order_by(entries.c.entry_id.desc()).limit(limit))
    return [_joined(row) for row in rows]


async def list_terminal_items(
    connection: AsyncConnection,
    terminal_id: UUID,
    *,
    before: tuple[int, bytes] | None,
    limit: int,
) -> list[Entry]:
    """Items of a terminal's journal, the last number first, below the number and hash `before`."""
    query = _with_spend().where(
        entries.c.terminal_id == terminal_id, entries.c.item_id.is_not(None)
    )
    if before is not None:
        sequence, content_hash = before
        query = query.where(
            sa.or_(
                entries.c.sequence < sequence,
                sa.and_(entries.c.sequence == sequence, entries.c.content_hash < content_hash),
            )
        )
    order = (entries.c.sequence.desc(), entries.c.content_hash.desc())
    return [_joined(row) for row in await connection.execute(query.order_by(*order).limit(limit))]


async def set_verdicts(
    connection: AsyncConnection,
    decided: Iterable[tuple[UUID, Verdict]],
    *,
    work: Work,
    due_time: datetime,
    decide_time: datetime | None,
    untouched: bool = False,
) -> int:
    """Record results of entries; those with the same one in one statement. Answers of how many.

    The entries are locked; or `untouched`, and then those are passed over that are not as they were when their codes
    were spent.
    """
    groups: dict[Verdict, list[UUID]] = defaultdict(list)
    for entry_id, verdict in decided:
        groups[verdict].append(entry_id)
    as_they_were = [entries.c.work == int(Work.SETTLE), entries.c.review.is_(None)]
    written = 0
    for verdict, entry_ids in groups.items():
        values = {
            "state": int(verdict.state),
            "reason": int(verdict.reason),
            "detail": verdict.detail,
            "liability": int(verdict.liability),
            "decide_time": decide_time,
            "work": int(work),
            "due_time": due_time,
            "attempts": 0,
        }
        if work is Work.SETTLE:
            values["hold"] = int(verdict.reason)
        which = [bulk.among(entries.c.entry_id, entry_ids), *(as_they_were if untouched else [])]
        statement = sa.update(entries).where(*which).values(values)
        written += (await connection.execute(statement)).rowcount
    return written


async def set_review(connection: AsyncConnection, entry_id: UUID, *, approved: bool) -> None:
    """Keep a review that was faster than the answer it is of."""
    await connection.execute(
        sa.update(entries).where(entries.c.entry_id == entry_id).values(review=int(approved))
    )


def _with_spend() -> sa.Select[Any]:
    joined = entries.outerjoin(spends, spends.c.entry_id == entries.c.entry_id)
    return sa.select(
        entries,
        spends.c.code_id,
        spends.c.owner_id,
        spends.c.value_minor_units,
        spends.c.issue_time,
    ).select_from(joined)


def _joined(row: sa.Row[Any]) -> Entry:
    spend = None
    if row.code_id is not None:
        spend = Spend(row.code_id, row.owner_id, row.value_minor_units, row.issue_time)
    return _entry(row, spend)


def _entry(row: sa.Row[Any], spend: Spend | None) -> Entry:
    return Entry(
        entry_id=row.entry_id,
        vendor_id=row.vendor_id,
        terminal_id=row.terminal_id,
        sequence=row.sequence,
        content_hash=bytes(row.content_hash),
        record_time=row.record_time,
        bundle_version=row.bundle_version,
        receive_time=row.receive_time,
        batch_id=row.batch_id,
        place=row.place,
        item_id=row.item_id,
        amount=None if row.minor_units is None else Money(row.minor_units, row.currency_code),
        proof=Proof(row.proof),
        proof_hash=bytes(row.proof_hash or b""),
        spend_hash=bytes(row.spend_hash or b""),
        flaw=row.flaw,
        doubt=Reason(row.doubt),
        doubt_detail=row.doubt_detail,
        facts=bytes(row.facts),
        state=State(row.state),
        hold=Reason(row.hold),
        reason=Reason(row.reason),
        detail=row.detail,
        liability=Liability(row.liability),
        decide_time=row.decide_time,
        work=Work(row.work),
        attempts=row.attempts,
        spend=spend,
    )
