"""Reading event streams: what a dead member of a group took is not lost, and a reader told to stop stops."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Connection

from services import event_log, streams
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
