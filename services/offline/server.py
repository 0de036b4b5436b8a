"""Composition: the offline service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import uvloop
from uuid_utils import UUID, uuid7

from protocol.code import SERIAL_BITS
from services import sql, streams, telemetry
from services.environment import Environment
from services.event_log import Relay
from services.offline import directory, events, store
from services.offline.clients import Payment, Users
from services.offline.deciding import Deciding
from services.offline.directory import Directory
from services.offline.handlers.codes import CodeService
from services.offline.handlers.sync import TerminalSyncService
from services.offline.intake import Intake
from services.offline.issuing import Issuing
from services.offline.keyring import KeyRing
from services.offline.recorder import Recorder
from services.offline.results import Results
from services.offline.rights import Rights
from services.offline.settings import Settings
from services.offline.settling import Settling
from services.offline.trust import Trust
from services.offline.upkeep import Upkeep
from services.rpc import channel
from services.rpc.lifetime import end, until_terminated
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Registration, Server
from services.sealing import Sealer
from services.streams import Feed
from tallystick.offline.v1 import (
    code_service_pb2,
    code_service_pb2_grpc,
    terminal_sync_service_pb2,
    terminal_sync_service_pb2_grpc,
)

SERVICE = events.SOURCE
_GRACE_SECONDS = 5.0
# OpenSSL lets go of Python's lock while it checks a signature: two threads check twice as many on two cores.
_READING_THREADS = 2


def _utc_now() -> datetime:
    return datetime.now(UTC)


class OfflineServer:
    """The offline service in this process, from `start` until `stop`.

    Args:
        settings: See there. The schema is current (`tallystick migrate`).
        now: The clock.
        new_id: Ids of codes, entries, batches and events; UUIDv7, so that keys grow.
        new_serial: A random number of 32 bits, for a code.

    Raises:
        SettingError: the key-encryption key is not one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], UUID] = uuid7,
        new_serial: Callable[[], int] = lambda: secrets.randbits(SERIAL_BITS),
    ) -> None:
        sealer, terms = Sealer.read(settings.key_encryption_key_file), settings.terms
        self._engine = sql.create_engine(settings.database_url, pool_size=8)
        self._redis = streams.connect(settings.redis_url)
        self._user = channel.connect(settings.user_address, "user", settings.tls)
        self._payment = channel.connect(settings.payment_address, "payment", settings.tls)
        self._relay = Relay(self._engine, store.event_log, self._redis, SERVICE)
        self._feed = Feed(self._redis, SERVICE)
        self._revocations = Revocations()
        self._executor = ThreadPoolExecutor(_READING_THREADS, "reading")
        recorder = Recorder(self._engine, self._relay, now=now, new_id=new_id)
        payment = Payment(self._payment)
        self._keys = KeyRing(recorder, sealer, terms)
        self._directory = Directory(recorder, Users(self._user))
        self._rights = Rights(recorder, terms)
        issuing = Issuing(recorder, self._keys, payment, terms, new_serial=new_serial)
        self._results = Results(recorder)
        deciding = Deciding(recorder, self._rights)
        self.settling = Settling(
            recorder,
            payment,
            deciding,
            self._results,
            groups=settings.settle_groups,
        )
        self.upkeep = Upkeep(
            recorder, issuing, payment, self._keys, sweep_seconds=settings.sweep_ms / 1000
        )
        intake = Intake(
            recorder,
            deciding,
            self._keys,
            terms,
            self._executor,
            decided=self.settling.hand_over,
            backlog_max=settings.backlog_max,
        )
        trust = Trust(recorder, self._keys, terms)
        self._server = Server(
            SERVICE,
            settings.listen,
            settings.tls,
            [
                Registration(
                    code_service_pb2.DESCRIPTOR.services_by_name["CodeService"],
                    code_service_pb2_grpc.add_CodeServiceServicer_to_server,
                    CodeService(recorder, issuing, self._rights, self._keys, terms),
                ),
                Registration(
                    terminal_sync_service_pb2.DESCRIPTOR.services_by_name["TerminalSyncService"],
                    terminal_sync_service_pb2_grpc.add_TerminalSyncServiceServicer_to_server,
                    TerminalSyncService(recorder, self._directory, trust, intake, self._feed),
                ),
            ],
            self._revocations,
        )
        self.background: list[asyncio.Task[None]] = []
        self._started = False

    async def start(self) -> int:
        """Serve; answers the port.

        Raises:
            SettingError: what is sealed in the database does not open.
            DBAPIError: the database is away, or its schema is not there.
        """
        await self._keys.load()
        member = secrets.token_hex(4)
        self._run(
            self._relay.run(),
            self._feed.run(),
            self.settling.run(),
            self.upkeep.run(),
            follow_revocations(self._revocations, self._redis, self._user),
            streams.consume(
                self._redis,
                "user",
                SERVICE,
                member,
                self._directory.apply,
                wanted=directory.is_news,
            ),
            streams.consume(
                self._redis,
                "payment",
                SERVICE,
                member,
                self._results.review,
                wanted=lambda event: events.review(event) is not None,
            ),
            streams.consume(
                self._redis,
                "fraud",
                SERVICE,
                member,
                self._rights.apply,
                wanted=lambda event: events.fraud_mark(event) is not None,
            ),
        )
        port = await self._server.start()
        self._started = True
        return port

    def _run(self, *work: Coroutine[Any, Any, None]) -> None:
        self.background += [asyncio.create_task(each) for each in work]

    async def stop(self, *, notice_seconds: float = 0.0) -> None:
        """End calls, then background work, then connections. Also after a `start` that failed."""
        if self._started:  # gRPC waits for ever for a server to stop that never started
            await self._server.stop(notice_seconds=notice_seconds, grace_seconds=_GRACE_SECONDS)
        if self.background:
            await end(*self.background)
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self._user.close()
        await self._payment.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = OfflineServer(settings)
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
