"""The journal: every offline sale, numbered, chained, signed and encrypted, in SQLite.

An entry is on disk, fsynced, before anybody hears of it (WAL, synchronous=FULL); kill -9 leaves it whole or not at all.
What was changed, removed or put elsewhere afterwards is found when the journal opens and named; what is whole goes on.
"""

from __future__ import annotations

import hmac
import itertools
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pos.errors import PosError
from pos.lockout import Lockout
from pos.vault import Cipher
from protocol import signed
from tallystick.offline.v1.journal_pb2 import Entry, SignedEntry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# One script a version: a journal of an older one is brought forward when it opens, step by step, and never thrown away.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE entries (
        sequence INTEGER PRIMARY KEY,
        entry_hash BLOB NOT NULL,
        sealed BLOB NOT NULL,
        item_id TEXT,
        spent_mark BLOB,
        upload_id TEXT,
        is_received INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX entries_spent ON entries (spent_mark);
    CREATE INDEX entries_items ON entries (item_id);
    CREATE INDEX entries_unreceived ON entries (is_received, sequence);
    CREATE TABLE uploads (
        request_id TEXT PRIMARY KEY,
        batch TEXT,
        is_done INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE kept (name TEXT PRIMARY KEY, sealed BLOB NOT NULL);
    """,
    """
    ALTER TABLE entries ADD COLUMN state TEXT NOT NULL DEFAULT '';
    ALTER TABLE entries ADD COLUMN reason TEXT NOT NULL DEFAULT '';
    ALTER TABLE entries ADD COLUMN detail TEXT NOT NULL DEFAULT '';
    ALTER TABLE entries ADD COLUMN returned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE uploads ADD COLUMN receipt BLOB;
    """,
)


@dataclass(frozen=True, slots=True)
class JournalFlaw:
    """Something is wrong with a journal.

    Attributes:
        sequence: Which entry.
        what: In words.
    """

    sequence: int
    what: str


@dataclass(frozen=True, slots=True)
class Sale:
    """A sale of the journal, and what is known of it.

    Attributes:
        sequence: Its number.
        item_id: Its id.
        minor_units: What was taken.
        currency: ISO 4217.
        record_time: When.
        reference: The vendor's words.
        is_received: The server has it.
        state: The server's `Item.State` without its prefix; empty while there is none.
        reason: The server's `Reason` without its prefix.
        detail: In words.
        returned: Minor units that went back to the payer.
    """

    sequence: int
    item_id: str
    minor_units: int
    currency: str
    record_time: datetime
    reference: str
    is_received: bool
    state: str
    reason: str
    detail: str
    returned: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Entries that are sent together, under a request id that was stored before."""

    request_id: str
    batch: str
    entries: tuple[tuple[int, SignedEntry], ...]


class Journal:
    """An open journal. One thread at a time.

    Args:
        file: The database.
        cipher: Of the terminal.
        key: Signs entries.
        mark_secret: What codes taken here are remembered by.
    """

    def __init__(
        self, file: Path, cipher: Cipher, key: Ed25519PrivateKey, mark_secret: bytes
    ) -> None:
        self._cipher = cipher
        self._key = key
        self._mark_secret = mark_secret
        self._database = _open(file)
        self.flaws = self._verify()
        self._pending: dict[int, tuple[str, int]] = {
            sale.sequence: (sale.currency, sale.minor_units)
            for sale in self._sales("is_received = 0 AND item_id IS NOT NULL")
        }

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def head(self) -> tuple[int, bytes]:
        """Number and hash of the newest entry; 0 and zeros for none."""
        kept = self.kept("head")
        if kept is not None:
            return int.from_bytes(kept[:8], "big"), kept[8:]
        # There is none yet, or it was tampered with, which `flaws` says: a terminal goes on behind what there is.
        query = "SELECT sequence, entry_hash FROM entries ORDER BY sequence DESC LIMIT 1"
        last: tuple[int, bytes] | None = self._database.execute(query).fetchone()
        return (0, signed.GENESIS) if last is None else last

    def append(self, entry: Entry, *, symbols: str = "", lockout: Lockout | None = None) -> Entry:
        """Number, chain, sign and store an entry, with the ladder after it. Durable when it returns."""
        sequence, previous = self.head
        entry.sequence, entry.previous_hash = sequence + 1, previous
        travelling = signed.sign_entry(entry, self._key)
        entry_hash = signed.entry_hash(travelling.content)
        sale = entry.sale if entry.HasField("sale") else None
        with self._database:
            self._database.execute(
                "INSERT INTO entries (sequence, entry_hash, sealed, item_id, spent_mark) "
                "VALUES (?, ?, ?, ?, ?)",
                (
                    entry.sequence,
                    entry_hash,
                    self._cipher.seal(travelling.SerializeToString(), _place(entry.sequence)),
                    sale.item_id if sale is not None else None,
                    self._mark(symbols) if symbols else None,
                ),
            )
            self._keep("head", entry.sequence.to_bytes(8, "big") + entry_hash)
            if lockout is not None:
                self._keep("lockout", _dump(lockout))
        if sale is not None:
            self._pending[entry.sequence] = (sale.amount.currency_code, sale.amount.minor_units)
        return entry

    def is_spent(self, symbols: str) -> bool:
        """A code was taken here."""
        query = "SELECT 1 FROM entries WHERE spent_mark = ? LIMIT 1"
        return self._database.execute(query, (self._mark(symbols),)).fetchone() is not None

    @property
    def stored(self) -> tuple[int, dict[str, int]]:
        """Sales that the server does not have, and their minor units by currency."""
        totals: dict[str, int] = {}
        for currency, minor_units in self._pending.values():
            totals[currency] = totals.get(currency, 0) + minor_units
        return len(self._pending), totals

    def lockout(self) -> Lockout:
        """The ladder as it stands."""
        kept = self.kept("lockout")
        return Lockout() if kept is None else _load(kept)

    def save_lockout(self, lockout: Lockout) -> None:
        """Remember a wrong code, durably: a restart forgives nothing."""
        self.keep("lockout", _dump(lockout))

    def kept(self, name: str) -> bytes | None:
        """Something kept under a name; None when there is nothing, or when it was changed."""
        row = self._database.execute("SELECT sealed FROM kept WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._cipher.open(row[0], f"kept {name}")

    def keep(self, name: str, value: bytes) -> None:
        """Keep something under a name."""
        with self._database:
            self._keep(name, value)

    def forget(self, name: str) -> None:
        """Keep nothing under a name any more."""
        with self._database:
            self._database.execute("DELETE FROM kept WHERE name = ?", (name,))

    def last_entry(self) -> Entry | None:
        """The newest readable entry."""
        for row in self._database.execute("SELECT sequence, sealed FROM entries ORDER BY 1 DESC"):
            entry = self._entry(*row)
            if entry is not None:
                return entry[1]
        return None

    def sales(self) -> list[Sale]:
        """Every readable sale, oldest first."""
        return self._sales("item_id IS NOT NULL")

    def open_uploads(self) -> list[Upload]:
        """Uploads that were begun and have no receipt yet."""
        query = "SELECT request_id FROM uploads WHERE batch IS NULL ORDER BY rowid"
        return [self._upload(request_id) for (request_id,) in self._database.execute(query)]

    def undecided_batches(self) -> list[str]:
        """Batches with an item whose result may still change."""
        query = "SELECT batch FROM uploads WHERE batch IS NOT NULL AND is_done = 0 ORDER BY rowid"
        return [batch for (batch,) in self._database.execute(query)]

    def begin_upload(self, request_id: str, *, size: int) -> Upload | None:
        """Put the oldest entries that were never sent into an upload; None when there are none."""
        query = (
            "SELECT sequence FROM entries WHERE is_received = 0 AND upload_id IS NULL "
            "ORDER BY sequence"
        )
        broken = {flaw.sequence for flaw in self.flaws}
        waiting = (row[0] for row in self._database.execute(query) if row[0] not in broken)
        sequences = list(itertools.islice(waiting, size))
        if not sequences:
            return None
        with self._database:
            self._begin(request_id, sequences)
        return self._upload(request_id)

    def split_upload(self, upload: Upload, request_ids: Sequence[str]) -> None:
        """Put an upload that is refused whole into several: one broken entry must not stop the others."""
        sequences = [sequence for sequence, _ in upload.entries]
        size = -(-len(sequences) // len(request_ids))
        with self._database:
            self._database.execute("DELETE FROM uploads WHERE request_id = ?", (upload.request_id,))
            for place, request_id in enumerate(request_ids):
                part = sequences[place * size : (place + 1) * size]
                if part:
                    self._begin(request_id, part)

    def receive(
        self, upload: Upload, batch: str, receipt: bytes, refused: dict[int, tuple[str, str]]
    ) -> None:
        """The server has an upload. `refused`: reason and detail of entries it could not take, by number."""
        with self._database:
            self._database.execute(
                "UPDATE uploads SET batch = ?, receipt = ? WHERE request_id = ?",
                (batch, receipt, upload.request_id),
            )
            self._database.executemany(
                "UPDATE entries SET is_received = 1 WHERE sequence = ?",
                [(sequence,) for sequence, _ in upload.entries],
            )
            self._database.executemany(
                "UPDATE entries SET state = 'REFUSED', reason = ?, detail = ? WHERE sequence = ?",
                [(reason, detail, sequence) for sequence, (reason, detail) in refused.items()],
            )
        for sequence, _ in upload.entries:
            self._pending.pop(sequence, None)

    def give_up(self, upload: Upload, reason: str, detail: str) -> None:
        """The server will never take this upload of one entry."""
        self.receive(
            upload, "", b"", {sequence: (reason, detail) for sequence, _ in upload.entries}
        )
        with self._database:
            self._database.execute(
                "UPDATE uploads SET is_done = 1 WHERE request_id = ?", (upload.request_id,)
            )

    def save_results(
        self, results: Iterable[tuple[str, str, str, str, int]], batch: str, *, done: bool
    ) -> list[Sale]:
        """Store what the server says of items: (item id, state, reason, detail, returned). Answers those with news."""
        news = []
        with self._database:
            for item_id, state, reason, detail, returned in results:
                changed = self._database.execute(
                    "UPDATE entries SET state = ?, reason = ?, detail = ?, returned = ? "
                    "WHERE item_id = ? AND (state <> ? OR reason <> ?)",
                    (state, reason, detail, returned, item_id, state, reason),
                )
                if changed.rowcount:
                    news.append(item_id)
            if done:
                self._database.execute("UPDATE uploads SET is_done = 1 WHERE batch = ?", (batch,))
        return [sale for item_id in news for sale in self._sales("item_id = ?", item_id)]

    def backup(self, file: Path) -> None:
        """A whole copy of the database, taken while it may be in use."""
        copy = sqlite3.connect(file)
        try:
            self._database.backup(copy)
        finally:
            copy.close()

    def _begin(self, request_id: str, sequences: Sequence[int]) -> None:
        self._database.execute("INSERT INTO uploads (request_id) VALUES (?)", (request_id,))
        self._database.executemany(
            "UPDATE entries SET upload_id = ? WHERE sequence = ?",
            [(request_id, sequence) for sequence in sequences],
        )

    def _upload(self, request_id: str) -> Upload:
        query = "SELECT sequence, sealed FROM entries WHERE upload_id = ? ORDER BY sequence"
        entries = []
        for sequence, sealed in self._database.execute(query, (request_id,)):
            found = self._entry(sequence, sealed)
            if found is not None:
                entries.append((sequence, found[0]))
        return Upload(request_id, "", tuple(entries))

    def _sales(self, condition: str, *values: object) -> list[Sale]:
        query = (
            "SELECT sequence, sealed, is_received, state, reason, detail, returned FROM entries "  # noqa: S608
            f"WHERE {condition} ORDER BY sequence"
        )
        found = []
        for (
            sequence,
            sealed,
            is_received,
            state,
            reason,
            detail,
            returned,
        ) in self._database.execute(query, values):
            entry = self._entry(sequence, sealed)
            if entry is None:
                continue
            sale = entry[1].sale
            found.append(
                Sale(
                    sequence,
                    sale.item_id,
                    sale.amount.minor_units,
                    sale.amount.currency_code,
                    entry[1].record_time.ToDatetime(UTC),
                    sale.reference,
                    bool(is_received),
                    state,
                    reason,
                    detail,
                    returned,
                )
            )
        return found

    def _entry(self, sequence: int, sealed: bytes) -> tuple[SignedEntry, Entry] | None:
        plain = self._cipher.open(sealed, _place(sequence))
        if plain is None:
            return None
        travelling = SignedEntry.FromString(plain)
        return travelling, Entry.FromString(travelling.content)

    def _verify(self) -> list[JournalFlaw]:
        """Every entry whole, in its place, chained to the one before and signed by this terminal.

        What the platform has received it has verified: there, signatures, which take nine tenths of the time, are not
        looked at again, so that a terminal opens as fast after years as after a day.
        """
        flaws: list[JournalFlaw] = []
        public_key = self._key.public_key().public_bytes_raw()
        expected, previous = 1, signed.GENESIS
        for sequence, sealed, is_received in self._database.execute(
            "SELECT sequence, sealed, is_received FROM entries ORDER BY sequence"
        ):
            gap = _missing(expected, sequence)
            flaws += gap
            # Behind what cannot be read, whatever an entry is chained to is believed.
            previous = b"" if gap else previous
            expected = sequence + 1
            found = self._entry(sequence, sealed)
            if found is None:
                flaws.append(JournalFlaw(sequence, "was changed, or put in from elsewhere"))
                previous = b""
                continue
            travelling, entry = found
            try:
                if not is_received:
                    signed.verify_entry(travelling, public_key)
            except (signed.SignatureWrong, signed.Unreadable):
                flaws.append(JournalFlaw(sequence, "is not signed by this terminal"))
                previous = b""
                continue
            chained = not previous or entry.previous_hash == previous
            if entry.sequence != sequence or not chained:
                flaws.append(JournalFlaw(sequence, "is not what the entry before leads to"))
            previous = signed.entry_hash(travelling.content)
        if expected > 1 and self.kept("head") is None:
            flaws.append(JournalFlaw(expected - 1, "may not be the last: the record of it is gone"))
        head, _ = self.head
        return flaws + (_missing(expected, head + 1) if head >= expected else [])

    def _mark(self, symbols: str) -> bytes:
        return hmac.digest(self._mark_secret, symbols.encode(), sha256)[:16]

    def _keep(self, name: str, value: bytes) -> None:
        self._database.execute(
            "INSERT INTO kept (name, sealed) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed",
            (name, self._cipher.seal(value, f"kept {name}")),
        )


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, check_same_thread=False, isolation_level="IMMEDIATE")
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.DatabaseError as error:
        database.close()
        message = f"{file} is damaged: {error}. Import the terminal's last export."
        raise PosError("DAMAGED", message) from error
    if version > len(MIGRATIONS):
        database.close()
        message = f"{file} was written by a newer version. Install that version."
        raise PosError("JOURNAL_NEWER", message)
    return database


def _missing(expected: int, found: int) -> list[JournalFlaw]:
    if expected == found:
        return []
    last = found - 1
    which = f"entries {expected} to {last} are missing" if last > expected else "is missing"
    return [JournalFlaw(expected, which)]


def _place(sequence: int) -> str:
    return f"entry {sequence}"


def _dump(lockout: Lockout) -> bytes:
    until = None if lockout.until is None else (lockout.until - _EPOCH) // _MICROSECOND
    return json.dumps([lockout.wrong, until, lockout.unreported]).encode()


def _load(kept: bytes) -> Lockout:
    values: list[Any] = json.loads(kept)
    until = None if values[1] is None else _EPOCH + values[1] * _MICROSECOND
    return Lockout(values[0], until, values[2])
