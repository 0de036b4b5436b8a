"""Reading event streams: what a dead member of a group took is not lost, and a reader told to stop stops."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from services import event_log, streams
from services.refusal import Refusal
from tests.event_stream import an_event, publish
from tests.eventually import eventually


@pytest.fixture
async def redis(valkey_url):
    client = streams.connect(valkey_url)
    yield client
    await client.aclose()


async def test_what_a_dead_member_of_a_group_took_goes_to_another(redis, monkeypatch):
    monkeypatch.setattr(streams, "_ABANDONED_MS", 0)
    key = event_log.stream_name("user")
    events = [an_event("user", f"users/{number}") for number in range(3)]
    await publish(redis, *events)
    await redis.xgroup_create(key, "readers", id="0")
    await redis.xreadgroup("readers", "dead", {key: ">"}, count=2)
    seen = []

    async def handle(event):
        seen.append(event.event_id)

    reading = asyncio.create_task(streams.consume(redis, "user", "readers", "living", handle))
    await eventually(lambda: len(seen) == 3)
    reading.cancel()
    await asyncio.wait([reading])

    assert seen == [event.event_id for event in events]


async def test_what_was_not_handled_is_handled_again(redis):
    events = [an_event("user", f"users/{number}") for number in range(3)]
    await publish(redis, *events)
    seen, troubles = [], [TimeoutError()]

    async def handle(event):
        seen.append(event.event_id)
        if len(seen) == 2 and troubles:
            raise troubles.pop()

    reading = asyncio.create_task(streams.consume(redis, "user", "readers", "one", handle))
    await eventually(lambda: len(seen) == 5)
    reading.cancel()
    await asyncio.wait([reading])

    ids = [event.event_id for event in events]
    assert seen == ids[:2] + ids


async def test_a_reader_that_is_cancelled_as_its_command_leaves_stops(redis, monkeypatch):
    send = Connection._send_packed_command
    readers = []

    async def send_and_be_cancelled(connection, command):
        await send(connection, command)
        if readers:
            readers.pop().cancel()

    monkeypatch.setattr(Connection, "_send_packed_command", send_and_be_cancelled)

    async def follow():
        async for _ in streams.follow(redis, "user", "0-0"):
            pass

    reading = asyncio.create_task(follow())
    await redis.ping()
    readers.append(reading)

    done, _ = await asyncio.wait([reading], timeout=3)
    assert done
    assert reading.cancelled()


async def test_what_was_handled_and_not_acknowledged_comes_again(redis, monkeypatch):
    """So a handler must make a second time harmless: the crash may come between the two."""
    events = [an_event("user", f"users/{number}") for number in range(2)]
    await publish(redis, *events)
    seen, troubles, acknowledge = [], [RedisConnectionError()], redis.xack

    async def handle(event):
        seen.append(event.event_id)

    async def lose(*arguments):
        if troubles:
            raise troubles.pop()
        return await acknowledge(*arguments)

    monkeypatch.setattr(redis, "xack", lose)
    reading = asyncio.create_task(streams.consume(redis, "user", "readers", "one", handle))
    await eventually(lambda: len(seen) == 4)
    await publish(redis, an_event("user", "users/2"))
    await eventually(lambda: len(seen) == 5)
    reading.cancel()
    await asyncio.wait([reading])

    assert seen[:4] == [event.event_id for event in events] * 2


@asynccontextmanager
async def feeding(redis):
    feed = streams.Feed(redis, "user")
    running = asyncio.create_task(feed.run())
    yield feed
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_a_watcher_that_does_not_keep_up_is_sent_away_and_can_resume(redis, monkeypatch):
    monkeypatch.setattr(streams, "_WATCHER_ENTRIES_MAX", 3)
    async with feeding(redis) as feed:
        watcher = feed.watch("", lambda _: True)
        cursor, nothing = await anext(watcher)
        assert nothing is None
        events = [an_event("user", f"users/{number}") for number in range(10)]
        await publish(redis, *events)
        await eventually(lambda: not feed._watchers)

        heard = []
        for _ in events:
            cursor, event = await anext(watcher)
            heard.append(event.event_id)
        with pytest.raises(Refusal) as raised:
            await anext(watcher)
        assert raised.value.reason == "OVERLOADED"

        again = feed.watch(cursor, lambda _: True)
        await anext(again)
        await publish(redis, last := an_event("user", "users/10"))
        heard.append((await anext(again))[1].event_id)
        await again.aclose()
    assert heard == [event.event_id for event in [*events, last]]


async def test_a_watcher_who_comes_just_as_redis_goes_is_not_left_waiting(redis, monkeypatch):
    answers = iter(["0-0"])

    async def latest(*_):
        try:
            return next(answers)
        except StopIteration:
            raise RedisConnectionError from None

    monkeypatch.setattr(streams, "latest", latest)
    async with feeding(redis) as feed:
        watcher = feed.watch("", lambda _: True)
        async with asyncio.timeout(3):
            await anext(watcher)
            with pytest.raises(Refusal):
                await anext(watcher)


async def test_what_is_published_between_a_watchers_cursor_and_its_first_look_is_heard(redis):
    async with feeding(redis) as feed:
        watcher = feed.watch("", lambda _: True)
        await anext(watcher)
        await publish(redis, event := an_event("user", "users/1"))

        assert (await anext(watcher))[1] == event
        await watcher.aclose()
        assert not feed._watchers
