"""The platform as a terminal sees it: the calls it makes, with deadlines, retries and refusals in words."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from uuid_utils import uuid4

from pos.errors import PosError
from tallystick.offline.v1 import terminal_sync_service_pb2 as sync_pb
from tallystick.offline.v1.terminal_sync_service_pb2_grpc import TerminalSyncServiceStub
from tallystick.user.v1 import auth_service_pb2, terminal_service_pb2, user_pb2
from tallystick.user.v1.auth_service_pb2_grpc import AuthServiceStub
from tallystick.user.v1.terminal_service_pb2_grpc import TerminalServiceStub

_DEADLINE_SECONDS = 10.0
_WATCH_SECONDS = 60.0
_TRIES = 4
_ASSERTION_LIFE = timedelta(seconds=60)
# Waiting longer than this for a full queue is for another sync.
_WAIT_SECONDS_MAX = 20.0
_NO_ANSWER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A terminal that the platform knows.

    Attributes:
        metadata: Goes with every call.
        server_time: The platform's clock when it answered; None for a vendor.
    """

    metadata: Metadata
    server_time: datetime | None


class Platform:
    """A connection to the gateway. Nothing is sent before the first call.

    Args:
        address: `host:port`.
        ca_file: Who signed its certificate; None trusts the system's authorities.
        jitter: 0 to 1, for back-off.
    """

    def __init__(
        self, address: str, ca_file: Path | None, *, jitter: Callable[[], float] = random.random
    ) -> None:
        roots = None if ca_file is None else ca_file.read_bytes()
        self.address = address
        self._channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(root_certificates=roots),
            options=[
                ("grpc.max_receive_message_length", 64 * 1024 * 1024),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ],
        )
        self._jitter = jitter
        self._auth = AuthServiceStub(self._channel)
        self._terminals = TerminalServiceStub(self._channel)
        self._sync = TerminalSyncServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def sign_in_vendor(self, username: str, password: str) -> SignedIn:
        """Sign a vendor in."""
        request = auth_service_pb2.LoginRequest(username=username, password=password)
        session = (await self._call(self._auth.Login, request)).session
        return SignedIn(_bearer(session.access_token), None)

    async def enroll(
        self, vendor: SignedIn, terminal: user_pb2.Terminal, request_id: str
    ) -> user_pb2.Terminal:
        """Enrol a terminal of the vendor's."""
        request = terminal_service_pb2.EnrollTerminalRequest(
            request_id=request_id, terminal=terminal
        )
        answer = await self._call(self._terminals.EnrollTerminal, request, vendor.metadata)
        enrolled: user_pb2.Terminal = answer.terminal
        return enrolled

    async def sign_in(self, name: str, key: Ed25519PrivateKey, now: datetime) -> SignedIn:
        """Sign a terminal in by an assertion. Where its clock is off, the platform says what time it is."""
        try:
            return await self._assert(name, key, now)
        except PosError as error:
            if error.reason != "ASSERTION_EXPIRED":
                raise
            return await self._assert(
                name, key, datetime.fromisoformat(error.metadata["serverTime"])
            )

    async def _assert(self, name: str, key: Ed25519PrivateKey, now: datetime) -> SignedIn:
        issued = int(now.timestamp())
        claims = {
            "iss": name,
            "sub": name,
            "aud": "tallystick",
            "iat": issued,
            "exp": issued + int(_ASSERTION_LIFE.total_seconds()),
        }

        def request() -> auth_service_pb2.AuthenticateTerminalRequest:
            # Used once: a lost answer needs another.
            token = jwt.encode({**claims, "jti": str(uuid4())}, key, "EdDSA")
            return auth_service_pb2.AuthenticateTerminalRequest(assertion=token)

        answer = await self._call(self._auth.AuthenticateTerminal, request)
        return SignedIn(_bearer(answer.access_token), answer.server_time.ToDatetime(UTC))

    async def trust_bundle(self, who: SignedIn) -> sync_pb.SignedTrustBundle:
        """What a terminal must know."""
        request = sync_pb.GetTrustBundleRequest()
        bundle: sync_pb.SignedTrustBundle = (
            await self._call(self._sync.GetTrustBundle, request, who.metadata)
        ).bundle
        return bundle

    async def submit(
        self, who: SignedIn, request: sync_pb.SubmitBatchRequest
    ) -> sync_pb.SubmitBatchResponse:
        """Upload entries. The request's id was stored before."""
        answer: sync_pb.SubmitBatchResponse = await self._call(
            self._sync.SubmitBatch, request, who.metadata
        )
        return answer

    async def batch(self, who: SignedIn, name: str) -> sync_pb.GetBatchResponse:
        """A batch and its items as they are."""
        request = sync_pb.GetBatchRequest(name=name)
        answer: sync_pb.GetBatchResponse = await self._call(
            self._sync.GetBatch, request, who.metadata
        )
        return answer

    async def watch(self, who: SignedIn, name: str) -> AsyncIterator[sync_pb.WatchBatchResponse]:
        """Results as they come; ends when every item has one, and also when the network does."""
        call = self._sync.WatchBatch(
            sync_pb.WatchBatchRequest(name=name), metadata=who.metadata, timeout=_WATCH_SECONDS
        )
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NO_ANSWER:
                raise _error(error) from error
        finally:
            call.cancel()

    async def _call(self, method: Any, request: Any, metadata: Metadata = ()) -> Any:
        """Call, and again while there is no answer: every call here may be repeated.

        Raises:
            PosError: UNREACHABLE, or the platform's refusal.
        """
        for attempt in range(1, _TRIES + 1):
            message = request() if callable(request) else request
            try:
                return await method(message, metadata=metadata, timeout=_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                refusal = _error(error)
                wait = (refusal.retry_after or timedelta()).total_seconds()
                waits = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and wait
                again = error.code() in _NO_ANSWER or (waits and wait <= _WAIT_SECONDS_MAX)
                if attempt == _TRIES or not again:
                    raise refusal from error
                # Full jitter, lest all terminals of a market come back at once.
                await asyncio.sleep(max(wait, 0.2 * 2**attempt * self._jitter()))
        raise AssertionError


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def _error(error: grpc.aio.AioRpcError) -> PosError:
    reason, metadata, retry_after = "", {}, None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after":
            retry_after = timedelta(seconds=float(value))
    if not reason:
        if error.code() in _NO_ANSWER:
            message = "The platform cannot be reached. Nothing is lost; sync when there is network."
            return PosError("UNREACHABLE", message)
        reason = error.code().name
    return PosError(reason, error.details() or reason, metadata, retry_after)
