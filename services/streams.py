"""Reading the event streams of other services: live, or effectively once as a group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
)
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from services.names import stream_name
from services.refusal import Refusal
from services.rpc import refusals
from tallystick.event.v1 import event_pb2

log = logging.getLogger(__name__)

_BLOCK_MS = 1_000
_ENTRIES_AT_ONCE = 200
# What a watcher may lag behind before it is sent away.
_WATCHER_ENTRIES_MAX = 2_000
# What a member of a group took and did not finish in this time goes to another: its process is gone.
_ABANDONED_MS = 30_000
_CLAIM_EVERY_SECONDS = 10.0
_CURSOR = re.compile("[0-9]{1,20}-[0-9]{1,20}")


@dataclass(frozen=True)
class _Entry:
    """What one entry of a stream holds: some of the events of one transaction, in order."""

    entry_id: str
    events: Sequence[event_pb2.Event]

    @cached_property
    def subjects(self) -> frozenset[str]:
        """What its events are about."""
        return frozenset(event.subject for event in self.events)

    def behind(self, cursor: str) -> Iterator[tuple[str, event_pb2.Event]]:
        """Its events, each with the cursor to resume behind it.

        Inside an entry that is the cursor before the entry: who stops there gets the whole entry again, and
        knows what it had by `event_id`.
        """
        last = len(self.events) - 1
        for number, event in enumerate(self.events):
            yield (self.entry_id if number == last else cursor), event


class _Connection(Connection):
    """One that a cancelled task does not survive.

    redis-py sends through `asyncio.wait_for`, which on Python 3.11 drops a cancellation that arrives just
    when the sending is done (https://github.com/python/cpython/issues/86296): a reader told to stop would
    go on for ever, and its service would never end.
    """

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        await super().send_packed_command(command, check_health)
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # nobody will read the answer
            raise asyncio.CancelledError


class _TlsConnection(_Connection, SSLConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Connection,
    SSLConnection: _TlsConnection,
}


def connect(url: str) -> Redis:
    """A Redis client that fails fast. The caller closes it."""
    redis = Redis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=1,
        socket_timeout=5,
        health_check_interval=10,
    )
    pool = redis.connection_pool
    pool.connection_class = _CONNECTIONS.get(pool.connection_class, pool.connection_class)
    return redis


async def latest(redis: Redis, source: str) -> str:
    """The cursor of the newest event: what comes later is behind it."""
    entries: Any = await redis.xrevrange(stream_name(source), count=1)
    return entries[0][0].decode() if entries else "0-0"


async def check_cursor(redis: Redis, source: str, cursor: str) -> None:
    """See that nothing behind a cursor has been dropped.

    Raises:
        Refusal: cursor_expired, also for what is no cursor of this stream at all.
    """
    if not _CURSOR.fullmatch(cursor):
        raise refusals.cursor_expired()
    first: Any = await redis.xrange(stream_name(source), count=1)
    if cursor == "0-0":  # the stream was empty; what has come since must all be there
        if first:
            info: Any = await redis.xinfo_stream(stream_name(source))
            if info["entries-added"] > info["length"]:
                raise refusals.cursor_expired()
        return
    # A stream that Redis lost starts again with newer ids: whoever holds an older cursor may have missed events.
    if not first or is_behind(first[0][0].decode(), cursor):
        raise refusals.cursor_expired()
    # Nobody was given a cursor ahead of the stream: who followed it would wait for events that never come.
    if is_behind(cursor, await latest(redis, source)):
        raise refusals.cursor_expired()


def is_behind(cursor: str, other: str) -> bool:
    """Whether a cursor of the same stream comes later than another."""
    return _position(cursor) > _position(other)


def _position(cursor: str) -> tuple[int, int]:
    milliseconds, _, number = cursor.partition("-")
    return int(milliseconds), int(number)


async def follow(
    redis: Redis, source: str, cursor: str
) -> AsyncIterator[tuple[str, event_pb2.Event]]:
    """Every event behind a cursor, as it comes, with its own cursor. Ends only by cancellation.

    Redis may go and come back; what was published meanwhile follows.
    """
    while True:
        try:
            entries = await _read(redis, source, cursor)
        except RedisError as error:
            log.warning("stream waits", extra={"source": source, "cause": repr(error)[:300]})
            await asyncio.sleep(0.5)
            continue
        for entry in entries:
            for position, event in entry.behind(cursor):
                yield position, event
            cursor = entry.entry_id


class Feed:
    """One live reader of a stream for any number of watchers in this process."""

    def __init__(self, redis: Redis, source: str) -> None:
        self._redis = redis
        self._source = source
        self._watchers: set[asyncio.Queue[_Entry]] = set()
        self._asked = asyncio.Event()
        self._reading = asyncio.Event()

    async def run(self) -> None:
        """Read while somebody watches, until cancelled.

        A watcher that does not keep up is dropped; its cursor lets it resume.
        """
        while True:
            await self._asked.wait()
            try:
                cursor = await latest(self._redis, self._source)
                self._reading.set()
                while self._watchers:
                    for entry in await _read(self._redis, self._source, cursor):
                        cursor = entry.entry_id
                        self._tell(entry)
            except RedisError as error:
                # What they would miss from here on, watchers get again by their cursor.
                self._watchers.clear()
                self._reading.set()  # who waits for the reading to begin learns that it does not
                log.warning("feed ends", extra={"source": self._source, "cause": repr(error)[:300]})
            self._reading.clear()
            self._asked.clear()

    def _tell(self, entry: _Entry) -> None:
        for queue in list(self._watchers):
            try:
                queue.put_nowait(entry)
            except asyncio.QueueFull:
                self._watchers.discard(queue)

    async def watch(
        self, cursor: str, wanted: Callable[[event_pb2.Event], bool]
    ) -> AsyncIterator[tuple[str, event_pb2.Event | None]]:
        """First where the stream stands, with no event; then every wanted event, with its cursor.

        Behind `cursor` when it is given, else from now on.

        Raises:
            Refusal: cursor_expired; overloaded, when the watcher did not keep up.
        """
        async with contextlib.aclosing(self._follow(cursor)) as entries:
            async for before, entry in entries:
                if entry is None:
                    yield before, None
                    continue
                for position, event in entry.behind(before):
                    if wanted(event):
                        yield position, event

    async def watch_subjects(
        self, cursor: str, subjects: KeysView[str]
    ) -> AsyncIterator[tuple[str, list[event_pb2.Event]]]:
        """As `watch`, for events about some subjects. Those of one entry come in one list; the first list is empty.

        With twenty watchers, nineteen of twenty events are somebody else's: most entries are passed over whole.
        """
        async with contextlib.aclosing(self._follow(cursor)) as entries:
            async for before, entry in entries:
                if entry is None:
                    yield before, []
                elif not subjects.isdisjoint(entry.subjects):
                    yield (
                        entry.entry_id,
                        [each for each in entry.events if each.subject in subjects],
                    )

    async def _follow(self, cursor: str) -> AsyncGenerator[tuple[str, _Entry | None], None]:
        """Where the stream stands; then every entry, with the cursor before it."""
        if cursor:
            await check_cursor(self._redis, self._source, cursor)
        else:
            cursor = await latest(self._redis, self._source)
        queue: asyncio.Queue[_Entry] = asyncio.Queue(_WATCHER_ENTRIES_MAX)
        self._watchers.add(queue)
        self._asked.set()
        try:
            await self._reading.wait()
            yield cursor, None
            while True:  # what came before this watcher was there to hear it
                missed: Any = await self._redis.xrange(
                    stream_name(self._source), min=f"({cursor}", count=_ENTRIES_AT_ONCE
                )
                for entry in _entries([[None, missed]]):
                    yield cursor, entry
                    cursor = entry.entry_id
                if len(missed) < _ENTRIES_AT_ONCE:
                    break
            async for entry in self._heard(queue):
                if is_behind(entry.entry_id, cursor):
                    yield cursor, entry
                    cursor = entry.entry_id
            raise refusals.overloaded(timedelta(seconds=1))
        finally:
            self._watchers.discard(queue)

    async def _heard(self, queue: asyncio.Queue[_Entry]) -> AsyncIterator[_Entry]:
        while queue in self._watchers or not queue.empty():
            try:
                async with asyncio.timeout(_BLOCK_MS / 1000):
                    entry = await queue.get()
            except TimeoutError:
                continue
            yield entry


async def consume(
    redis: Redis,
    source: str,
    group: str,
    consumer: str,
    handle: Callable[[event_pb2.Event], Awaitable[None]],
    *,
    wanted: Callable[[event_pb2.Event], bool] = lambda _: True,
    at_once: int = 1,
) -> None:
    """Hand every wanted event of a stream to one member of a group, until cancelled, in order per member.

    With `at_once` above 1, so many are handed over together, for a `handle` that minds neither order nor company.

    An event is acknowledged after `handle` returns, so it may come again after a crash: `handle` must make a second
    time harmless. When `handle` fails because something it needs is away, the event is tried again, not dropped.
    What another member took and never finished is taken over, so a member's name need not outlive its process.
    """
    key = stream_name(source)
    clock = asyncio.get_running_loop().time
    claim_at = clock()
    pending = True  # first what this consumer took before and did not finish
    while True:
        try:
            if clock() >= claim_at:
                taken = await redis.xautoclaim(
                    key, group, consumer, _ABANDONED_MS, count=_ENTRIES_AT_ONCE, justid=True
                )
                pending = pending or bool(taken)
                claim_at = clock() + _CLAIM_EVERY_SECONDS
            answer = await redis.xreadgroup(
                group,
                consumer,
                {key: "0" if pending else ">"},
                count=_ENTRIES_AT_ONCE,
                block=None if pending else _BLOCK_MS,
            )
            entries = _entries(answer)
            if pending and not entries:
                pending = False
                continue
            # A task for each of 3,000 events a second, to find that it is none of ours, would take a tenth of a core.
            events = [event for entry in entries for event in entry.events if wanted(event)]
            for start in range(0, len(events), at_once):
                await asyncio.gather(*map(handle, events[start : start + at_once]))
            # One acknowledgement for all: one for each would cost more than reading the event does.
            if entries:
                await redis.xack(key, group, *(entry.entry_id for entry in entries))
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await _create_group(redis, key, group)
            pending = True
        except Exception as error:
            # SQLAlchemy takes 20 MB and half a second, which a process without a database need not spend.
            from services import sql

            away = isinstance(error, RedisError | Refusal)
            if not (away or sql.is_lost(error) or sql.is_conflict(error)):
                raise
            log.warning(
                "consumer waits",
                extra={"source": source, "group": group, "cause": repr(error)[:300]},
            )
            pending = True
            await asyncio.sleep(0.5)


async def _read(redis: Redis, source: str, cursor: str) -> list[_Entry]:
    streams: Any = {stream_name(source): cursor}
    return _entries(await redis.xread(streams, count=_ENTRIES_AT_ONCE, block=_BLOCK_MS))


def _entries(answer: Any) -> list[_Entry]:
    # One stream is read at a time: [[key, [(id, fields), …]]]; fields are None for an entry trimmed meanwhile.
    if not answer:
        return []
    return [
        _Entry(
            entry_id.decode(),
            event_pb2.EventBatch.FromString(fields[b"events"]).events if fields else (),
        )
        for entry_id, fields in answer[0][1]
    ]


async def _create_group(redis: Redis, key: str, group: str) -> None:
    try:
        await redis.xgroup_create(key, group, id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
