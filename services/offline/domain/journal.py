"""A terminal's journal as it arrives: which entries are new, and which of them raise a doubt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from uuid_utils import UUID

from services.offline.domain.item import Reason

# How far a terminal's clock may be ahead of ours.
CLOCK_TOLERANCE = timedelta(minutes=5)
# What an entry with no entry before it carries.
GENESIS = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def bundle_time(version: int) -> datetime:
    """When a trust bundle was made: its version is that instant, in microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=version)


@dataclass(frozen=True, slots=True)
class Known:
    """An entry on record, or further up in the same batch: what is needed to place others."""

    content_hash: bytes
    record_time: datetime
    bundle_version: int
    item_id: UUID | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """An entry that its terminal did sign, as it arrives.

    Attributes:
        place: Where in the request, from 0.
        sequence: Its number in the journal.
        content_hash: Of its content.
        previous_hash: What it carries of the entry before it.
        record_time: When it was written, by the terminal's trusted time.
        server_time: The newest time the server had told the terminal.
        bundle_version: The trust bundle it names.
        item_id: Of a sale that can be read; else None.
    """

    place: int
    sequence: int
    content_hash: bytes
    previous_hash: bytes
    record_time: datetime
    server_time: datetime
    bundle_version: int
    item_id: UUID | None


@dataclass(frozen=True, slots=True)
class Placed:
    """A new entry.

    Attributes:
        arrival: What arrived.
        doubt: The first doubt that applies, if any.
        detail: That, in words.
        misnamed: Another entry has its item id: it stands in the journal, and is no sale.
    """

    arrival: Arrival
    doubt: Reason
    detail: str
    misnamed: bool


@dataclass(frozen=True, slots=True)
class Reception:
    """What a batch's entries are.

    Attributes:
        fresh: New ones, in the journal's order.
        repeated: Item ids of those that came before, by their place; None for what is no sale.
    """

    fresh: tuple[Placed, ...]
    repeated: Mapping[int, UUID | None]


def receive(
    arrivals: Sequence[Arrival],
    known: Mapping[int, Sequence[Known]],
    taken: Collection[UUID],
    *,
    bundle_version: int,
    now: datetime,
) -> Reception:
    """Sort what arrives into new, known, and misnamed; order inside the batch does not matter.

    Args:
        arrivals: Entries of one terminal.
        known: Entries on record with the numbers of the arrivals and the numbers before those.
        taken: Of the arrivals' item ids, those that an entry on record has.
        bundle_version: Of the newest trust bundle the terminal was given.
        now: UTC.
    """
    seen = {sequence: list(entries) for sequence, entries in known.items()}
    used = set(taken)
    fresh: list[tuple[Arrival, bool]] = []
    repeated: dict[int, UUID | None] = {}
    for arrival in sorted(arrivals, key=lambda each: (each.sequence, each.place)):
        same = seen.setdefault(arrival.sequence, [])
        found = next((each for each in same if each.content_hash == arrival.content_hash), None)
        if found is not None:
            repeated[arrival.place] = found.item_id
            continue
        misnamed = arrival.item_id in used
        item_id = None if misnamed else arrival.item_id
        if item_id is not None:
            used.add(item_id)
        same.append(
            Known(arrival.content_hash, arrival.record_time, arrival.bundle_version, item_id)
        )
        fresh.append((arrival, misnamed))
    placed = [
        Placed(arrival, *_doubt(arrival, seen, bundle_version=bundle_version, now=now), misnamed)
        for arrival, misnamed in fresh
    ]
    return Reception(tuple(placed), repeated)


def _doubt(
    arrival: Arrival, seen: Mapping[int, Sequence[Known]], *, bundle_version: int, now: datetime
) -> tuple[Reason, str]:
    before = next(
        (
            each
            for each in seen.get(arrival.sequence - 1, ())
            if each.content_hash == arrival.previous_hash
        ),
        None,
    )
    clock = _clock_flaw(arrival, before, bundle_version=bundle_version, now=now)
    if clock:
        return Reason.CLOCK_IMPLAUSIBLE, clock
    first = arrival.sequence == 1 and arrival.previous_hash == GENESIS
    if before is None and not first:
        return (
            Reason.SEQUENCE_GAP,
            f"Entry {arrival.sequence} does not connect to any entry {arrival.sequence - 1} that arrived.",
        )
    if any(each.content_hash != arrival.content_hash for each in _earlier(arrival, seen)):
        return (
            Reason.SEQUENCE_REUSED,
            f"The terminal signed another entry {arrival.sequence} before.",
        )
    return Reason.NONE, ""


def _earlier(arrival: Arrival, seen: Mapping[int, Sequence[Known]]) -> list[Known]:
    """Entries with the same number that arrived before it, in the order of arrival."""
    same = seen[arrival.sequence]
    mine = next(i for i, each in enumerate(same) if each.content_hash == arrival.content_hash)
    return list(same[:mine])


def _clock_flaw(
    arrival: Arrival, before: Known | None, *, bundle_version: int, now: datetime
) -> str:
    at = arrival.record_time
    if at > now + CLOCK_TOLERANCE:
        return f"It was written at {_text(at)} and arrived before that, at {_text(now)}."
    if arrival.bundle_version > bundle_version:
        return (
            f"It names trust bundle {arrival.bundle_version}, which the terminal was never given."
        )
    given = max(arrival.server_time, bundle_time(arrival.bundle_version))
    if at < given:
        return f"It was written at {_text(at)}, when the terminal already knew that it was {_text(given)}."
    # A bundle in between told the terminal the time. Where the entry before is dated later than that, a clock that ran
    # ahead had dated it, and was set right since.
    if before is None or before.bundle_version < arrival.bundle_version:
        return ""
    if at < before.record_time:
        return f"It was written at {_text(at)}, before the entry before it, at {_text(before.record_time)}."
    return ""


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
