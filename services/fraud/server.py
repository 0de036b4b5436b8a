"""Composition: the fraud service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from services import sql, streams, telemetry
from services.environment import Environment
from services.fraud.clients import Parties
from services.fraud.domain.sites import SiteIndex
from services.fraud.events import SiteFeed
from services.fraud.handlers import FraudHandlers
from services.fraud.settings import Settings
from services.rpc import channel
from services.rpc.lifetime import until_terminated
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Registration, Server
from tallystick.fraud.v1 import fraud_service_pb2, fraud_service_pb2_grpc

SERVICE = "fraud"
_GRACE_SECONDS = 5.0


class FraudServer:
    """The fraud service in this process, from `start` until `stop`.

    Args:
        settings: Where it listens and what it uses.
        clock: Seconds that only grow.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._engine = sql.create_engine(settings.database_url)
        self._redis = streams.connect(settings.redis_url)
        self._user = channel.connect(settings.user_address, "user", settings.tls)
        self._revocations = Revocations()
        self._index = SiteIndex()
        parties = Parties(self._user)
        self._feed = SiteFeed(self._engine, self._redis, parties, self._index)
        handlers = FraudHandlers(self._index, parties, settings.limits, clock)
        descriptor = fraud_service_pb2.DESCRIPTOR.services_by_name["FraudService"]
        add = fraud_service_pb2_grpc.add_FraudServiceServicer_to_server
        self._server = Server(
            SERVICE,
            settings.listen,
            settings.tls,
            [Registration(descriptor, add, handlers)],
            self._revocations,
        )
        self.background: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Load the sites, then serve; answers the port."""
        await self._feed.load()
        self._run(
            self._feed.follow(),
            self._feed.save(),
            follow_revocations(self._revocations, self._redis, self._user),
        )
        return await self._server.start()

    def _run(self, *work: Coroutine[Any, Any, None]) -> None:
        self.background += [asyncio.create_task(each) for each in work]

    async def stop(self, *, notice_seconds: float = 0.0) -> None:
        """End calls, then background work, then connections. Also after a `start` that failed."""
        await self._server.stop(notice_seconds=notice_seconds, grace_seconds=_GRACE_SECONDS)
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self._user.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = FraudServer(settings)
    try:
        await server.start()
        await until_terminated(*server.background)
    finally:
        await server.stop(notice_seconds=settings.drain_notice_ms / 1000)


def main() -> None:
    """Run the service from the environment's settings."""
    settings = Settings.read(Environment())
    telemetry.configure(SERVICE, level=settings.log_level)
    try:
        uvloop.run(serve(settings))
    finally:
        telemetry.shut_down()
