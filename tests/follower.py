"""Another service than the user service: it follows revocations, and lets everybody else in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc

from services import streams
from services.rpc import channel
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Server
from tests.user_service import refused


@asynccontextmanager
async def following(tls_for, redis_url, user_address, service, registration):
    """A running `service`: a channel that calls it as the gateway does."""
    revocations = Revocations()
    server = Server(service, "127.0.0.1:0", tls_for(service), [registration], revocations)
    port = await server.start()
    redis = streams.connect(redis_url)
    to_users = channel.connect(user_address, "user", tls_for(service))
    follower = asyncio.create_task(follow_revocations(revocations, redis, to_users))
    try:
        async with channel.connect(f"127.0.0.1:{port}", service, tls_for("gateway")) as calls:
            yield calls
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await to_users.close()
        await redis.aclose()
        await server.stop(notice_seconds=0, grace_seconds=0)


async def is_revoked(call):
    """Whether a call ends because its token is revoked."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return refused(error).reason == "TOKEN_REVOKED"
    return False
