"""Which tokens are refused although they have not expired."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import grpc
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services import sql, streams, times
from services.rpc import refusals
from services.rpc.identity import Caller
from tallystick.user.v1 import auth_service_pb2, auth_service_pb2_grpc

log = logging.getLogger(__name__)

# The stream brings a revocation at once; this bounds the harm of one that Redis lost.
_RELOAD_SECONDS = 30.0
_RETRY_SECONDS = 0.5
# Longer than any access token lives (15 minutes), so what is forgotten refuses nothing.
_MEMORY = timedelta(hours=1)

T = TypeVar("T")
Load = Callable[[], Awaitable[list[tuple[str, datetime]]]]


class Revocations:
    """Subjects and the instant before which their tokens count no more. Fed by `follow_revocations`."""

    def __init__(self) -> None:
        self._revoked: dict[str, int] = {}

    def revoke(self, subject: str, revoke_micros: int) -> None:
        """Refuse the subject's tokens issued before an instant (microseconds since 1970)."""
        self._revoked[subject] = max(revoke_micros, self._revoked.get(subject, 0))

    def check(self, caller: Caller) -> None:
        """Let the caller pass; a terminal also by its vendor.

        Raises:
            Refusal: token_revoked.
        """
        revoked = self._revoked.get(caller.subject, 0)
        if caller.is_terminal:
            vendor = caller.subject.partition("/terminals/")[0]
            revoked = max(revoked, self._revoked.get(vendor, 0))
        if caller.token_issued_micros < revoked:
            raise refusals.token_revoked()

    def forget(self, before_micros: int) -> None:
        """Drop what is older than an instant: every token it could refuse has expired."""
        self._revoked = {
            subject: revoked
            for subject, revoked in self._revoked.items()
            if revoked >= before_micros
        }


async def follow_revocations(
    revocations: Revocations, redis: Redis, channel: grpc.aio.Channel
) -> None:
    """Keep a service's revocations current, until cancelled.

    A suspension counts within a second: the user service's list first, then its event stream. Either may go and
    come back; what was known counts meanwhile.

    Args:
        revocations: What the service's server checks every caller against.
        redis: Where the event streams are.
        channel: To the user service.
    """
    stub = auth_service_pb2_grpc.AuthServiceStub(channel)

    async def load() -> list[tuple[str, datetime]]:
        request = auth_service_pb2.ListRevocationsRequest()
        answer = await stub.ListRevocations(request, timeout=5)
        return [(found.subject, times.instant(found.revoke_time)) for found in answer.revocations]

    await keep_current(revocations, redis, load)


async def keep_current(
    revocations: Revocations,
    redis: Redis,
    load: Load,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """As `follow_revocations`, from any list. The user service reads its own store."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_reload(revocations, load, now))
        cursor = await _insist(lambda: streams.latest(redis, "user"))
        # Once more, for what was revoked between the first list and the cursor. The stream does not wait for it.
        tasks.create_task(_load(revocations, load))
        async for _, event in streams.follow(redis, "user", cursor):
            if event.HasField("tokens_revoked"):
                fact = event.tokens_revoked
                revocations.revoke(fact.token_subject, sql.micros(times.instant(fact.revoke_time)))


async def _reload(revocations: Revocations, load: Load, now: Callable[[], datetime]) -> None:
    while True:
        await _load(revocations, load)
        revocations.forget(sql.micros(now() - _MEMORY))
        await asyncio.sleep(_RELOAD_SECONDS)


async def _load(revocations: Revocations, load: Load) -> None:
    for subject, revoke_time in await _insist(load):
        revocations.revoke(subject, sql.micros(revoke_time))


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except Exception as error:
            if not (
                isinstance(error, (grpc.aio.AioRpcError, RedisError))
                or sql.is_lost(error)
                or sql.is_conflict(error)
            ):
                raise
            log.warning("revocations wait", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(_RETRY_SECONDS)
