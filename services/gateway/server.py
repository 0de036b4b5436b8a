"""Composition root: the contract, settings, keys and certificates -> a snapshot -> Envoy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services import streams, telemetry
from services.environment import Environment, SettingError
from services.gateway import contract
from services.gateway import settings as gateway_settings
from services.gateway.clients import SigningKeys
from services.gateway.domain.access import LimitError, Route, check_buckets
from services.gateway.domain.edge import Credentials, Identity
from services.gateway.domain.replies import Reply
from services.gateway.domain.snapshot import Snapshot, snapshot
from services.gateway.events import follow_key_rotations
from services.gateway.handlers import DiscoveryService
from services.gateway.settings import Settings
from services.refusal import Refusal
from services.rpc import errors
from services.rpc.lifetime import end, until_terminated

log = logging.getLogger(__name__)

SERVICE = "gateway"
# How long a missed event or a certificate renewed on disk may go unnoticed.
_REFRESH_SECONDS = 15.0
# Envoy opens no listener without keys, so at first we ask often.
_FIRST_KEYS_SECONDS = 0.25


def encode(refusal: Refusal) -> Reply:
    """A refusal of the gateway as it goes over the wire."""
    status = errors.status(refusal, SERVICE)
    # Header values are base64 without padding (gRPC over HTTP/2, "Binary-Header").
    details = base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")
    return Reply(status.code, status.message, details)


@dataclass(frozen=True)
class Inputs:
    """What a snapshot is made of and may change while we run.

    Attributes:
        json_web_key_set: As the user service last answered.
        credentials: As the files last held.
    """

    json_web_key_set: str
    credentials: Credentials


def assemble(settings: Settings, routes: list[Route], inputs: Inputs) -> Snapshot:
    """What Envoy is to be told."""
    return snapshot(
        routes,
        settings.edge,
        settings.backends,
        json_web_key_set=inputs.json_web_key_set,
        credentials=inputs.credentials,
        encode=encode,
    )


class ControlPlane:
    """Envoy's control plane. Serves from `start` until `stop`.

    Args:
        settings: Its settings.
        routes: What Envoy is to serve.

    Attributes:
        discovery: What Envoys talk to.
        background: Runs until `stop`.
    """

    def __init__(self, settings: Settings, routes: list[Route]) -> None:
        self._settings = settings
        self._routes = routes
        self._redis = streams.connect(settings.redis_url)
        self._keys = SigningKeys(
            [str(address) for address in settings.backends["user"]], settings.tls
        )
        self._inputs: Inputs | None = None
        self._changed = asyncio.Event()
        self.background: list[asyncio.Task[None]] = []
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.keepalive_time_ms", 20_000)]
        )
        self.discovery = DiscoveryService()

    async def start(self) -> int:
        """Serve; answers the port. Envoy is told nothing before the signing keys are known."""
        tls = self._settings.tls
        self._server.add_generic_rpc_handlers((self.discovery.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        credentials = grpc.ssl_server_credentials(
            [(tls.key_file.read_bytes(), tls.certificate_file.read_bytes())],
            root_certificates=tls.ca_file.read_bytes(),
            require_client_auth=True,
        )
        port = self._server.add_secure_port(self._settings.listen, credentials)
        await self._server.start()
        self.background = [
            asyncio.create_task(self._keep_current()),
            asyncio.create_task(follow_key_rotations(self._redis, self._changed.set)),
        ]
        log.info("control plane serving", extra={"port": port, "routes": len(self._routes)})
        return port

    async def stop(self) -> None:
        """End streams, connections and tasks. Envoy goes on with what it was told."""
        await end(*self.background)
        await self._server.stop(None)
        await self._keys.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        log.info("stopped")

    async def _keep_current(self) -> None:
        while True:
            self._changed.clear()
            inputs = await self._read_inputs()
            if inputs is not None and inputs != self._inputs:
                log.info("new snapshot", extra={"first": self._inputs is None})
                self._inputs = inputs
                # Half a second of work, and streams must be heard meanwhile.
                told = await asyncio.to_thread(assemble, self._settings, self._routes, inputs)
                self.discovery.publish(told)
                await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
            await self._wait(_FIRST_KEYS_SECONDS if self._inputs is None else _REFRESH_SECONDS)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _read_inputs(self) -> Inputs | None:
        keys = await self._keys.fetch()
        if keys is not None and not _holds_keys(keys):
            log.error("the user service answers with no key")
            keys = None
        if keys is None:
            if self._inputs is None:
                return None
            keys = self._inputs.json_web_key_set
        try:
            credentials = _read_credentials(self._settings)
        except OSError as error:  # they are being renewed, or somebody took them away
            if self._inputs is None:
                raise
            log.error("certificates cannot be read", extra={"cause": str(error)})  # noqa: TRY400 - it says enough
            credentials = self._inputs.credentials
        return Inputs(keys, credentials)


def _holds_keys(json_web_key_set: str) -> bool:
    try:
        return bool(json.loads(json_web_key_set)["keys"])
    except (ValueError, KeyError, TypeError):
        return False


def _read_credentials(settings: Settings) -> Credentials:
    tls = settings.tls
    return Credentials(
        public=Identity(
            settings.public_certificate_file.read_text(), settings.public_key_file.read_text()
        ),
        internal=Identity(tls.certificate_file.read_text(), tls.key_file.read_text()),
        internal_ca=tls.ca_file.read_text(),
    )


def read_settings(environment: Environment) -> tuple[Settings, list[Route]]:
    """The settings and the contract they are for.

    Raises:
        SettingError: a variable is missing or holds what it cannot mean.
    """
    routes = contract.routes(contract.services())
    services = sorted({route.service for route in routes})
    settings = gateway_settings.read(environment, services, contract.buckets())
    try:
        check_buckets(routes, settings.edge.buckets)
    except LimitError as error:
        raise SettingError(f"TALLYSTICK_RATE_…: {error}") from error
    return settings, routes


async def serve(settings: Settings, routes: list[Route]) -> None:
    """Serve until SIGTERM or SIGINT."""
    plane = ControlPlane(settings, routes)
    try:
        await plane.start()
        await until_terminated(*plane.background)
    finally:
        await plane.stop()


def main() -> None:
    """Run the control plane with settings from the environment."""
    try:
        settings, routes = read_settings(Environment(os.environ))
    except SettingError as error:
        sys.exit(str(error))
    telemetry.configure(SERVICE, level=settings.log_level)
    try:
        uvloop.run(serve(settings, routes))
    finally:
        telemetry.shut_down()
