"""Keeps the indexes of vendor sites and payers' tiers, and their tables, in step with the user service."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice

from grpc.aio import AioRpcError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services import sql, streams
from services.fraud import store
from services.fraud.clients import Accounts, standing, vendor_sites
from services.fraud.domain.sites import SiteIndex, VendorSites
from services.fraud.domain.tiers import Standing, TierIndex
from services.refusal import Refusal
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2

log = logging.getLogger(__name__)

_SOURCE = "user"
# What the cursor is kept under. Not `user`: that one was moved on by replicas that did not read tiers, past events
# that may tell of them.
CURSOR = "user-accounts"
# Accounts written in one transaction, and vendors asked for in one call.
_PER_TURN = 500
_REFRESH_DEADLINE_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_SAVE_SECONDS = 0.5


class AccountFeed:
    """Feeds the indexes from their tables, then from the `user` stream, and writes them back.

    Every replica follows the whole stream and keeps indexes of its own; they share the tables. What
    is not in a table yet when a replica dies is behind the stored cursor, and read again.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        redis: Redis,
        accounts: Accounts,
        sites: SiteIndex,
        tiers: TierIndex,
    ) -> None:
        self._engine = engine
        self._redis = redis
        self._accounts = accounts
        self._sites = sites
        self._tiers = tiers
        self._cursor = "0-0"
        self._saved_cursor = ""

    async def load(self) -> None:
        """Fill the indexes from the tables; call it before serving."""
        async with sql.reading(self._engine) as connection:
            # The cursor first: read after the tables, it could be ahead of what they said.
            cursor = await store.read_cursor(connection, CURSOR)
            vendors = await store.read_vendors(connection)
            payers = await store.read_tiers(connection)
        self._sites.load(vendors)
        self._tiers.load(payers)
        if cursor is not None:
            self._cursor = self._saved_cursor = cursor
        known = {"vendors": len(vendors), "payers": len(payers), "cursor": self._cursor}
        log.info("accounts loaded", extra=known)

    async def follow(self) -> None:
        """Take every event as it comes, until cancelled."""
        self._cursor = await self._starting_cursor()
        async for position, event in streams.follow(self._redis, _SOURCE, self._cursor):
            self._take(event)
            self._cursor = position

    async def save(self) -> None:
        """Write to the tables what the indexes have learnt, twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            try:
                await self.save_now()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("accounts wait to be saved", extra={"cause": repr(error)[:300]})

    async def save_now(self) -> None:
        """Write what the tables do not hold yet.

        Raises:
            DBAPIError: it could not be written; it is kept for the next time.
        """
        # Taken together, before anything is awaited: the cursor covers exactly these changes.
        position = self._cursor
        vendors, payers = self._sites.take_changed(), self._tiers.take_changed()
        if not vendors and not payers and position == self._saved_cursor:
            return
        more = max(len(vendors), len(payers), 1)
        sites, tiers = iter(vendors.items()), iter(payers.items())
        try:
            while more > 0:
                more -= _PER_TURN
                turn = dict(islice(sites, _PER_TURN)), dict(islice(tiers, _PER_TURN))
                await self._write(*turn, position if more <= 0 else None)
        except BaseException:
            self._sites.put_back(vendors)
            self._tiers.put_back(payers)
            raise
        self._saved_cursor = position

    async def _write(
        self, vendors: dict[str, VendorSites], payers: dict[str, Standing], position: str | None
    ) -> None:
        async def work(connection: AsyncConnection) -> None:
            earlier = await store.lock_cursor(connection, CURSOR)
            if vendors:
                await store.save_vendors(connection, vendors)
            if payers:
                await store.save_tiers(connection, payers)
            if position is not None:
                await store.save_cursor(connection, CURSOR, earlier, position)

        await sql.transact(self._engine, work)

    def _take(self, event: event_pb2.Event) -> None:
        if event.WhichOneof("fact") != "user_changed":
            return
        fact = event.user_changed
        if fact.user.role == access_pb2.ROLE_VENDOR:
            self._sites.apply(fact.user.name, vendor_sites(fact.user, fact.sites))
        if fact.user.tier != user_pb2.User.TIER_UNSPECIFIED:
            self._tiers.apply(fact.user.name, standing(fact.user))

    async def _starting_cursor(self) -> str:
        while True:
            try:
                if not self._saved_cursor:
                    # The first start on this database: the stream may be younger than some tiers.
                    await self._renew_tiers()
                await streams.check_cursor(self._redis, _SOURCE, self._cursor)
            except Refusal:
                # Events this replica has not seen are gone from the stream. What comes from here on
                # is followed; tiers, and every vendor it knows, are asked for anew, other vendors when
                # they are met.
                return await self._refresh()
            except (AioRpcError, RedisError) as error:
                log.warning("stream waits", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return self._cursor

    async def _refresh(self) -> str:
        while True:
            try:
                cursor = await streams.latest(self._redis, _SOURCE)
                names = iter(self._sites.names())
                while turn := list(islice(names, _PER_TURN)):
                    found = await self._accounts.vendors(
                        turn, deadline_seconds=_REFRESH_DEADLINE_SECONDS
                    )
                    for vendor, sites in found.items():
                        self._sites.apply(vendor, sites)
                await self._renew_tiers()
            except (AioRpcError, RedisError) as error:
                log.warning("accounts wait to be read anew", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                known = {"vendors": len(self._sites), "payers": len(self._tiers)}
                log.info("accounts read anew", extra={**known, "cursor": cursor})
                return cursor

    async def _renew_tiers(self) -> None:
        self._tiers.renew(
            await self._accounts.above_basic(deadline_seconds=_REFRESH_DEADLINE_SECONDS)
        )
