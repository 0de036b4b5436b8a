"""The way of a service's facts from its event log to its stream: all of them, in order, whatever breaks."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from redis.exceptions import ConnectionError as RedisConnectionError

from services import event_log, names, sql, streams
from services.event_log import Relay
from services.payment.store import event_log as table
from services.rpc.lifetime import end
from tallystick.event.v1 import event_pb2
from tests.event_stream import an_event
from tests.eventually import eventually
from tests.outages import Valkey, running

STREAM = names.stream_name("payment")
LEASE = f"{{{STREAM}}}:relay"


class Log:
    """An event log, and the stream its events go to."""

    def __init__(self, engine, redis):
        self.engine = engine
        self.redis = redis
        self.written = []

    async def append(self, count=1, *, relays=()):
        """So many events in one transaction."""
        start = len(self.written)
        events = [an_event("payment", f"payments/{start + number}") for number in range(count)]
        async with self.engine.begin() as connection:
            await event_log.append(connection, table, events)
        self.written += [event.event_id for event in events]
        for relay in relays:
            relay.wake()

    async def published(self):
        """The ids of the events on the stream, in order."""
        batches = [
            event_pb2.EventBatch.FromString(fields[b"events"])
            for _, fields in await self.redis.xrange(STREAM)
        ]
        return [event.event_id for batch in batches for event in batch.events]

    async def is_relayed(self):
        query = sa.select(sa.func.count()).select_from(table).where(table.c.relayed == 0)
        async with sql.reading(self.engine) as connection:
            return (await connection.execute(query)).scalar_one() == 0

    def relay(self):
        return Relay(self.engine, table, self.redis, "payment")


@asynccontextmanager
async def relaying(*relays):
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    yield
    assert [task for task in tasks if task.done()] == []
    await end(*tasks)


@pytest.fixture
async def log(database_url, valkey_url):
    engine, redis = sql.create_engine(database_url("payment")), streams.connect(valkey_url)
    yield Log(engine, redis)
    await redis.aclose()
    await engine.dispose()


class Troubled:
    """A Redis client that does what `trouble` says when rows are published; everything else it passes on."""

    def __init__(self, redis, trouble):
        self._redis = redis
        self._trouble = trouble

    def __getattr__(self, name):
        return getattr(self._redis, name)

    async def eval(self, script, *arguments):
        if "XADD" in script:
            return await self._trouble(lambda: self._redis.eval(script, *arguments))
        return await self._redis.eval(script, *arguments)


def firsts(ids):
    """Each id where it came first."""
    return list(dict.fromkeys(ids))


async def test_events_are_published_in_the_order_they_were_recorded(log):
    for count in (1, 3, 100, 1, 31):
        await log.append(count)
    relay = log.relay()

    async with relaying(relay):
        for count in (2, 64):
            await log.append(count, relays=[relay])
        await eventually(log.is_relayed)

    assert await log.published() == log.written


async def test_more_than_one_turn_holds_is_published_whole(log):
    for _ in range(150):
        await log.append()

    async with relaying(log.relay()):
        await eventually(log.is_relayed)

    assert await log.published() == log.written


async def test_what_was_rolled_back_is_never_published(log):
    async with log.engine.connect() as connection:
        await connection.begin()
        await event_log.append(connection, table, [an_event("payment", "payments/never")])
        await connection.rollback()
    await log.append()

    async with relaying(log.relay()):
        await eventually(log.is_relayed)

    assert await log.published() == log.written


async def test_a_transaction_with_nothing_to_tell_writes_nothing(log):
    await log.append(0)

    async with sql.reading(log.engine) as connection:
        assert (await connection.execute(sa.select(table))).all() == []


async def test_several_relays_publish_everything_once_and_in_order(log):
    relays = [log.relay() for _ in range(3)]

    async with relaying(*relays):
        for _ in range(60):
            await log.append(2, relays=relays)
        await eventually(log.is_relayed)

    assert await log.published() == log.written


async def test_a_relay_that_slept_through_its_lease_does_not_put_old_events_behind_newer_ones(log):
    """Paused just before it publishes, as by a long collection of garbage or a moved virtual machine."""
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(publish):
        paused.set()
        await go_on.wait()
        return await publish()

    sleeper = Relay(log.engine, table, Troubled(log.redis, sleep), "payment")
    await log.append(3)
    async with relaying(sleeper):
        await paused.wait()
        await log.redis.delete(LEASE)  # it has run out
        other = log.relay()
        async with relaying(other):
            await log.append(3, relays=[other])
            await eventually(log.is_relayed)
            go_on.set()
            await log.append(3, relays=[other, sleeper])
            await eventually(log.is_relayed)

    assert await log.published() == log.written


async def test_what_was_published_and_never_answered_comes_again_and_nothing_is_missed(log):
    troubles = 2

    async def lose_the_answer(publish):
        nonlocal troubles
        await publish()
        if troubles:
            troubles -= 1
            raise RedisConnectionError
        return 1

    relay = Relay(log.engine, table, Troubled(log.redis, lose_the_answer), "payment")
    await log.append(2)
    async with relaying(relay):
        await eventually(lambda: not troubles)
        await log.append(2, relays=[relay])
        await eventually(log.is_relayed)

    published = await log.published()
    assert firsts(published) == log.written
    assert len(published) > len(log.written)  # consumers know them by their ids


async def test_a_relay_that_dies_between_publishing_and_noting_it_loses_nothing(log):
    died = asyncio.Event()

    async def die(publish):
        await publish()
        died.set()
        await asyncio.Event().wait()

    await log.append(2)
    async with relaying(Relay(log.engine, table, Troubled(log.redis, die), "payment")):
        await died.wait()
    await log.append(2)
    async with relaying(log.relay()):
        await eventually(log.is_relayed)

    assert firsts(await log.published()) == log.written


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_events_recorded_while_redis_was_away_follow_in_order(database_url, tmp_path):
    async with running(Valkey(tmp_path)) as server:
        engine, redis = sql.create_engine(database_url("payment")), streams.connect(server.url)
        log = Log(engine, redis)
        relay = log.relay()
        async with relaying(relay):
            await log.append(2, relays=[relay])
            await eventually(log.is_relayed)
            await server.stop()
            for _ in range(3):
                await log.append(2, relays=[relay])
            await server.start()
            await eventually(log.is_relayed)

        assert firsts(await log.published()) == log.written
        await redis.aclose()
        await engine.dispose()


async def test_a_relay_that_stops_leaves_the_lease_to_the_next(log):
    async with relaying(log.relay()):
        await eventually(lambda: log.redis.exists(LEASE))

    assert not await log.redis.exists(LEASE)
