"""What the gateway hears from the user service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services import streams

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


async def follow_key_rotations(redis: Redis, rotated: Callable[[], None]) -> None:
    """Say so whenever another key signs from now on, until cancelled.

    What came before Redis first answered is not heard of: keys are also asked for now and then.
    """
    cursor = await _latest(redis)
    async for _, event in streams.follow(redis, "user", cursor):
        if event.WhichOneof("fact") == "signing_key_rotated":
            rotated()


async def _latest(redis: Redis) -> str:
    while True:
        try:
            return await streams.latest(redis, "user")
        except RedisError as error:
            log.warning("events wait", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(_RETRY_SECONDS)
