"""Waiting for what another task or process brings about."""

from __future__ import annotations

import asyncio
import inspect

import grpc

from cli.demo.client import ApiError

# After these a client asks again.
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def eventually(holds, *, seconds=10.0):
    """Wait until `holds()`, a function or a coroutine function, answers something true, and answer it.

    Raises:
        TimeoutError: it never did.
    """
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)


async def served(call, *arguments, seconds=30.0, **named):
    """The answer to a call to a platform of which a part was killed: made again until there is one.

    Raises:
        TimeoutError: there was none.
    """

    async def answer():
        try:
            return await call(*arguments, **named)
        except ApiError as error:
            if error.code not in _NO_ANSWER:
                raise
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NO_ANSWER:
                raise

    return await eventually(answer, seconds=seconds)
