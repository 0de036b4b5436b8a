"""A service's event log: facts written with the change that made them true, and their way to Redis Streams.

One row holds what one transaction recorded, in order. The log is kept: folding it from nothing rebuilds the
service's state (design, law 7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services import sql
from services.names import stream_name
from tallystick.event.v1 import event_pb2

log = logging.getLogger(__name__)

# Entries a stream keeps: a consumer may be away for about a quarter of an hour at 1,000 payments a second,
# with three events each. Who was away longer lists and starts anew.
STREAM_ENTRIES_MAX = 3_000_000
_ROWS_PER_TURN = 64
_LEASE_MS = 5_000
# Gives the lease up, unless another replica has taken it meanwhile.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"
# What a replica without the lease committed waits this long, and a suspension must reach every service within
# a second.
_POLL_SECONDS = 0.25


def table(metadata: sa.MetaData) -> sa.Table:
    """The event log's table, for a service's own metadata."""
    return sa.Table(
        "event_log",
        metadata,
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        # A serialized `event.v1.EventBatch`.
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )


async def append(
    connection: AsyncConnection, log_table: sa.Table, events: Sequence[event_pb2.Event]
) -> None:
    """Record facts in the caller's transaction, in order. Nothing to record records nothing."""
    if events:
        payload = event_pb2.EventBatch(events=events).SerializeToString()
        await connection.execute(sa.insert(log_table), {"events": payload, "relayed": 0})


class Relay:
    """Publishes a service's event log to its Redis stream, in order, at least once.

    One replica publishes at a time (a lease in Redis); `wake` makes it look at once after a commit.
    """

    def __init__(self, engine: AsyncEngine, log_table: sa.Table, redis: Redis, source: str) -> None:
        self._engine = engine
        self._table = log_table
        self._redis = redis
        self._source = source
        self._wake = asyncio.Event()
        self._token = secrets.token_hex(8)

    def wake(self) -> None:
        """Something was committed."""
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled. Redis or the database may go and come back."""
        try:
            await self._run()
        finally:
            # Another replica goes on at once, not when the lease has run out.
            with contextlib.suppress(RedisError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._release()

    async def _run(self) -> None:
        delay = 0.05
        while True:
            try:
                if await self._lease():
                    while await self._publish():
                        await self._lease()
                delay = 0.05
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not (
                    isinstance(error, RedisError) or sql.is_lost(error) or sql.is_conflict(error)
                ):
                    raise
                log.warning(
                    "events wait",
                    extra={"source": self._source, "cause": repr(error)[:300]},
                )
                await asyncio.sleep(delay)
                delay = min(2.0, delay * 2)

    async def _lease(self) -> bool:
        key = f"relay:{self._source}"
        if await self._redis.set(key, self._token, nx=True, px=_LEASE_MS):
            return True
        if await self._redis.get(key) != self._token.encode():
            return False
        await self._redis.pexpire(key, _LEASE_MS)
        return True

    async def _release(self) -> None:
        await self._redis.eval(_RELEASE, 1, f"relay:{self._source}", self._token)

    async def _publish(self) -> bool:
        query = (
            sa.select(self._table.c.log_id, self._table.c.events)
            .where(self._table.c.relayed == 0)
            .order_by(self._table.c.log_id)
            .limit(_ROWS_PER_TURN)
        )
        async with self._engine.begin() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return False
        async with self._redis.pipeline(transaction=False) as pipeline:
            for row in rows:
                for event in event_pb2.EventBatch.FromString(bytes(row.events)).events:
                    fields: dict[Any, Any] = {
                        "id": event.event_id,
                        "event": event.SerializeToString(),
                    }
                    pipeline.xadd(
                        stream_name(self._source),
                        fields,
                        maxlen=STREAM_ENTRIES_MAX,
                        approximate=True,
                    )
            await pipeline.execute()
        done = (
            sa.update(self._table)
            .where(self._table.c.log_id.in_([row.log_id for row in rows]))
            .values(relayed=1)
        )
        async with self._engine.begin() as connection:
            await connection.execute(done)
        return True
