"""Composition: the user service from its settings."""

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
from services.environment import Environment
from services.event_log import Relay
from services.rpc.lifetime import until_terminated
from services.rpc.revocations import Revocations, keep_current
from services.rpc.server import Registration, Server
from services.user import events, store
from services.user.handlers.auth import AuthService, list_revocations
from services.user.handlers.parties import PartyService
from services.user.handlers.recorder import Recorder
from services.user.handlers.signing_keys import SigningKeys
from services.user.handlers.sites import SiteService
from services.user.handlers.terminals import TerminalService
from services.user.handlers.users import UserService
from services.user.passwords import Passwords, common_passwords
from services.user.settings import Settings
from services.user.signing import KeyRing
from services.user.upkeep import keep_up
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    party_service_pb2,
    party_service_pb2_grpc,
    site_service_pb2,
    site_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)

SERVICE = events.SOURCE
_GRACE_SECONDS = 5.0
_REFRESH_TOKEN_BYTES = 32


def _utc_now() -> datetime:
    return datetime.now(UTC)


class UserServer:
    """The user service in this process, from `start` until `stop`.

    Args:
        settings: See there. The schema is current (`tallystick migrate`).
        now: The clock.
        new_id: Ids of accounts, sites, sessions, tokens and events; UUIDv7, so that keys grow.

    Raises:
        SettingError: the key-encryption key is not one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], UUID] = uuid7,
    ) -> None:
        key_ring = KeyRing.read(settings.key_encryption_key_file)
        self._engine = sql.create_engine(settings.database_url)
        self._redis = streams.connect(settings.redis_url)
        self._relay = Relay(self._engine, store.event_log, self._redis, SERVICE)
        self._recorder = Recorder(self._engine, self._relay, now=now, new_id=new_id)
        self._passwords = Passwords(threads=settings.password_threads)
        self._revocations = Revocations()
        self._keys = SigningKeys(
            self._recorder,
            key_ring,
            publish=settings.key_publish,
            age_max=settings.key_age_max,
        )
        auth = AuthService(
            self._recorder,
            self._passwords,
            self._keys,
            new_refresh_token=lambda: secrets.token_urlsafe(_REFRESH_TOKEN_BYTES),
        )
        users = UserService(self._recorder, self._passwords, common_passwords(), self._revocations)
        self._server = Server(
            SERVICE,
            settings.listen,
            settings.tls,
            [
                Registration(
                    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
                    auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
                    auth,
                ),
                Registration(
                    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
                    user_service_pb2_grpc.add_UserServiceServicer_to_server,
                    users,
                ),
                Registration(
                    site_service_pb2.DESCRIPTOR.services_by_name["SiteService"],
                    site_service_pb2_grpc.add_SiteServiceServicer_to_server,
                    SiteService(self._recorder),
                ),
                Registration(
                    terminal_service_pb2.DESCRIPTOR.services_by_name["TerminalService"],
                    terminal_service_pb2_grpc.add_TerminalServiceServicer_to_server,
                    TerminalService(self._recorder, self._revocations),
                ),
                Registration(
                    party_service_pb2.DESCRIPTOR.services_by_name["PartyService"],
                    party_service_pb2_grpc.add_PartyServiceServicer_to_server,
                    PartyService(self._recorder),
                ),
            ],
            self._revocations,
        )
        self.background: list[asyncio.Task[None]] = []
        self._started = False

    async def start(self) -> int:
        """Serve; answers the port.

        Raises:
            SettingError: the stored signing key does not open.
            DBAPIError: the database is away, or its schema is not there.
        """
        await self._keys.keep()
        # Before the first call: what is revoked must not count again for the moments a restart takes.
        for subject, revoke_time in await list_revocations(self._recorder):
            self._revocations.revoke(subject, sql.micros(revoke_time))
        self._run(
            self._relay.run(),
            keep_up(self._recorder, self._keys),
            keep_current(
                self._revocations,
                self._redis,
                lambda: list_revocations(self._recorder),
                now=self._recorder.now,
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
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        self._passwords.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = UserServer(settings)
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
