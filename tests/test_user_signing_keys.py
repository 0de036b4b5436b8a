"""Signing keys on record: made once, rotated, sealed."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import AsyncExitStack
from datetime import UTC, timedelta

import jwt
import pytest
import sqlalchemy as sa

from services.environment import SettingError
from services.user.domain.session import ACCESS_TOKEN_LIFE
from services.user.server import UserServer
from services.user.signing import KeyRing
from services.user.store import tables
from tallystick.user.v1 import auth_service_pb2
from tests.user_service import reason_of, surroundings, write_key_encryption_key


@pytest.fixture
async def around(tls_for, valkey_url, database_url, tmp_path):
    async with surroundings(tls_for, valkey_url, database_url("user"), tmp_path) as value:
        yield value


async def key_set(users):
    answer = await users.auth.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest())
    return {key["kid"]: key for key in json.loads(answer.json_web_key_set)["keys"]}


async def rotate(users):
    request = auth_service_pb2.RotateSigningKeysRequest()
    return await users.auth.RotateSigningKeys(request, metadata=await users.admin())


async def signer(users):
    """The key that signs now."""
    admin = users.around.admin
    session = await users.sign_in(admin.username, admin.password)
    return jwt.get_unverified_header(session.access_token)["kid"]


async def test_a_first_start_makes_the_key_that_signs(around):
    assert await around.rows(tables.signing_keys) == []

    async with around.running() as users:
        assert list(await key_set(users)) == [await signer(users)]


async def test_a_second_start_keeps_the_key(around):
    async with around.running() as users:
        before = await key_set(users)
    async with around.running() as users:
        assert await key_set(users) == before


async def test_replicas_that_start_at_once_agree_on_one_key(around):
    async with AsyncExitStack() as stack:
        replicas = await asyncio.gather(
            *(stack.enter_async_context(around.running()) for _ in range(4))
        )

        signers = [await signer(replica) for replica in replicas]
        assert len(set(signers)) == 1
        assert len(await around.rows(tables.signing_keys)) == 1


async def test_a_new_key_is_published_before_it_signs_and_outlived_by_the_old_ones_tokens(around):
    async with around.running() as users:
        old = await signer(users)

        answer = await rotate(users)
        new = answer.key_id
        assert list(await key_set(users)) == [old, new]
        assert await signer(users) == old
        wait = answer.sign_time.ToDatetime(UTC) - users.clock()
        assert timedelta(seconds=9) < wait <= timedelta(seconds=10)

        users.clock.advance(wait)
        assert await signer(users) == new
        assert list(await key_set(users)) == [old, new]

        users.clock.advance(ACCESS_TOKEN_LIFE)
        assert list(await key_set(users)) == [old, new]
        users.clock.advance(timedelta(minutes=1))
        assert list(await key_set(users)) == [new]


async def test_rotating_again_before_the_new_key_signs_answers_the_same_key(around):
    async with around.running() as users, around.running() as other:
        await users.admin()
        await other.admin()

        answers = await asyncio.gather(rotate(users), rotate(other), rotate(users))

        assert len({answer.key_id for answer in answers}) == 1
        assert len(await around.rows(tables.signing_keys)) == 2


async def test_a_rotation_is_recorded(around):
    async with around.running() as users:
        answer = await rotate(users)

        event = (await around.events())[-1]
        assert event.subject == f"signingKeys/{answer.key_id}"
        assert event.signing_key_rotated.key_id == answer.key_id
        assert event.signing_key_rotated.sign_time == answer.sign_time


async def test_only_operators_rotate(around):
    async with around.running() as users:
        await users.approved("asha")
        call = users.auth.RotateSigningKeys(
            auth_service_pb2.RotateSigningKeysRequest(), metadata=await users.person("asha")
        )

        assert await reason_of(call) == "CALLER_NOT_ALLOWED"


async def test_an_old_key_is_replaced_by_itself_and_forgotten_later(around):
    async with around.running() as users:
        old = await signer(users)
        users.clock.advance(around.settings.key_age_max)
        await users.server._keys.keep()
        new = set(await key_set(users)) - {old}
        assert len(new) == 1

        users.clock.advance(timedelta(hours=1))
        await users.server._keys.keep()
        rows = await around.rows(tables.signing_keys)
        assert {row.key_id for row in rows} == new
        assert {await signer(users)} == new


async def test_the_gateway_may_ask_for_the_keys_without_a_person(around):
    async with around.running() as users:
        assert await key_set(users)


async def test_a_key_encryption_key_that_does_not_open_stops_the_start(around, tmp_path):
    async with around.running():
        pass
    write_key_encryption_key(around.settings.key_encryption_key_file)

    server = UserServer(around.settings, now=around.clock)
    try:
        with pytest.raises(SettingError, match="TALLYSTICK_KEK_FILE does not open"):
            await server.start()
    finally:
        await server.stop()


async def test_the_key_encryption_key_can_be_replaced(around):
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    path = around.settings.key_encryption_key_file
    write_key_encryption_key(path, old)
    async with around.running():
        pass
    write_key_encryption_key(path, new, old)
    async with around.running() as users:
        await rotate(users)
    around.clock.advance(timedelta(hours=1))
    write_key_encryption_key(path, new)

    async with around.running() as users:
        await users.admin()


async def test_private_keys_are_sealed_to_their_rows(around):
    async with around.running() as users:
        await rotate(users)
    first, second = await around.rows(tables.signing_keys)
    assert b"PRIVATE KEY" not in first.sealed_private_key
    async with around.database() as connection:
        await connection.execute(
            sa.update(tables.signing_keys)
            .where(tables.signing_keys.c.number == second.number)
            .values(sealed_private_key=first.sealed_private_key)
        )

    server = UserServer(around.settings, now=around.clock)
    try:
        with pytest.raises(SettingError):
            await server.start()
    finally:
        await server.stop()


@pytest.mark.parametrize("text", ["", "c2hvcnQ=\n", "not base64!\n"])
def test_a_file_that_holds_no_key_is_refused_with_the_way_out(tmp_path, text):
    path = tmp_path / "kek"
    path.write_text(text)

    with pytest.raises(SettingError, match="head -c 32 /dev/urandom"):
        KeyRing.read(path)
