"""A running user service, the people who call it, and what it answers them."""

from __future__ import annotations

import base64
import itertools
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from uuid_utils import uuid4

from services import sql
from services.rpc import channel
from services.user import store
from services.user.bootstrap import create_first_admin
from services.user.server import UserServer
from services.user.settings import Settings
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    party_service_pb2_grpc,
    site_service_pb2_grpc,
    terminal_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)

PASSWORD = "green tractor by the well"
OTHER_PASSWORD = "seven kites over the bridge"


class Clock:
    """Time that passes when told to, and a millisecond at every look: no two moments are one."""

    def __init__(self):
        # Now, because what verifies tokens looks at the real clock.
        self._time = datetime.now(UTC)

    def __call__(self):
        self._time += timedelta(milliseconds=1)
        return self._time

    def advance(self, span):
        self._time += span


@dataclass
class Refused:
    """A refusal as it arrives."""

    code: grpc.StatusCode
    domain: str
    reason: str
    message: str
    metadata: dict
    retry_after: timedelta | None


def refused(error):
    """What a failed call says."""
    status = rpc_status.from_call(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    (packed,) = [each for each in status.details if each.Is(info.DESCRIPTOR)]
    packed.Unpack(info)
    waits = [each for each in status.details if each.Is(retry.DESCRIPTOR)]
    for each in waits:
        each.Unpack(retry)
    after = retry.retry_delay.ToTimedelta() if waits else None
    metadata = dict(info.metadata)
    return Refused(error.code(), info.domain, info.reason, status.message, metadata, after)


async def refusal_of(call):
    """The refusal a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refused(caught.value)


async def reason_of(call):
    """The reason a call is refused for."""
    return (await refusal_of(call)).reason


def as_envoy_says(access_token):
    """The metadata of a call with a token, as the gateway forwards it."""
    return (("x-jwt-payload", access_token.split(".")[1]),)


def a_registration(username=None, *, vendor=False, **changes):
    """A request to register; `changes` replace its fields."""
    request = user_service_pb2.RegisterUserRequest(
        request_id=str(uuid4()),
        username=username or f"user-{uuid4().hex[:12]}",
        password=PASSWORD,
        display_name="Asha",
        role=access_pb2.ROLE_VENDOR if vendor else access_pb2.ROLE_USER,
    )
    if vendor:
        request.site.CopyFrom(a_site())
    for field, value in changes.items():
        setattr(request, field, value)
    return request


def a_site(name="Tea by the lake"):
    site = user_pb2.Site(display_name=name)
    site.position.latitude, site.position.longitude = 12.9716, 77.5946
    site.position.accuracy_meters = 15
    return site


class Replica:
    """One running process's worth of the service, with stubs that call as the gateway does."""

    def __init__(self, around, server, port, gateway):
        self.around = around
        self.server = server
        self.port = port
        self.clock = around.clock
        self._admin_metadata = None
        self.auth = auth_service_pb2_grpc.AuthServiceStub(gateway)
        self.users = user_service_pb2_grpc.UserServiceStub(gateway)
        self.sites = site_service_pb2_grpc.SiteServiceStub(gateway)
        self.parties = party_service_pb2_grpc.PartyServiceStub(gateway)
        self.terminals = terminal_service_pb2_grpc.TerminalServiceStub(gateway)

    async def sign_in(self, username, password=PASSWORD):
        request = auth_service_pb2.LoginRequest(username=username, password=password)
        return (await self.auth.Login(request)).session

    async def refresh(self, refresh_token):
        request = auth_service_pb2.RefreshTokenRequest(refresh_token=refresh_token)
        return (await self.auth.RefreshToken(request)).session

    async def person(self, username, password=PASSWORD):
        """The metadata of a person's calls."""
        return as_envoy_says((await self.sign_in(username, password)).access_token)

    async def admin(self):
        """The metadata of the first admin's calls, signed in once."""
        if self._admin_metadata is None:
            self._admin_metadata = await self.person(
                self.around.admin.username, self.around.admin.password
            )
        return self._admin_metadata

    async def register(self, username=None, **changes):
        request = a_registration(username, **changes)
        return (await self.users.RegisterUser(request)).user

    async def approve(self, user):
        request = user_service_pb2.ApproveUserRequest(name=user.name, reason="papers seen")
        return (await self.users.ApproveUser(request, metadata=await self.admin())).user

    async def approved(self, username=None, **changes):
        return await self.approve(await self.register(username, **changes))

    async def suspend(self, user, metadata=None):
        request = user_service_pb2.SuspendUserRequest(name=user.name, reason="under inquiry")
        answer = await self.users.SuspendUser(request, metadata=metadata or await self.admin())
        return answer.user

    async def reject(self, user, reason="papers missing"):
        request = user_service_pb2.RejectUserRequest(name=user.name, reason=reason)
        return (await self.users.RejectUser(request, metadata=await self.admin())).user

    async def get_user(self, name, metadata):
        request = user_service_pb2.GetUserRequest(name=name)
        return await self.users.GetUser(request, metadata=metadata)

    async def change_password(self, metadata, current=PASSWORD, new=OTHER_PASSWORD):
        request = user_service_pb2.ChangePasswordRequest(current_password=current, new_password=new)
        await self.users.ChangePassword(request, metadata=metadata)


class Around:
    """What a user service needs: a database with a first admin, a stream, certificates, a clock."""

    def __init__(self, settings, tls_for, clock, admin):
        self.settings = settings
        self.tls_for = tls_for
        self.clock = clock
        self.admin = admin

    @asynccontextmanager
    async def running(self, **changes):
        """A replica, from its start to its stop; `changes` are to its settings."""
        server = UserServer(replace(self.settings, **changes), now=self.clock)
        try:
            port = await server.start()
            async with self.calling(port) as gateway:
                yield Replica(self, server, port, gateway)
        finally:
            await server.stop()

    def calling(self, port, caller="gateway"):
        """A channel of another service."""
        return channel.connect(f"127.0.0.1:{port}", "user", self.tls_for(caller))

    @asynccontextmanager
    async def database(self):
        """The service's database, looked at from outside."""
        engine = sql.create_engine(self.settings.database_url)
        try:
            async with engine.begin() as connection:
                yield connection
        finally:
            await engine.dispose()

    async def rows(self, table):
        async with self.database() as connection:
            return (await connection.execute(sa.select(table))).all()

    async def events(self):
        """Every event on record, in order."""
        batches = [
            event_pb2.EventBatch.FromString(bytes(row.events))
            for row in await self.rows(store.event_log)
        ]
        return list(itertools.chain.from_iterable(batch.events for batch in batches))


def write_key_encryption_key(path, *keys):
    """A key-encryption-key file with these keys, or a new one."""
    lines = [base64.b64encode(key).decode() for key in keys or (secrets.token_bytes(32),)]
    path.write_text("\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def surroundings(tls_for, redis_url, database_url, directory):
    """Everything but the service itself."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        engine = sql.create_engine(database_url)
        stack.push_async_callback(engine.dispose)
        admin = await create_first_admin(engine, now=clock)
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=database_url,
            redis_url=redis_url,
            tls=tls_for("user"),
            key_encryption_key_file=write_key_encryption_key(directory / "kek"),
        )
        yield Around(settings, tls_for, clock, admin)


@asynccontextmanager
async def serving_users(tls_for, redis_url, database_url, directory):
    """A running replica and its surroundings."""
    async with (
        surroundings(tls_for, redis_url, database_url, directory) as around,
        around.running() as replica,
    ):
        yield replica
