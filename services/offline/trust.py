"""Trust bundles: what a terminal must know to take codes without network."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from protocol import issued_filter, signed
from services import sql, times
from services.offline import wire
from services.offline.domain import refusals
from services.offline.domain.journal import bundle_time
from services.offline.domain.terminal import Terminal
from services.offline.domain.terms import Terms
from services.offline.keyring import KeyRing
from services.offline.recorder import Recorder
from services.offline.store import codes as store
from services.offline.store import terminals as terminal_store
from tallystick.offline.v1 import terminal_sync_service_pb2 as pb

# A filter of 100,000 codes takes a second to build; terminals that sync together share one.
_LOOK_AGAIN = timedelta(seconds=3)
# A code's change is missed when its replica's clock is behind by more than this: so long no filter is kept.
_KEEP_MAX = timedelta(minutes=1)
# A code is on record within so long of the time it says it was issued at (sql.transact gives up earlier).
_COMMIT_MAX = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class _Filter:
    data: bytes
    # When it was built, when somebody last saw that it is current, and what the newest change in it was.
    build_time: datetime
    check_time: datetime
    change_time: datetime | None


class Trust:
    """Makes trust bundles.

    Args:
        recorder: Transactions.
        keys: What they hold and are signed with.
        terms: The deployment's.
    """

    def __init__(self, recorder: Recorder, keys: KeyRing, terms: Terms) -> None:
        self._recorder = recorder
        self._keys = keys
        self._terms = terms
        self._filters: dict[str, _Filter] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def bundle(self, terminal: Terminal) -> pb.SignedTrustBundle:
        """A bundle for one terminal, with the next version.

        Raises:
            Refusal: terminal_revoked.
        """
        issued = await self._issued(terminal.scope)
        now = self._recorder.now()
        async with self._recorder.reading() as connection:
            denied = await store.denied_keys(connection, terminal.scope, now=now)
        version = await self._next_version(terminal.terminal_id)
        server_time = bundle_time(version)
        bundle = pb.TrustBundle(
            version=version,
            terminal=terminal.name,
            server_time=times.timestamp(server_time),
            issuer=self._terms.issuer,
            scope=terminal.scope,
            tiers=wire.tiers(self._terms),
            code_keys=[
                pb.CodeKey(
                    keyset=keyset.number,
                    epoch_time=times.timestamp(keyset.epoch_time),
                    key=self._keys.scope_key(keyset, terminal.scope),
                )
                for keyset in self._keys.spendable(server_time)
            ],
            issuer_keys=[
                pb.IssuerKey(key_id=key_id, public_key=public_key)
                for key_id, public_key in self._keys.issuer_keys.items()
            ],
            denied=denied,
            issued=pb.IssuedFilter(
                data=issued.data, build_time=times.timestamp(issued.check_time - _COMMIT_MAX)
            ),
            limits=wire.limits(self._terms),
            spend_days=self._terms.spend_days,
        )
        return signed.sign_bundle(bundle, self._keys.issuer_key)

    async def _next_version(self, terminal_id: UUID) -> int:
        # The instant it is made at, in microseconds; one more than the last where a replica's clock is behind.
        async def work(connection: AsyncConnection) -> int:
            terminal = await terminal_store.lock_terminal(connection, terminal_id)
            assert terminal is not None
            if terminal.revoke_time is not None:
                raise refusals.terminal_revoked(terminal.name)
            version = max(terminal.bundle_version + 1, sql.micros(self._recorder.now()))
            await terminal_store.set_bundle_version(connection, terminal_id, version)
            return version

        return await self._recorder.transact(work)

    async def _issued(self, scope: str) -> _Filter:
        async with self._locks[scope]:
            known = self._filters.get(scope)
            now = self._recorder.now()
            if known is not None and now - known.check_time < _LOOK_AGAIN:
                return known
            async with self._recorder.reading() as connection:
                change_time = await store.last_change(connection, scope)
                current = (
                    known is not None
                    and known.change_time == change_time
                    and now - known.build_time < _KEEP_MAX
                )
                keys = [] if current else await store.issued_keys(connection, scope, now=now)
            if current and known is not None:
                fresh = _Filter(known.data, known.build_time, now, change_time)
            else:
                data = await asyncio.to_thread(issued_filter.build, keys)
                fresh = _Filter(data, now, now, change_time)
            self._filters[scope] = fresh
            return fresh
