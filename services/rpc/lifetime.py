"""How long a process lives, and how its background work ends."""

from __future__ import annotations

import asyncio
import gc
import signal

# Objects made since the last look that make the collector look again: a group of payments makes some 20,000, all of
# which die by reference count.
_COLLECT_AFTER = 50_000


async def until_terminated(*background: asyncio.Task[None]) -> None:
    """Wait for SIGTERM or SIGINT, or for background work that ended.

    Background work runs until it is cancelled, so it ends only by a defect, which is raised: a
    service whose consumers have died quietly would go on serving what grows older and older.
    """
    # What is loaded by now stays; the collector need not look through it again and again.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    terminated = loop.create_task(ended.wait())
    try:
        await asyncio.wait({terminated, *background}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        terminated.cancel()
    for task in background:
        if task.done():
            task.result()


async def end(*background: asyncio.Task[None]) -> None:
    """Cancel background work and wait until it has ended.

    Asks again until it has: grpc.aio drops a cancellation that arrives just as a call ends, and who missed the only
    one would go on for ever.
    """
    pending = set(background)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*background, return_exceptions=True)
