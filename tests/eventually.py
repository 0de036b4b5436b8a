"""Waiting for what another task or process brings about."""

from __future__ import annotations

import asyncio
import inspect


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
