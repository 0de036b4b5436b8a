"""Takes uploads of journals: everything that is new is on record, once, before the answer says so."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from protocol import signed
from services import names, sql, telemetry, times
from services.offline import events
from services.offline.deciding import LEASE, Deciding
from services.offline.domain import journal, refusals
from services.offline.domain.item import Entry, Reason, State, Work
from services.offline.domain.journal import Placed, Reception
from services.offline.domain.terminal import Terminal
from services.offline.domain.terms import Terms
from services.offline.events import Circumstances
from services.offline.keyring import KeyRing
from services.offline.reading import Broken, Readable, Reader
from services.offline.recorder import Recorder
from services.offline.store import journals as store
from services.offline.store import terminals as terminal_store
from services.offline.store.journals import Batch
from services.refusal import Refusal
from tallystick.offline.v1 import offline_pb2
from tallystick.offline.v1 import terminal_sync_service_pb2 as pb
from tallystick.offline.v1.journal_pb2 import SignedEntry

log = logging.getLogger(__name__)

_RETRY_FULL = timedelta(seconds=5)
# The backlog is counted at most this often; between two counts it grows by what this process takes.
_COUNT_EVERY = timedelta(seconds=1)
# Entries that a thread reads in one go: the event loop gets its turn in between.
_READ_AT_ONCE = 50
# Uploads taken at a time; the others wait for their turn, in the order they came. More at once would take none of them
# sooner, and keep what was taken before from being settled.
_UPLOADS_AT_ONCE = 2
_MALFORMED = offline_pb2.REASON_ENTRY_MALFORMED
# Where a batch's message counts its items.
_COUNTS = {
    State.RECEIVED: "received_count",
    State.SETTLED: "settled_count",
    State.HELD: "held_count",
    State.REFUSED: "refused_count",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A request to take entries.

    Attributes:
        terminal: Whose journal it is.
        actor: Who uploads.
        request_id: As the caller wrote it.
        request_key: Which terminal's, under which id.
        body_hash: Of the request.
        entries: As signed.
    """

    terminal: Terminal
    actor: str
    request_id: str
    request_key: bytes
    body_hash: bytes
    entries: Sequence[SignedEntry]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An upload on record.

    Attributes:
        batch: What it became.
        message: As it stands, or stood when it was put on record.
        to_settle: Its new items that payment is to be asked about.
    """

    batch: Batch
    message: offline_pb2.Batch
    to_settle: Sequence[Entry]


class Intake:
    """Puts uploads on record, each new item with what is decided of it at once.

    Args:
        recorder: Transactions.
        deciding: Decides.
        keys: What entries are checked and sealed with.
        terms: The deployment's.
        executor: Threads to check signatures in.
        decided: Called after every commit with the items that payment is to be asked about.
        backlog_max: Items that may wait to be settled.
    """

    def __init__(
        self,
        recorder: Recorder,
        deciding: Deciding,
        keys: KeyRing,
        terms: Terms,
        executor: Executor,
        *,
        decided: Callable[[Sequence[Entry]], None],
        backlog_max: int,
    ) -> None:
        self._recorder = recorder
        self._deciding = deciding
        self._keys = keys
        self._terms = terms
        self._executor = executor
        self._decided = decided
        self._backlog_max = backlog_max
        self._turns = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._backlog = 0
        self._count_time: datetime | None = None

    async def take(self, upload: Upload) -> pb.SubmitBatchResponse:
        """Put an upload on record, or answer the same request again.

        Raises:
            Refusal: request_id_reused, queue_full, in this order.
        """
        async with self._turns:
            return await self._take(upload)

    async def _take(self, upload: Upload) -> pb.SubmitBatchResponse:
        read = await self._read(upload)
        try:
            recorded = await self._recorder.change(
                lambda c: self._record(c, upload, read, decide=True)
            )
        except Exception as error:
            if isinstance(error, Refusal) or sql.is_lost(error) or sql.is_conflict(error):
                raise
            # Something in an item breaks a statement: on record it holds up only itself.
            log.exception("items are decided later", extra={"terminal": upload.terminal.name})
            recorded = await self._recorder.change(
                lambda c: self._record(c, upload, read, decide=False)
            )
        self._decided(recorded.to_settle)
        answer = pb.SubmitBatchResponse.FromString(recorded.batch.answer)
        answer.batch.CopyFrom(recorded.message)
        return answer

    async def _read(self, upload: Upload) -> list[Readable | Broken]:
        reader = Reader(upload.terminal, self._keys, self._terms.issuer)
        loop = asyncio.get_running_loop()
        entries = upload.entries

        def read(start: int) -> list[Readable | Broken]:
            return reader.read(entries[start : start + _READ_AT_ONCE], start=start)

        starts = range(0, len(entries), _READ_AT_ONCE)
        parts = await asyncio.gather(
            *(loop.run_in_executor(self._executor, read, start) for start in starts)
        )
        return [each for part in parts for each in part]

    async def _record(
        self,
        connection: AsyncConnection,
        upload: Upload,
        read: Sequence[Readable | Broken],
        *,
        decide: bool,
    ) -> _Recorded:
        # One upload of a journal at a time: what follows what is only known under this lock.
        terminal = await terminal_store.lock_terminal(connection, upload.terminal.terminal_id)
        assert terminal is not None
        earlier = await store.find_request(connection, upload.request_key)
        if earlier is not None:
            if earlier.body_hash != upload.body_hash:
                raise refusals.request_id_reused(upload.request_id)
            counts = await store.count_states(connection, earlier.item_ids)
            return _Recorded(earlier, counted(earlier, counts), ())
        now = self._recorder.now()
        await self._check_backlog(connection, now)
        readable = {each.arrival.place: each for each in read if isinstance(each, Readable)}
        reception = await self._receive(connection, terminal, readable.values(), now)
        batch_id = self._recorder.new_id()
        new = [
            self._entry(terminal, batch_id, place, placed, readable[placed.arrival.place], now=now)
            for place, placed in enumerate(reception.fresh)
        ]
        batch = self._batch(upload, batch_id, read, reception, now=now)
        await store.insert_batch(connection, batch)
        items = [entry for entry in new if entry.work is Work.DECIDE]
        self._backlog += len(items)
        counts = Counter({State.RECEIVED: len(items)})
        known = set(batch.item_ids).difference(entry.item_id for entry in items)
        if known:
            counts.update(await store.count_states(connection, known))
        circumstances = Circumstances(upload.actor, now, telemetry.trace_id())
        new_id = self._recorder.new_id
        message = counted(batch, counts)
        facts = [events.batch_received(new_id(), circumstances, terminal.vendor_id, message)]
        guesses = _guesses(reception, readable, now)
        if guesses:
            facts.append(events.wrong_codes_entered(new_id(), circumstances, terminal, guesses))
        await self._recorder.record(connection, facts)
        if decide and items:
            items = await self._deciding.decide(connection, items, now)
            for entry in items:
                if entry.state is not State.RECEIVED:
                    move_count(message, State.RECEIVED, entry.state)
        if new:
            others = [entry for entry in new if entry.work is not Work.DECIDE]
            due_time = now + LEASE if decide else now
            await store.insert_entries(connection, [*items, *others], due_time=due_time)
            await _move_head(connection, terminal, reception.fresh)
        return _Recorded(batch, message, [entry for entry in items if entry.work is Work.SETTLE])

    def _batch(
        self,
        upload: Upload,
        batch_id: UUID,
        read: Sequence[Readable | Broken],
        reception: Reception,
        *,
        now: datetime,
    ) -> Batch:
        """What the upload becomes, with its answer and its new entries, sealed."""
        terminal = upload.terminal
        readable = [each for each in read if isinstance(each, Readable)]
        answer = _answer(read, reception)
        item_ids = [names.last_id(each.item) for each in answer.entries if each.item]
        answer.receipt.CopyFrom(self._receipt(terminal, batch_id, readable, now))
        originals = (upload.entries[placed.arrival.place] for placed in reception.fresh)
        sealed = pb.SubmitBatchRequest(entries=originals).SerializeToString()
        return Batch(
            batch_id=batch_id,
            request_key=upload.request_key,
            body_hash=upload.body_hash,
            vendor_id=terminal.vendor_id,
            terminal_id=terminal.terminal_id,
            item_ids=tuple(dict.fromkeys(item_ids)),
            answer=answer.SerializeToString(),
            sealed_entries=self._keys.seal(sealed, f"batch/{batch_id}"),
            receive_time=now,
        )

    async def _check_backlog(self, connection: AsyncConnection, now: datetime) -> None:
        if self._count_time is None or now - self._count_time >= _COUNT_EVERY:
            self._backlog = await store.count_work(connection)
            self._count_time = now
        if self._backlog >= self._backlog_max:
            raise refusals.queue_full(_RETRY_FULL)

    async def _receive(
        self,
        connection: AsyncConnection,
        terminal: Terminal,
        readable: Iterable[Readable],
        now: datetime,
    ) -> Reception:
        arrivals = [each.arrival for each in readable]
        sequences = {each.sequence for each in arrivals}
        numbers = sequences | {sequence - 1 for sequence in sequences}
        known = await store.known_entries(connection, terminal.terminal_id, numbers)
        recorded = {
            (sequence, each.content_hash) for sequence, found in known.items() for each in found
        }
        # An entry that came before has its own item id, which is no theft.
        new_ids = [
            each.item_id
            for each in arrivals
            if each.item_id is not None and (each.sequence, each.content_hash) not in recorded
        ]
        taken = await store.taken_items(connection, new_ids) if new_ids else set()
        return journal.receive(
            arrivals, known, taken, bundle_version=terminal.bundle_version, now=now
        )

    def _entry(
        self,
        terminal: Terminal,
        batch_id: UUID,
        place: int,
        placed: Placed,
        readable: Readable,
        *,
        now: datetime,
    ) -> Entry:
        arrival = placed.arrival
        entry = partial(
            Entry,
            entry_id=self._recorder.new_id(),
            vendor_id=terminal.vendor_id,
            terminal_id=terminal.terminal_id,
            sequence=arrival.sequence,
            content_hash=arrival.content_hash,
            record_time=arrival.record_time,
            bundle_version=arrival.bundle_version,
            receive_time=now,
            batch_id=batch_id,
            place=place,
        )
        claim = readable.claim
        if claim is None or placed.misnamed:
            return entry()
        return entry(
            item_id=arrival.item_id,
            amount=claim.amount,
            proof=claim.proof,
            proof_hash=claim.proof_hash,
            spend_hash=claim.spend_hash,
            flaw=claim.flaw,
            doubt=placed.doubt,
            doubt_detail=placed.detail,
            facts=claim.facts,
            state=State.RECEIVED,
            work=Work.DECIDE,
        )

    def _receipt(
        self, terminal: Terminal, batch_id: UUID, readable: Iterable[Readable], now: datetime
    ) -> pb.SignedReceipt:
        arrivals = {(each.arrival.sequence, each.arrival.content_hash) for each in readable}
        kept = sorted(arrivals)
        receipt = pb.Receipt(
            batch=names.batch_name(batch_id),
            terminal=terminal.name,
            sequences=[sequence for sequence, _ in kept],
            entries_hash=signed.receipt_hash([content_hash for _, content_hash in kept]),
            receive_time=times.timestamp(now),
        )
        return signed.sign_receipt(receipt, self._keys.issuer_key)


def _guesses(
    reception: Reception, readable: Mapping[int, Readable], now: datetime
) -> list[tuple[int, datetime]]:
    """Wrong codes that new entries tell of, and when they were typed in at the latest."""
    return [
        (told, now if placed.doubt is Reason.CLOCK_IMPLAUSIBLE else placed.arrival.record_time)
        for placed in reception.fresh
        if (told := readable[placed.arrival.place].wrong_codes)
    ]


async def _move_head(
    connection: AsyncConnection, terminal: Terminal, fresh: Sequence[Placed]
) -> None:
    # In the journal's order; of two with the last number, the first to arrive counts.
    last = fresh[-1].arrival.sequence
    if last > terminal.head_sequence:
        head = next(each.arrival for each in fresh if each.arrival.sequence == last)
        await terminal_store.set_head(
            connection, terminal.terminal_id, head.sequence, head.content_hash
        )


def _answer(read: Sequence[Readable | Broken], reception: Reception) -> pb.SubmitBatchResponse:
    misnamed = {placed.arrival.place for placed in reception.fresh if placed.misnamed}
    answer = pb.SubmitBatchResponse()
    for place, each in enumerate(read):
        result = answer.entries.add(index=place)
        if isinstance(each, Broken):
            result.refusal = offline_pb2.Reason.ValueType(each.reason)
            result.detail = each.detail
            continue
        item_id = reception.repeated.get(place, each.arrival.item_id)
        if each.flaw:
            result.refusal = _MALFORMED
            result.detail = each.flaw
        elif place in misnamed or (item_id is None and each.claim is not None):
            result.refusal = _MALFORMED
            result.detail = "sale.item_id: another entry has it"
        elif item_id is not None:
            result.item = names.item_name(item_id)
    return answer


def counted(batch: Batch, counts: Mapping[State, int]) -> offline_pb2.Batch:
    """A batch of whose items so many stand where."""
    message = offline_pb2.Batch(
        name=names.batch_name(batch.batch_id),
        terminal=names.terminal_name(batch.vendor_id, batch.terminal_id),
        item_count=len(batch.item_ids),
        receive_time=times.timestamp(batch.receive_time),
        received_count=counts.get(State.RECEIVED, 0),
        settled_count=counts.get(State.SETTLED, 0),
        held_count=counts.get(State.HELD, 0),
        refused_count=counts.get(State.REFUSED, 0),
    )
    message.state = _batch_state(message)
    return message


def move_count(batch: offline_pb2.Batch, before: State, after: State) -> None:
    """One of a batch's items went from one state to another: a third of the price of telling of the batch anew."""
    for state, change in ((before, -1), (after, 1)):
        setattr(batch, _COUNTS[state], getattr(batch, _COUNTS[state]) + change)
    batch.state = _batch_state(batch)


def _batch_state(batch: offline_pb2.Batch) -> offline_pb2.Batch.State.ValueType:
    received = batch.received_count
    return offline_pb2.Batch.STATE_SETTLING if received else offline_pb2.Batch.STATE_DONE
