"""Signing in with a password."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import grpc
import jwt
import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from services.user.domain import lockout
from services.user.store import tables
from tallystick.user.v1 import auth_service_pb2, user_service_pb2
from tests.user_service import (
    OTHER_PASSWORD,
    PASSWORD,
    as_envoy_says,
    reason_of,
    refusal_of,
    serving_users,
)


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


async def verified_claims(users, token):
    """The claims of a token, verified as a gateway would: with the published key set alone."""
    answer = await users.auth.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest())
    keys = {key["kid"]: key for key in json.loads(answer.json_web_key_set)["keys"]}
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert (key["alg"], key["use"]) == ("ES256", "sig")
    return jwt.decode(
        token,
        jwt.PyJWK(key).key,
        ["ES256"],
        audience="tallystick",
        issuer="https://tallystick",
        leeway=60,
    )


async def test_the_right_password_opens_a_session(users):
    user = await users.approved("teashop", vendor=True)

    session = await users.sign_in("TeaShop")

    assert session.user == user.name
    claims = await verified_claims(users, session.access_token)
    assert claims["sub"] == user.name
    assert claims["roles"] == ["VENDOR"]
    assert claims["exp"] - claims["iat"] == 15 * 60
    assert claims["iat_us"] // 1_000_000 == claims["iat"]
    assert session.access_expire_time.seconds == claims["exp"]
    assert {"jti", "sid"} < claims.keys()
    thirty_days = users.clock() + timedelta(days=30)
    assert abs(session.refresh_expire_time.ToDatetime(UTC) - thirty_days) < timedelta(seconds=1)


async def test_somebody_pending_approval_may_sign_in_and_read_their_own_record(users):
    user = await users.register("asha")

    metadata = await users.person("asha")

    assert (await users.get_user(user.name, metadata)).user == user


async def test_a_wrong_password_and_an_unknown_username_are_answered_alike(users):
    await users.approved("asha")

    wrong = await refusal_of(users.sign_in("asha", OTHER_PASSWORD))
    unknown = await refusal_of(users.sign_in("usha", OTHER_PASSWORD))
    impossible = await refusal_of(users.sign_in("no such name!", OTHER_PASSWORD))

    assert wrong.code is grpc.StatusCode.UNAUTHENTICATED
    assert (wrong.domain, wrong.reason) == ("user.tallystick", "CREDENTIALS_WRONG")
    assert wrong == unknown == impossible


@pytest.mark.parametrize("username", ["asha", "nobody"])
async def test_wrong_passwords_make_a_username_wait_whether_or_not_anybody_has_it(users, username):
    await users.approved("asha")
    for _ in range(lockout.FREE_ATTEMPTS + 1):
        assert await reason_of(users.sign_in(username, OTHER_PASSWORD)) == "CREDENTIALS_WRONG"

    refusal = await refusal_of(users.sign_in(username.upper(), PASSWORD))

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.reason == "TOO_MANY_ATTEMPTS"
    assert timedelta(0) < refusal.retry_after <= lockout.FIRST_DELAY


async def test_after_the_wait_the_right_password_opens_and_clears_the_count(users):
    await users.approved("asha")
    for _ in range(lockout.FREE_ATTEMPTS + 1):
        await reason_of(users.sign_in("asha", OTHER_PASSWORD))
    users.clock.advance(lockout.FIRST_DELAY)

    await users.sign_in("asha")

    assert await users.around.rows(tables.attempts) == []


async def test_a_wait_does_not_touch_open_sessions(users):
    await users.approved("asha")
    session = await users.sign_in("asha")
    for _ in range(lockout.FREE_ATTEMPTS + 1):
        await reason_of(users.sign_in("asha", OTHER_PASSWORD))

    await users.refresh(session.refresh_token)


async def test_guesses_sent_all_at_once_learn_no_more_than_one_by_one(users):
    await users.approved("asha")
    guesses = [f"wrong guess number {number}" for number in range(20)] + [PASSWORD]

    answers = await asyncio.gather(*(reason_of(users.sign_in("asha", guess)) for guess in guesses))

    assert answers.count("CREDENTIALS_WRONG") == lockout.FREE_ATTEMPTS + 1
    assert answers[-1] == "TOO_MANY_ATTEMPTS"


async def test_a_suspended_person_with_the_right_password_is_told_so(users):
    await users.suspend(await users.approved("asha"))

    refusal = await refusal_of(users.sign_in("asha"))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "USER_SUSPENDED"
    assert await reason_of(users.sign_in("asha", OTHER_PASSWORD)) == "CREDENTIALS_WRONG"


async def test_a_declined_person_with_the_right_password_is_told_why(users):
    await users.reject(await users.register("asha"), "The shop does not exist.")

    refusal = await refusal_of(users.sign_in("asha"))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "USER_REJECTED"
    assert refusal.metadata == {"stateReason": "The shop does not exist."}
    assert await reason_of(users.sign_in("asha", OTHER_PASSWORD)) == "CREDENTIALS_WRONG"


async def test_a_hash_made_with_other_parameters_is_made_anew_at_sign_in(users):
    user = await users.register("asha")
    weaker = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash(PASSWORD)
    async with users.around.database() as connection:
        await connection.execute(sa.update(tables.credentials).values(password_hash=weaker))

    await asyncio.gather(*(users.sign_in("asha") for _ in range(3)))

    hashes = [row.password_hash for row in await users.around.rows(tables.credentials)]
    assert sum(stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$") for stored in hashes) == 1
    assert user.version == 1


async def test_a_password_that_is_replaced_while_it_is_verified_opens_nothing(users, monkeypatch):
    await users.approved("asha")
    metadata = await users.person("asha")
    passwords = users.server._passwords
    verify = passwords.verify
    replaced = asyncio.Event()

    async def slowly(stored, password):
        right = await verify(stored, password)
        if not replaced.is_set():
            replaced.set()
            await users.change_password(metadata)
        return right

    monkeypatch.setattr(passwords, "verify", slowly)

    assert await reason_of(users.sign_in("asha", PASSWORD)) == "CREDENTIALS_WRONG"
    await users.sign_in("asha", OTHER_PASSWORD)


async def test_a_token_without_the_gateways_word_is_worth_nothing(users):
    user = await users.approved("asha")
    metadata = await users.person("asha")
    request = user_service_pb2.GetUserRequest(name=user.name)

    async with users.around.calling(users.port, "payment") as payment:
        call = payment.unary_unary(
            "/tallystick.user.v1.UserService/GetUser",
            request_serializer=user_service_pb2.GetUserRequest.SerializeToString,
        )
        refusal = await refusal_of(call(request, metadata=metadata))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "CALLER_NOT_ALLOWED"


async def test_changing_the_password_ends_other_sessions_and_every_access_token(users):
    user = await users.approved("asha")
    other, mine = await users.sign_in("asha"), await users.sign_in("asha")
    metadata = as_envoy_says(mine.access_token)

    await users.change_password(metadata)

    assert await reason_of(users.get_user(user.name, metadata)) == "TOKEN_REVOKED"
    assert await reason_of(users.refresh(other.refresh_token)) == "SESSION_ENDED"
    renewed = await users.refresh(mine.refresh_token)
    found = await users.get_user(user.name, as_envoy_says(renewed.access_token))
    assert found.user.version == user.version + 1
    assert await reason_of(users.sign_in("asha")) == "CREDENTIALS_WRONG"
    await users.sign_in("asha", OTHER_PASSWORD)
    facts = [event.WhichOneof("fact") for event in await users.around.events()]
    assert facts[-2:] == ["user_changed", "tokens_revoked"]


@pytest.mark.parametrize(
    ("current", "new", "reason"),
    [
        (OTHER_PASSWORD, "Password2024!!", "CREDENTIALS_WRONG"),
        (PASSWORD, "Password2024!!", "PASSWORD_TOO_COMMON"),
        (PASSWORD, "short", "FIELDS_INVALID"),
    ],
)
async def test_a_password_is_not_changed_like_that(users, current, new, reason):
    await users.approved("asha")
    session = await users.sign_in("asha")

    call = users.change_password(as_envoy_says(session.access_token), current, new)

    assert await reason_of(call) == reason
    await users.sign_in("asha", PASSWORD)
    await users.refresh(session.refresh_token)


async def test_a_stolen_token_does_not_help_to_guess_the_password(users):
    await users.approved("asha")
    metadata = await users.person("asha")
    for _ in range(lockout.FREE_ATTEMPTS + 1):
        call = users.change_password(metadata, current="wrong guess")
        assert await reason_of(call) == "CREDENTIALS_WRONG"

    assert await reason_of(users.change_password(metadata)) == "TOO_MANY_ATTEMPTS"
    assert await reason_of(users.sign_in("asha")) == "TOO_MANY_ATTEMPTS"


async def test_the_clock_of_a_token_is_the_services_own(users):
    await users.approved("asha")
    users.clock.advance(timedelta(seconds=30))

    claims = await verified_claims(users, (await users.sign_in("asha")).access_token)

    assert claims["iat"] > datetime.now(UTC).timestamp() + 20
