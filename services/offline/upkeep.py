"""What is done by itself: sagas that a crash left, codes whose time is over, keysets that are old."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import sql
from services.offline import events
from services.offline.clients import Payment
from services.offline.domain.code import Code, Release, State
from services.offline.events import PLATFORM, Circumstances
from services.offline.issuing import Issuing
from services.offline.keyring import KeyRing
from services.offline.recorder import Recorder
from services.offline.store import codes as store
from services.offline.store import journals
from services.refusal import Refusal
from tallystick.payment.v1 import settlement_service_pb2 as settlement

log = logging.getLogger(__name__)

_AT_ONCE = 500
# An upload is on record within so long of the time it says it arrived at (sql.transact gives up on a try earlier).
_COMMIT_MAX = timedelta(seconds=60)


class Upkeep:
    """Looks, again and again.

    Args:
        recorder: Transactions.
        issuing: Its requests that wait.
        payment: Gives the money behind codes back.
        keys: Keysets.
        sweep_seconds: How often it looks.
    """

    def __init__(
        self,
        recorder: Recorder,
        issuing: Issuing,
        payment: Payment,
        keys: KeyRing,
        *,
        sweep_seconds: float,
    ) -> None:
        self._recorder = recorder
        self._issuing = issuing
        self._payment = payment
        self._keys = keys
        self._sweep_seconds = sweep_seconds
        self._releasing = asyncio.Lock()

    async def run(self) -> None:
        """Look at once and then every `sweep_seconds`, until cancelled."""
        while True:
            for work in (self._issuing.sweep, self.release, self._rotate):
                try:
                    await work()
                except Exception as error:
                    away = isinstance(error, grpc.aio.AioRpcError | Refusal)
                    if not (away or sql.is_lost(error) or sql.is_conflict(error)):
                        raise
                    log.warning("upkeep waits", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(self._sweep_seconds)

    async def _rotate(self) -> None:
        try:
            await self._keys.rotate_old()
        except Refusal as refusal:
            # Codes go on under the old one: a code counts 64 days, and a keyset is replaced long before.
            log.warning("no keyset number is free", extra=refusal.metadata)

    async def release(self) -> None:
        """Give the money behind codes back whose time is over.

        A saga of three steps: one transaction takes the codes away from items that may yet come; payment is asked; one
        transaction records that it is done. Settling takes the same rows: of the two, one wins.

        When it returns, what was due when it was called is given back, as far as this process goes.

        Raises:
            AioRpcError: payment does not answer.
        """
        async with self._releasing:
            await self._release()

    async def _release(self) -> None:
        while True:
            ended = await self._recorder.transact(self._end)
            if ended:
                self._recorder.tell()
            if ended < _AT_ONCE:
                break
        while True:
            async with self._recorder.reading() as connection:
                due = await store.list_release_due(connection, limit=_AT_ONCE)
            if due:
                states = await self._payment.release(due)
                self._check(states)
                await self._recorder.transact(lambda c, due=due: store.set_released(c, due))  # type: ignore[misc]
            if len(due) < _AT_ONCE:
                return

    async def _end(self, connection: AsyncConnection) -> int:
        now = self._recorder.now()
        # An item that arrived in time and waits to be decided must still find its code.
        oldest = await journals.oldest_undecided(connection)
        before = min(now - _COMMIT_MAX, oldest or now)
        found = await store.lock_releasable(connection, before=before, limit=_AT_ONCE)
        for state, after in (
            (State.ABANDONED, State.ABANDONED),
            (State.ISSUED, State.EXPIRED),
            (State.REVOKED, State.REVOKED),
        ):
            ids = [code.code_id for code in found if code.state is state]
            if ids:
                await store.set_state(connection, ids, after, now=now, release=Release.DUE)
        await self._tell(connection, [code for code in found if code.state is State.ISSUED], now)
        return len(found)

    async def _tell(self, connection: AsyncConnection, expired: list[Code], now: datetime) -> None:
        circumstances = Circumstances(PLATFORM, now)
        owners = dict.fromkeys(code.owner_id for code in expired)
        facts = [
            events.codes_ended(
                self._recorder.new_id(),
                circumstances,
                owner_id,
                [
                    replace(code, state=State.EXPIRED)
                    for code in expired
                    if code.owner_id == owner_id
                ],
            )
            for owner_id in owners
        ]
        await self._recorder.record(connection, facts)

    def _check(self, states: Mapping[UUID, settlement.ReleasedReservation.State.ValueType]) -> None:
        settled = settlement.ReleasedReservation.STATE_SETTLED
        for code_id, state in states.items():
            if state == settled:
                # Only ever seen when the two databases were restored to different times.
                log.error("an unspent code's money is spent", extra={"code": str(code_id)})
