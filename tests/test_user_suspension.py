"""Approval, rejection, suspension, and how soon every service knows."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import pytest
from uuid_utils import uuid4

from services import streams
from services.rpc.revocations import Revocations
from services.rpc.server import Registration
from services.user.domain.session import ACCESS_TOKEN_LIFE
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)
from tests.eventually import eventually
from tests.follower import following, is_revoked
from tests.user_service import (
    PASSWORD,
    as_envoy_says,
    reason_of,
    refusal_of,
    serving_users,
)

State = user_pb2.User


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


class AnsweringFake(user_service_pb2_grpc.UserServiceServicer):
    """A servant of another service that answers whoever the server's edge lets through."""

    async def GetUser(self, request, context):
        return user_service_pb2.GetUserResponse()


@asynccontextmanager
async def another_service(tls_for, redis_url, user_address):
    """A `payment` process that follows revocations: a stub that calls it as the gateway does."""
    registration = Registration(
        user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
        user_service_pb2_grpc.add_UserServiceServicer_to_server,
        AnsweringFake(),
    )
    async with following(tls_for, redis_url, user_address, "payment", registration) as calls:
        yield user_service_pb2_grpc.UserServiceStub(calls)


async def is_refused(stub, metadata):
    """Whether a token is refused as revoked."""
    request = user_service_pb2.GetUserRequest(name=f"users/{uuid4()}")
    return await is_revoked(stub.GetUser(request, metadata=metadata))


async def revocations(users, caller="payment"):
    async with users.around.calling(users.port, caller) as calls:
        stub = auth_service_pb2_grpc.AuthServiceStub(calls)
        answer = await stub.ListRevocations(auth_service_pb2.ListRevocationsRequest())
        return list(answer.revocations)


async def reinstate(users, user):
    request = user_service_pb2.ReinstateUserRequest(name=user.name, reason="cleared")
    return (await users.users.ReinstateUser(request, metadata=await users.admin())).user


async def test_an_approved_account_is_active_and_says_who_approved_it(users):
    user = await users.register("asha")

    approved = await users.approve(user)

    assert approved.state == State.STATE_ACTIVE
    assert approved.state_reason == "papers seen"
    assert approved.version == 2
    event = (await users.around.events())[-1]
    assert event.user_changed.change == event_pb2.UserChanged.CHANGE_APPROVED
    assert event.user_changed.user == approved
    assert (
        event.actor
        == (await users.sign_in(users.around.admin.username, users.around.admin.password)).user
    )


async def test_approving_again_changes_nothing_and_records_nothing(users):
    approved = await users.approved("asha")
    before = len(await users.around.events())

    assert await users.approve(approved) == approved
    assert len(await users.around.events()) == before


async def test_the_admin_service_decides_on_behalf_of_an_admin(users):
    user = await users.register("asha")
    request = user_service_pb2.ApproveUserRequest(name=user.name, actor=f"users/{uuid4()}")

    async with users.around.calling(users.port, "admin") as calls:
        await user_service_pb2_grpc.UserServiceStub(calls).ApproveUser(request)

    assert (await users.around.events())[-1].actor == request.actor


async def test_a_person_cannot_sign_for_somebody_else(users):
    user = await users.register("asha")
    request = user_service_pb2.ApproveUserRequest(name=user.name, actor=f"users/{uuid4()}")

    await users.users.ApproveUser(request, metadata=await users.admin())

    assert (await users.around.events())[-1].actor != request.actor


@pytest.mark.parametrize("verb", ["approve", "reject", "suspend"])
async def test_an_account_that_does_not_exist_is_not_found(users, verb):
    user = user_pb2.User(name=f"users/{uuid4()}")

    refusal = await refusal_of(getattr(users, verb)(user))

    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert (refusal.reason, refusal.metadata) == ("USER_NOT_FOUND", {"name": user.name})


async def test_a_verb_that_does_not_start_from_the_accounts_state_is_refused(users):
    user = await users.register("asha")

    refusal = await refusal_of(users.suspend(user))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "USER_STATE_WRONG"
    assert refusal.metadata == {"state": "PENDING_APPROVAL", "needed": "ACTIVE"}
    assert await reason_of(reinstate(users, user)) == "USER_STATE_WRONG"
    await users.reject(user)
    assert await reason_of(users.approve(user)) == "USER_STATE_WRONG"


async def test_an_admin_cannot_suspend_themself(users):
    admin = users.around.admin
    session = await users.sign_in(admin.username, admin.password)

    refusal = await refusal_of(users.suspend(user_pb2.User(name=session.user)))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "SELF_SUSPENSION"


async def test_only_admins_decide(users):
    user = await users.approved("asha")
    metadata = await users.person("asha")

    assert await reason_of(users.suspend(user, metadata)) == "CALLER_NOT_ALLOWED"


