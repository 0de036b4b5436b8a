"""A service's event log: facts written with the change that made them true, and their way to Redis Streams.

A row holds what one transaction recorded, in order, or a part of it. The log is kept: folding it from nothing
rebuilds the service's state (design, law 7).
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

from services import bulk, sql
from services.names import stream_name
from tallystick.event.v1 import event_pb2

log = logging.getLogger(__name__)

# Events of one transaction that share a row, and so an entry of the stream: ten payments. More would save little,
# and make what an entry weighs, and so what Redis may hold, hard to bound.
_EVENTS_PER_ROW = 30
# Entries a stream keeps, about a gigabyte at most: a consumer may be away for 100,000 payments when they come one
# by one, and for a quarter of an hour at 1,000 a second. Who was away longer lists and starts anew.
STREAM_ENTRIES_MAX = 100_000
_ROWS_PER_TURN = 64
_LEASE_MS = 5_000
# From one publication to the next. What comes out of groups that commit every few milliseconds is published together:
# four statements and commands a turn, whatever it holds. The first event after a silence does not wait.
_TURN_SECONDS = 0.15
# Takes the lease, or renews it.
_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Publishes rows, unless the lease is another replica's by now: who paused between looking at the lease and here
# would put old events behind newer ones.
_PUBLISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for row = 3, #ARGV do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'events', ARGV[row])
end
return 1
"""
# Gives the lease up, unless another replica has taken it meanwhile.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"
# What a replica without the lease committed waits this long, and a suspension must reach every service within
# a second.
_POLL_SECONDS = 0.4


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
    rows = [
        {
            "events": event_pb2.EventBatch(
                events=events[start : start + _EVENTS_PER_ROW]
            ).SerializeToString(),
            "relayed": 0,
        }
        for start in range(0, len(events), _EVENTS_PER_ROW)
    ]
    await bulk.insert(connection, log_table, rows)


class Relay:
    """Publishes a service's event log to its Redis stream, in order, at least once.

    One replica publishes at a time (a lease in Redis); `wake` makes it look at once after a commit.
    """

    def __init__(self, engine: AsyncEngine, log_table: sa.Table, redis: Redis, source: str) -> None:
        self._engine = engine
        self._table = log_table
        self._redis = redis
        self._source = source
        # As text: building it anew, many times a second, costs more than the server takes to answer it.
        self._unpublished = (
            f"SELECT log_id, events FROM {log_table.name} WHERE relayed = 0"  # noqa: S608 - a table of ours
            f" ORDER BY log_id LIMIT {_ROWS_PER_TURN}"
        )
        # In braces: in a Redis Cluster, one script's keys must lie together.
        self._lease_key = f"{{{stream_name(source)}}}:relay"
        self._wake = asyncio.Event()
        self._token = secrets.token_hex(8)
        self._renew_at = 0.0

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
                published = await self._lease() and await self._publish()
                delay = 0.05
                if published:
                    await asyncio.sleep(_TURN_SECONDS)
                    continue
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
                self._renew_at = 0.0
                log.warning(
                    "events wait",
                    extra={"source": self._source, "cause": repr(error)[:300]},
                )
                await asyncio.sleep(delay)
                delay = min(2.0, delay * 2)

    async def _lease(self) -> bool:
        clock = asyncio.get_running_loop().time
        if clock() < self._renew_at:
            return True
        held = await self._redis.eval(_ACQUIRE, 1, self._lease_key, self._token, str(_LEASE_MS))
        # Renewed at half its life, so that it seldom runs out on the way.
        self._renew_at = clock() + _LEASE_MS / 2000 if held else 0.0
        return bool(held)

    async def _release(self) -> None:
        await self._redis.eval(_RELEASE, 1, self._lease_key, self._token)

    async def _publish(self) -> bool:
        async with sql.reading(self._engine) as connection:
            rows = (await connection.exec_driver_sql(self._unpublished)).all()
        if not rows:
            return False
        # As they were written: parsing and packing every event costs more than the commit.
        payloads: Any = [bytes(row.events) for row in rows]
        published = await self._redis.eval(
            _PUBLISH,
            2,
            self._lease_key,
            stream_name(self._source),
            self._token,
            str(STREAM_ENTRIES_MAX),
            *payloads,
        )
        if not published:
            self._renew_at = 0.0
            return False
        ids = ",".join(str(row.log_id) for row in rows)
        done = f"UPDATE {self._table.name} SET relayed = 1 WHERE log_id IN ({ids})"  # noqa: S608 - numbers of ours
        async with self._engine.begin() as connection:
            await connection.exec_driver_sql(done)
        return True
