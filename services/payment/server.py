"""Composition: the payment service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import uvloop
from uuid_utils import UUID, uuid7

from services import sql, streams, telemetry
from services.environment import Environment
from services.event_log import Relay
from services.payment import events, store
from services.payment.clients import Fraud, Parties
from services.payment.follow_up import FollowUp
from services.payment.group import Group
from services.payment.handlers.payments import Ledger, PaymentService
from services.payment.handlers.settlements import SettlementService
from services.payment.handlers.wallets import WalletService
from services.payment.owners import Owners
from services.payment.pace import Pace
from services.payment.settings import Settings
from services.rpc import channel
from services.rpc.lifetime import end, until_terminated
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Registration, Server
from services.streams import Feed
from tallystick.payment.v1 import (
    payment_service_pb2,
    payment_service_pb2_grpc,
    settlement_service_pb2,
    settlement_service_pb2_grpc,
    wallet_service_pb2,
    wallet_service_pb2_grpc,
)

SERVICE = events.SOURCE
_GRACE_SECONDS = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PaymentServer:
    """The payment service in this process, from `start` until `stop`.

    Args:
        settings: Where it listens and what it uses.
        now: The clock.
        new_id: Ids of payments, transfers and events; UUIDv7, so that keys grow.
        pace: Seconds from one group of commands to the next; left out, it follows how busy the process is.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], UUID] = uuid7,
        pace: Callable[[], float] | None = None,
    ) -> None:
        self._engine = sql.create_engine(settings.database_url, pool_size=8)
        self._redis = streams.connect(settings.redis_url)
        self._user = channel.connect(settings.user_address, "user", settings.tls)
        self._fraud = channel.connect(settings.fraud_address, "fraud", settings.tls)
        self._relay = Relay(self._engine, store.event_log, self._redis, SERVICE)
        fraud = Fraud(self._fraud, settings.fraud_budget_ms / 1000)
        self.group = Group(
            self._engine,
            settings.policy,
            assess=fraud.assess,
            committed=self._relay.wake,
            now=now,
            new_id=new_id,
            pace=pace or Pace(time.monotonic, time.process_time).seconds,
            size_max=settings.group_size_max,
            queue_max=settings.queue_size_max,
        )
        self._owners = Owners(self.group, Parties(self._user), settings.policy.currencies, now=now)
        self._follow_up = FollowUp(self._engine, self.group, fraud, now=now, new_id=new_id)
        self._feed = Feed(self._redis, SERVICE)
        self._revocations = Revocations()
        self._group_size_max = settings.group_size_max
        ledger = Ledger(
            engine=self._engine,
            owners=self._owners,
            follow_up=self._follow_up,
            feed=self._feed,
            policy=settings.policy,
            now=now,
            new_id=new_id,
        )
        self._server = Server(
            SERVICE,
            settings.listen,
            settings.tls,
            [
                Registration(
                    payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
                    payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
                    PaymentService(ledger),
                ),
                Registration(
                    wallet_service_pb2.DESCRIPTOR.services_by_name["WalletService"],
                    wallet_service_pb2_grpc.add_WalletServiceServicer_to_server,
                    WalletService(ledger),
                ),
                Registration(
                    settlement_service_pb2.DESCRIPTOR.services_by_name["SettlementService"],
                    settlement_service_pb2_grpc.add_SettlementServiceServicer_to_server,
                    SettlementService(ledger),
                ),
            ],
            self._revocations,
        )
        self._group_task: asyncio.Task[None] | None = None
        self.background: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Serve; answers the port."""
        self._group_task = asyncio.create_task(self.group.run())
        self.background = [self._group_task]
        self._run(
            self._relay.run(),
            self._follow_up.run(),
            self._feed.run(),
            follow_revocations(self._revocations, self._redis, self._user),
            # Replicas share the work, and each applies as many events as one group settles: the account's version
            # orders what they say.
            streams.consume(
                self._redis,
                "user",
                SERVICE,
                secrets.token_hex(4),
                self._owners.apply,
                at_once=self._group_size_max,
            ),
        )
        return await self._server.start()

    def _run(self, *work: Coroutine[Any, Any, None]) -> None:
        self.background += [asyncio.create_task(each) for each in work]

    async def stop(self, *, notice_seconds: float = 0.0) -> None:
        """End calls, then background work, the group last so that nothing queued is lost; then connections."""
        await self._server.stop(notice_seconds=notice_seconds, grace_seconds=_GRACE_SECONDS)
        await end(*(task for task in self.background if task is not self._group_task))
        self.group.close()
        if self._group_task is not None:
            await asyncio.gather(self._group_task, return_exceptions=True)
        await self._user.close()
        await self._fraud.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = PaymentServer(settings)
    await server.start()
    try:
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