async def test_a_suspension_ends_sessions_and_refuses_tokens_at_once(users):
    user = await users.approved("asha")
    session = await users.sign_in("asha")
    metadata = as_envoy_says(session.access_token)

    suspended = await users.suspend(user)

    assert suspended.state == State.STATE_SUSPENDED
    assert suspended.state_reason == "under inquiry"
    refusal = await refusal_of(users.get_user(user.name, metadata))
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert (refusal.domain, refusal.reason) == ("access.tallystick", "TOKEN_REVOKED")
    assert await reason_of(users.refresh(session.refresh_token)) == "SESSION_ENDED"
    changed, revoked = (await users.around.events())[-2:]
    assert changed.user_changed.change == event_pb2.UserChanged.CHANGE_SUSPENDED
    assert revoked.tokens_revoked.token_subject == user.name


async def test_a_reinstated_person_signs_in_anew_and_old_tokens_stay_refused(users):
    user = await users.approved("asha")
    session = await users.sign_in("asha")
    await users.suspend(user)

    reinstated = await reinstate(users, user)

    assert reinstated.state == State.STATE_ACTIVE
    old = as_envoy_says(session.access_token)
    assert await reason_of(users.get_user(user.name, old)) == "TOKEN_REVOKED"
    assert await reason_of(users.refresh(session.refresh_token)) == "SESSION_ENDED"
    found = await users.get_user(user.name, await users.person("asha"))
    assert found.user == reinstated


async def test_of_two_admins_who_suspend_each_other_at_once_one_remains(users):
    request = user_service_pb2.CreateAdminRequest(
        request_id=str(uuid4()), username="meera", password=PASSWORD, display_name="Meera"
    )
    meera = (await users.users.CreateAdmin(request, metadata=await users.admin())).user
    first = await users.sign_in(users.around.admin.username, users.around.admin.password)
    second = await users.sign_in("meera")

    outcomes = await asyncio.gather(
        users.suspend(meera, as_envoy_says(first.access_token)),
        users.suspend(user_pb2.User(name=first.user), as_envoy_says(second.access_token)),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, user_pb2.User) for outcome in outcomes) == 1
    (lost,) = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert lost.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_another_service_refuses_a_suspended_persons_token_within_a_second(
    users, tls_for, valkey_url
):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    async with another_service(tls_for, valkey_url, f"127.0.0.1:{users.port}") as other:
        assert not await is_refused(other, metadata)

        began = time.monotonic()
        await users.suspend(user)
        await eventually(lambda: is_refused(other, metadata), seconds=5)

        assert time.monotonic() - began < 1


@pytest.mark.parametrize("lease", ["with", "without"])
async def test_another_replica_refuses_it_within_a_second_too(users, lease):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    admin = await users.admin()
    # The replica that started first holds the relay's lease.
    async with users.around.running() as other:
        one, another = (users, other) if lease == "with" else (other, users)
        assert not await is_refused(another.users, metadata)

        began = time.monotonic()
        await one.suspend(user, admin)
        await eventually(lambda: is_refused(another.users, metadata), seconds=5)

        assert time.monotonic() - began < 1


async def test_events_go_on_at_once_when_the_replica_that_published_them_stops(users, valkey_url):
    redis = streams.connect(valkey_url)
    async with users.around.running() as other:
        await other.admin()
        await eventually(lambda: redis.exists("{events:user}:relay"))
        await users.server.stop()
        before = await streams.latest(redis, "user")

        began = time.monotonic()
        await other.register("asha")

        async def is_published():
            return await streams.latest(redis, "user") != before

        await eventually(is_published)
        assert time.monotonic() - began < 1
    await redis.aclose()


async def test_a_service_that_starts_later_learns_of_it_from_the_list(users, tls_for, valkey_url):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    await users.suspend(user)

    async with another_service(tls_for, valkey_url, f"127.0.0.1:{users.port}") as other:
        await eventually(lambda: is_refused(other, metadata))


async def test_a_service_that_starts_while_the_user_service_is_away_learns_of_it_afterwards(
    users, tls_for, valkey_url
):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    await users.suspend(user)
    around, port = users.around, users.port
    await users.server.stop()

    async with another_service(tls_for, valkey_url, f"127.0.0.1:{port}") as other:
        assert not await is_refused(other, metadata)
        async with around.running(listen=f"127.0.0.1:{port}"):
            await eventually(lambda: is_refused(other, metadata))


async def test_a_replica_that_starts_refuses_from_its_first_call(users):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    await users.suspend(user)

    async with users.around.running() as other:
        assert await reason_of(other.get_user(user.name, metadata)) == "TOKEN_REVOKED"


async def test_revocations_are_listed_for_services_while_a_token_may_live(users):
    user = await users.approved("asha")
    await users.suspend(user)

    (revocation,) = await revocations(users)
    assert revocation.subject == user.name

    users.clock.advance(ACCESS_TOKEN_LIFE + timedelta(minutes=1))
    assert await revocations(users) == []


async def test_no_person_may_list_revocations(users):
    call = users.auth.ListRevocations(
        auth_service_pb2.ListRevocationsRequest(), metadata=await users.admin()
    )

    assert await reason_of(call) == "CALLER_NOT_ALLOWED"


def test_a_revocation_never_goes_back_and_is_forgotten_when_told_to():
    known = Revocations()
    known.revoke("users/a", 10)
    known.revoke("users/a", 5)
    known.revoke("users/b", 20)
    assert known._revoked == {"users/a": 10, "users/b": 20}

    known.forget(20)
    assert known._revoked == {"users/b": 20}
