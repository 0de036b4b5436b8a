"""Sessions: refreshing, ending, forgetting them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

from services.user import upkeep
from services.user.domain import lockout
from services.user.domain.session import REFRESH_TOKEN_LIFE, SPENT_TOKEN_MEMORY
from services.user.store import tables
from tallystick.user.v1 import auth_service_pb2
from tests.user_service import (
    OTHER_PASSWORD,
    as_envoy_says,
    reason_of,
    refusal_of,
    serving_users,
)


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


def log_out(users, refresh_token):
    return users.auth.Logout(auth_service_pb2.LogoutRequest(refresh_token=refresh_token))


async def test_a_refresh_token_is_exchanged_for_a_new_pair(users):
    user = await users.approved("asha")
    first = await users.sign_in("asha")
    users.clock.advance(timedelta(minutes=14))

    second = await users.refresh(first.refresh_token)

    assert second.refresh_token != first.refresh_token
    assert second.access_token != first.access_token
    assert second.access_expire_time.seconds >= first.access_expire_time.seconds + 14 * 60
    assert second.refresh_expire_time.seconds > first.refresh_expire_time.seconds
    await users.get_user(user.name, as_envoy_says(second.access_token))
    await users.refresh(second.refresh_token)


async def test_a_session_goes_on_as_long_as_it_is_refreshed(users):
    await users.approved("asha")
    session = await users.sign_in("asha")
    for _ in range(3):
        users.clock.advance(REFRESH_TOKEN_LIFE - timedelta(minutes=1))
        session = await users.refresh(session.refresh_token)


async def test_a_spent_token_that_comes_again_ends_the_session(users):
    await users.approved("asha")
    first = await users.sign_in("asha")
    bystander = await users.sign_in("asha")
    second = await users.refresh(first.refresh_token)

    refusal = await refusal_of(users.refresh(first.refresh_token))

    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert (refusal.domain, refusal.reason) == ("user.tallystick", "REFRESH_TOKEN_REUSED")
    assert await reason_of(users.refresh(second.refresh_token)) == "SESSION_ENDED"
    assert await reason_of(users.refresh(first.refresh_token)) == "REFRESH_TOKEN_REUSED"
    await users.refresh(bystander.refresh_token)


async def test_of_two_refreshes_with_one_token_at_once_one_wins_and_the_session_ends(users):
    await users.approved("asha")
    session = await users.sign_in("asha")

    outcomes = await asyncio.gather(
        *(users.refresh(session.refresh_token) for _ in range(2)), return_exceptions=True
    )

    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    (won,) = [outcome for outcome in outcomes if outcome is not lost]
    assert lost.code() is grpc.StatusCode.UNAUTHENTICATED
    assert await reason_of(users.refresh(won.refresh_token)) == "SESSION_ENDED"


async def test_an_unknown_refresh_token_is_refused(users):
    refusal = await refusal_of(users.refresh("never given"))

    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.reason == "REFRESH_TOKEN_UNKNOWN"


async def test_a_session_that_is_not_refreshed_ends(users):
    await users.approved("asha")
    session = await users.sign_in("asha")
    users.clock.advance(REFRESH_TOKEN_LIFE)

    refusal = await refusal_of(users.refresh(session.refresh_token))

    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.reason == "SESSION_ENDED"


async def test_a_declined_person_cannot_keep_a_session(users):
    user = await users.register("asha")
    session = await users.sign_in("asha")
    await users.reject(user)

    refusal = await refusal_of(users.refresh(session.refresh_token))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "USER_REJECTED"


async def test_logging_out_with_any_token_of_a_session_ends_it(users):
    await users.approved("asha")
    first = await users.sign_in("asha")
    bystander = await users.sign_in("asha")
    second = await users.refresh(first.refresh_token)

    await log_out(users, first.refresh_token)

    assert await reason_of(users.refresh(second.refresh_token)) == "SESSION_ENDED"
    await users.refresh(bystander.refresh_token)


async def test_logging_out_of_an_ended_or_unknown_session_succeeds(users):
    await users.approved("asha")
    session = await users.sign_in("asha")

    await log_out(users, session.refresh_token)
    await log_out(users, session.refresh_token)
    await log_out(users, "never given")


async def test_no_refresh_token_is_on_record(users):
    await users.approved("asha")
    session = await users.sign_in("asha")

    rows = [str(row) for row in await users.around.rows(tables.refresh_tokens)]
    assert not any(session.refresh_token in row for row in rows)


async def test_rows_that_no_answer_depends_on_are_removed(users):
    user = await users.approved("asha")
    idle = await users.sign_in("asha")
    session = await users.sign_in("asha")
    busy = await users.refresh(session.refresh_token)
    await reason_of(users.sign_in("asha", OTHER_PASSWORD))
    await users.suspend(user)
    recorder = users.server._recorder

    await upkeep.clean(recorder)
    assert len(await users.around.rows(tables.sessions)) == 3  # and the admin's
    assert len(await users.around.rows(tables.refresh_tokens)) == 4
    assert len(await users.around.rows(tables.attempts)) == 1
    assert len(await users.around.rows(tables.revocations)) == 1

    users.clock.advance(max(SPENT_TOKEN_MEMORY, lockout.MEMORY) + timedelta(seconds=1))
    await upkeep.clean(recorder)
    assert len(await users.around.rows(tables.sessions)) == 3
    assert len(await users.around.rows(tables.refresh_tokens)) == 3
    assert await users.around.rows(tables.attempts) == []
    assert await users.around.rows(tables.revocations) == []
    assert await reason_of(users.refresh(session.refresh_token)) == "REFRESH_TOKEN_UNKNOWN"
    assert await reason_of(users.refresh(busy.refresh_token)) == "SESSION_ENDED"

    users.clock.advance(REFRESH_TOKEN_LIFE)
    await upkeep.clean(recorder)
    assert await users.around.rows(tables.sessions) == []
    assert await users.around.rows(tables.refresh_tokens) == []
    assert await reason_of(users.refresh(idle.refresh_token)) == "REFRESH_TOKEN_UNKNOWN"
