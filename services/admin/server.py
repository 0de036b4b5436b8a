"""Composition: the admin service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import uvloop
from uuid_utils import UUID, uuid7

from services import sql, streams, telemetry
from services.admin import events, store
from services.admin.clients import Owners
from services.admin.desk import Desk
from services.admin.handlers import ReviewHandlers
from services.admin.settings import Settings
from services.environment import Environment
from services.event_log import Relay
from services.rpc import channel
from services.rpc.lifetime import until_terminated
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Registration, Server
from services.streams import Feed
from tallystick.admin.v1 import review_service_pb2, review_service_pb2_grpc

SERVICE = events.SOURCE
_GRACE_SECONDS = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AdminServer:
    """The admin service in this process, from `start` until `stop`.

    Args:
        settings: Where it listens and what it uses.
        now: The clock.
        new_id: Ids of cases and events; UUIDv7, because cases are listed by age.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], UUID] = uuid7,
    ) -> None:
        self._engine = sql.create_engine(settings.database_url)
        self._redis = streams.connect(settings.redis_url)
        self._user = channel.connect(settings.user_address, "user", settings.tls)
        self._payment = channel.connect(settings.payment_address, "payment", settings.tls)
        self._relay = Relay(self._engine, store.event_log, self._redis, SERVICE)
        self._feed = Feed(self._redis, SERVICE)
        self._revocations = Revocations()
        self._desk = Desk(
            self._engine,
            self._relay,
            Owners(self._user, self._payment),
            now=now,
            new_id=new_id,
            sweep_seconds=settings.sweep_ms / 1000,
        )
        registration = Registration(
            review_service_pb2.DESCRIPTOR.services_by_name["ReviewService"],
            review_service_pb2_grpc.add_ReviewServiceServicer_to_server,
            ReviewHandlers(self._engine, self._desk, self._feed),
        )
        self._server = Server(
            SERVICE, settings.listen, settings.tls, [registration], self._revocations
        )
        self.background: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Serve; answers the port."""
        member = secrets.token_hex(4)
        self._run(
            self._relay.run(),
            self._feed.run(),
            self._desk.sweep(),
            follow_revocations(self._revocations, self._redis, self._user),
            *(
                streams.consume(
                    self._redis,
                    source,
                    SERVICE,
                    member,
                    self._desk.take,
                    wanted=lambda event: events.news(event) is not None,
                )
                for source in ("user", "payment")
            ),
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
        await self._payment.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = AdminServer(settings)
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
