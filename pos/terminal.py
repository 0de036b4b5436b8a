"""A terminal: takes codes without network, and brings them in when there is one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import protovalidate
from uuid_utils import UUID, uuid7

from pos import lockout as ladder
from pos.clock import TrustedClock, seconds_since_boot
from pos.decision import (
    GUESSES,
    Decision,
    Situation,
    Terms,
    Typed,
    VoucherShown,
    decide,
)
from pos.errors import PosError, storage
from pos.journal import Journal, Sale
from pos.platform import Platform, SignedIn
from pos.status import Network, Progress, Report, Status
from pos.terms import terms as read_terms
from pos.terms import verified
from pos.uploads import Uploads
from pos.vault import Cipher, Identity, Vault
from tallystick.offline.v1 import journal_pb2, terminal_sync_service_pb2
from tallystick.type.v1 import money_pb2, position_pb2

# Automatic syncs: this often while all is well; sooner, with back-off, while something waits.
_SYNC_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_RETRY_SECONDS_MAX = 60.0
BUNDLE = "bundle"
_MOVED = "moved"


class Terminal:
    """An enrolled terminal. Get one from `open`."""

    def __init__(
        self,
        vault: Vault,
        identity: Identity,
        journal: Journal,
        platform: Platform,
        *,
        clock: TrustedClock,
        new_id: Callable[[], UUID],
    ) -> None:
        self.identity = identity
        self._vault = vault
        self._journal = journal
        self._platform = platform
        self._clock = clock
        self._new_id = new_id
        self._key = vault.signing_key()
        self._turn = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._uploads = Uploads(journal, identity.name, self._turn, self._issuer_keys)
        self._reached = False
        self._terms: Terms | None = None
        kept = journal.kept(BUNDLE)
        if kept is not None:
            # It was verified when it came, and nobody else can have sealed it. The key that signed it may be retired.
            travelling = terminal_sync_service_pb2.SignedTrustBundle.FromString(kept)
            bundle = terminal_sync_service_pb2.TrustBundle.FromString(travelling.content)
            self._terms = read_terms(bundle)
            clock.raise_floor(self._terms.server_time)
        last = journal.last_entry()
        # An entry from before the newest bundle may have been dated by a clock that the server has corrected since.
        if (
            last is not None
            and self._terms is not None
            and last.bundle_version == self._terms.version
        ):
            clock.raise_floor(last.record_time.ToDatetime(UTC))

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        directory: Path,
        address: str,
        ca_file: Path | None = None,
        *,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = seconds_since_boot,
        new_id: Callable[[], UUID] = uuid7,
        jitter: Callable[[], float] = random.random,
    ) -> AsyncIterator[Terminal]:
        """Open a terminal's directory. Needs no network.

        Args:
            directory: Made by `enroll`.
            address: The platform's gateway, `host:port`.
            ca_file: Who signed its certificate; None trusts the system's authorities.
            wall: UTC as the machine has it.
            monotonic: Seconds that only grow.
            new_id: Ids of sales, UUIDv7.
            jitter: 0 to 1, for back-off.

        Raises:
            PosError: NOT_ENROLLED, IN_USE, DAMAGED, JOURNAL_NEWER.
        """
        vault = Vault(directory)
        identity = vault.identity()
        with vault.claim():
            journal = open_journal(vault, identity)
            try:
                async with Platform(address, ca_file, jitter=jitter) as platform:
                    clock = TrustedClock(wall, monotonic)
                    yield cls(vault, identity, journal, platform, clock=clock, new_id=new_id)
            finally:
                journal.close()

    async def accept(
        self,
        shown: Typed | VoucherShown,
        minor_units: int,
        currency: str,
        *,
        position: tuple[float, float, float] | None = None,
        reference: str = "",
    ) -> Decision:
        """Decide on a code, with what this terminal knows. An approved sale is on disk before this returns.

        Args:
            shown: The code as typed, or a voucher with the payer's signature.
            minor_units: What to take.
            currency: ISO 4217.
            position: Degrees north and east, and metres, where the terminal knows it.
            reference: The vendor's words, at most 140 characters.

        Raises:
            PosError: SALE_INVALID, STORAGE_FAILED. Not approved, and not stored.
        """
        async with self._turn:
            with storage("The sale could not be stored, so it is not approved."):
                # Waited for also by who is cancelled: nobody else may write before this is done.
                deciding = asyncio.create_task(
                    asyncio.to_thread(
                        self._accept, shown, minor_units, currency, position, reference
                    )
                )
                try:
                    return await asyncio.shield(deciding)
                except asyncio.CancelledError:
                    await asyncio.wait({deciding})
                    raise

    def _accept(
        self,
        shown: Typed | VoucherShown,
        minor_units: int,
        currency: str,
        position: tuple[float, float, float] | None,
        reference: str,
    ) -> Decision:
        now = self._clock()
        lockout = self._journal.lockout()
        stored_count, stored = self._journal.stored
        decision = decide(
            shown,
            minor_units,
            currency,
            Situation(
                now=now,
                terms=self._terms,
                moved=self._journal.kept(_MOVED) is not None,
                lockout=lockout,
                vendor_id=self.identity.vendor_id,
                terminal_id=self.identity.terminal_id,
                is_spent=self._journal.is_spent,
                stored_count=stored_count,
                stored=stored,
            ),
        )
        if decision.refusal in GUESSES:
            self._journal.save_lockout(ladder.count_wrong(lockout, now=now))
        if not decision.approved:
            return decision
        item_id = self._new_id()
        sale = journal_pb2.Sale(
            item_id=str(item_id),
            amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            reference=reference,
        )
        if isinstance(shown, VoucherShown):
            sale.spend.voucher = shown.data
            sale.spend.sign_seconds = shown.sign_seconds
            sale.spend.signature = shown.signature
        else:
            sale.code = decision.symbols
        if position is not None:
            latitude, longitude, accuracy = position
            sale.position.CopyFrom(
                position_pb2.Position(
                    latitude=latitude, longitude=longitude, accuracy_meters=accuracy
                )
            )
        # What breaks the contract would be refused when the goods are long gone.
        for violation in protovalidate.collect_violations(sale):
            raise PosError("SALE_INVALID", f"Not approved: {violation.proto.message}.")
        entry = self._entry(now, wrong_codes=lockout.unreported)
        entry.sale.CopyFrom(sale)
        self._journal.append(entry, symbols=decision.symbols, lockout=ladder.forgiven())
        return replace(decision, item_id=item_id)

    def _entry(self, now: datetime, *, wrong_codes: int = 0) -> journal_pb2.Entry:
        if self._terms is None:
            raise PosError(
                "NEVER_SYNCED", "This terminal has never synced. It needs the network once."
            )
        entry = journal_pb2.Entry(
            version=1,
            terminal=self.identity.name,
            bundle_version=self._terms.version,
            wrong_codes=wrong_codes,
        )
        entry.record_time.FromDatetime(now)
        entry.server_time.FromDatetime(self._terms.server_time)
        return entry

    def status(self) -> Status:
        """The terminal at a glance."""
        now = self._clock()
        stored_count, stored = self._journal.stored
        since = None if self._terms is None else now - self._terms.server_time
        network = Network.ONLINE if self._reached else Network.OFFLINE
        limits = () if self._terms is None else self._terms.limits.values()
        if since is None or any(since > limit.age_hard for limit in limits):
            network = Network.MUST_SYNC
        return Status(
            network=network,
            since_sync=since,
            stored_count=stored_count,
            stored=stored,
            terms=self._terms,
            flaws=tuple(self._journal.flaws),
            locked_for=self._journal.lockout().left(now),
        )

    def sales(self) -> list[Sale]:
        """Every sale of the journal, oldest first."""
        return self._journal.sales()

    async def sync(
        self, progress: Progress = lambda _text, _sale: None, *, vendor: SignedIn | None = None
    ) -> Report:
        """Fetch a trust bundle, upload what waits, and bring results. May be broken off anywhere and repeated.

        Args:
            progress: Told of every step, and of every sale that gets a result.
            vendor: Upload in this vendor's name: for the journal of a terminal that was revoked. No bundle is fetched.

        Raises:
            PosError: UNREACHABLE, TERMINAL_REVOKED, …; what was done before it stays done.
        """
        async with self._syncing:
            try:
                with storage("The sync broke off."):
                    report = await self._sync(progress, vendor)
            except BaseException:
                self._reached = False
                raise
            self._reached = True
            return report

    async def _sync(self, progress: Progress, vendor: SignedIn | None) -> Report:
        who = vendor
        if who is None:
            who = await self._platform.sign_in(self.identity.name, self._key, self._clock())
            await self._fetch_bundle(who)
            async with self._turn:
                await asyncio.to_thread(self._tell_of_guesses)
            progress("Codes and keys are current.", None)
        report = Report()
        await self._uploads.send(self._platform, who, report, progress)
        await self._uploads.bring_results(self._platform, who, report, progress)
        return report

    async def keep_synced(
        self,
        progress: Progress = lambda _text, _sale: None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Sync by itself, until cancelled: now and then, and soon after the network is back."""
        delay = _RETRY_SECONDS
        while True:
            try:
                await self.sync(progress)
            except PosError as error:
                progress(str(error), None)
                await asyncio.sleep(delay * (0.5 + jitter() / 2))
                delay = min(delay * 2, _RETRY_SECONDS_MAX)
            else:
                delay = _RETRY_SECONDS
                await asyncio.sleep(_SYNC_SECONDS * (0.5 + jitter() / 2))

    async def _fetch_bundle(self, who: SignedIn) -> None:
        travelling = await self._platform.trust_bundle(who)
        terms = read_terms(verified(travelling, self._issuer_keys(), self.identity.name))
        assert who.server_time is not None
        async with self._turn:
            # Not one that a replica that lags has made: what is here is newer.
            if self._terms is None or terms.version >= self._terms.version:
                kept = travelling.SerializeToString()
                await asyncio.to_thread(self._journal.keep, BUNDLE, kept)
                self._terms = terms
            # Not before the new bundle counts: under the old one, a sale that is dated before the last one, which a
            # clock that ran ahead had dated, would be held.
            self._clock.learn(who.server_time)
            self._clock.raise_floor(self._terms.server_time)

    def _issuer_keys(self) -> Mapping[str, bytes]:
        """The newest bundle names the keys that the next one, and receipts, are signed with."""
        if self._terms is not None:
            return self._terms.issuer_keys
        return {key_id: bytes.fromhex(key) for key_id, key in self.identity.issuer_keys.items()}

    def _tell_of_guesses(self) -> None:
        """Write down wrong codes that no sale has told of. The ladder stays where it is."""
        lockout = self._journal.lockout()
        if not lockout.unreported or self._journal.kept(_MOVED) is not None:
            return
        entry = self._entry(self._clock(), wrong_codes=lockout.unreported)
        entry.guesses.SetInParent()
        self._journal.append(entry, lockout=ladder.told(lockout))

    async def mark_moved(self) -> None:
        """The journal goes on elsewhere: this installation takes no code any more."""
        async with self._turn:
            self._journal.keep(_MOVED, b"1")

    def backup(self, file: Path) -> None:
        """A whole copy of the journal's database."""
        self._journal.backup(file)

    async def note_import(self, note: str) -> None:
        """Write down that the journal goes on here."""
        async with self._turn:
            # Not by the wall clock: dated a year ahead by a wrong one, it would make every sale behind it implausible.
            entry = self._entry(self._clock.floor or self._clock())
            entry.imported.note = note
            await asyncio.to_thread(self._journal.append, entry)


def open_journal(vault: Vault, identity: Identity) -> Journal:
    """The journal of a terminal's directory. The caller holds the claim, and closes it.

    Raises:
        PosError: DAMAGED, JOURNAL_NEWER.
    """
    secret = vault.device_secret()
    return Journal(
        vault.journal_file,
        Cipher(secret, identity.name.encode()),
        vault.signing_key(),
        Cipher.derive(secret, b"marks"),
    )
