"""Keeps the index of vendor sites, and its table, in step with the user service."""

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
from services.fraud.clients import Parties, vendor_sites
from services.fraud.domain.sites import SiteIndex, VendorSites
from services.refusal import Refusal
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2

log = logging.getLogger(__name__)

_SOURCE = "user"
# Vendors written in one transaction, and asked for in one call.
_VENDORS_PER_TURN = 500
_REFRESH_DEADLINE_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_SAVE_SECONDS = 0.5


class SiteFeed:
    """Feeds the index from the table, then from the `user` stream, and writes it back to the table.

    Every replica follows the whole stream and keeps an index of its own; they share the table. What
    is not in the table yet when a replica dies is behind the stored cursor, and read again.
    """

    def __init__(
        self, engine: AsyncEngine, redis: Redis, parties: Parties, index: SiteIndex
    ) -> None:
        self._engine = engine
        self._redis = redis
        self._parties = parties
        self._index = index
        self._cursor = "0-0"
        self._saved_cursor = ""

    async def load(self) -> None:
        """Fill the index from the table; call it before serving."""
        async with sql.reading(self._engine) as connection:
            # The cursor first: read after the table, it could be ahead of what the table said.
            cursor = await store.read_cursor(connection, _SOURCE)
            vendors = await store.read_vendors(connection)
        self._index.load(vendors)
        if cursor is not None:
            self._cursor = self._saved_cursor = cursor
        log.info("sites loaded", extra={"vendors": len(vendors), "cursor": self._cursor})

    async def follow(self) -> None:
        """Take every event as it comes, until cancelled."""
        self._cursor = await self._starting_cursor()
        async for position, event in streams.follow(self._redis, _SOURCE, self._cursor):
            self._take(event)
            self._cursor = position

    async def save(self) -> None:
        """Write to the table what the index has learnt, twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            try:
                await self.save_now()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("sites wait to be saved", extra={"cause": repr(error)[:300]})

    async def save_now(self) -> None:
        """Write what the table does not hold yet.

        Raises:
            DBAPIError: it could not be written; it is kept for the next time.
        """
        # Taken together, before anything is awaited: the cursor covers exactly these changes.
        position, changed = self._cursor, self._index.take_changed()
        if not changed and position == self._saved_cursor:
            return
        written = 0
        try:
            while len(changed) - written > _VENDORS_PER_TURN:
                turn = dict(islice(changed.items(), written, written + _VENDORS_PER_TURN))
                await self._write(turn, None)
                written += len(turn)
            await self._write(dict(islice(changed.items(), written, None)), position)
        except BaseException:
            self._index.put_back(changed)
            raise
        self._saved_cursor = position

    async def _write(self, vendors: dict[str, VendorSites], position: str | None) -> None:
        async def work(connection: AsyncConnection) -> None:
            earlier = await store.lock_cursor(connection, _SOURCE)
            if vendors:
                await store.save_vendors(connection, vendors)
            if position is not None:
                await store.save_cursor(connection, _SOURCE, earlier, position)

        await sql.transact(self._engine, work)

    def _take(self, event: event_pb2.Event) -> None:
        if event.WhichOneof("fact") != "user_changed":
            return
        fact = event.user_changed
        if fact.user.role == access_pb2.ROLE_VENDOR:
            self._index.apply(fact.user.name, vendor_sites(fact.user, fact.sites))

    async def _starting_cursor(self) -> str:
        while True:
            try:
                await streams.check_cursor(self._redis, _SOURCE, self._cursor)
            except Refusal:
                # Events this replica has not seen are gone from the stream. What comes from here on
                # is followed; every vendor it knows is asked for anew, others when they are met.
                return await self._refresh()
            except RedisError as error:
                log.warning("stream waits", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return self._cursor

    async def _refresh(self) -> str:
        while True:
            try:
                cursor = await streams.latest(self._redis, _SOURCE)
                known = iter(self._index.names())
                while turn := list(islice(known, _VENDORS_PER_TURN)):
                    found = await self._parties.find(
                        turn, deadline_seconds=_REFRESH_DEADLINE_SECONDS
                    )
                    for vendor, sites in found.items():
                        self._index.apply(vendor, sites)
            except (AioRpcError, RedisError) as error:
                log.warning("sites wait to be read anew", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                log.info("sites read anew", extra={"vendors": len(self._index), "cursor": cursor})
                return cursor
