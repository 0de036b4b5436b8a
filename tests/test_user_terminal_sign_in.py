"""A terminal signs in with its own key, and is out within a second of its revocation."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import uuid4

from services.rpc.server import Registration
from services.user.domain.session import CLOCKS_APART_MAX
from services.user.store import tables
from services.user.upkeep import clean
from tallystick.offline.v1 import terminal_sync_service_pb2, terminal_sync_service_pb2_grpc
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_service_pb2,
)
from tests.eventually import eventually
from tests.follower import following, is_revoked
from tests.shop import REVOKED, an_assertion, open_shop, sign_in, signed_in
from tests.user_service import as_envoy_says, reason_of, refusal_of, refused, serving_users


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


@pytest.fixture
async def shop(users):
    return await open_shop(users)


def a_token(header, payload):
    """What somebody makes who has no key."""
    parts = [json.dumps(header), payload, "signature"]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


class TrustFake(terminal_sync_service_pb2_grpc.TerminalSyncServiceServicer):
    """A servant of another service that answers every terminal the server's edge lets through."""

    async def GetTrustBundle(self, request, context):
        return terminal_sync_service_pb2.GetTrustBundleResponse()


class OfflineService:
    def __init__(self, calls):
        self.stub = terminal_sync_service_pb2_grpc.TerminalSyncServiceStub(calls)

    async def refuses(self, metadata):
        request = terminal_sync_service_pb2.GetTrustBundleRequest()
        return await is_revoked(self.stub.GetTrustBundle(request, metadata=metadata))


@asynccontextmanager
async def an_offline_service(users, tls_for, redis_url):
    registration = Registration(
        terminal_sync_service_pb2.DESCRIPTOR.services_by_name["TerminalSyncService"],
        terminal_sync_service_pb2_grpc.add_TerminalSyncServiceServicer_to_server,
        TrustFake(),
    )
    address = f"127.0.0.1:{users.port}"
    async with following(tls_for, redis_url, address, "offline", registration) as calls:
        yield OfflineService(calls)


async def test_a_terminal_signs_in_with_its_key(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)

    answer = await sign_in(users, an_assertion(users, terminal.name, key))

    claims = jwt.decode(answer.access_token, options={"verify_signature": False})
    assert (claims["sub"], claims["roles"]) == (terminal.name, ["TERMINAL"])
    assert claims["exp"] - claims["iat"] == 15 * 60
    keys = await users.auth.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest())
    kid = jwt.get_unverified_header(answer.access_token)["kid"]
    assert kid in {each["kid"] for each in json.loads(keys.json_web_key_set)["keys"]}
    # A terminal opens nothing that the contract does not open to terminals.
    metadata = as_envoy_says(answer.access_token)
    refusal_call = users.get_user(shop.vendor.name, metadata)
    assert await reason_of(refusal_call) == "CALLER_NOT_ALLOWED"
    enrolling = shop.terminals.EnrollTerminal(shop.request(), metadata=metadata)
    assert await reason_of(enrolling) == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"iss": "somebody"},
        {"sub": "users/nobody"},
        {"jti": "not-a-uuid"},
        {"iat": "then"},
        {"exp": 10**30},
        {"exp": 0},
        {"without": ("jti",)},
        {"without": ("aud",)},
        {"without": ("sub",)},
    ],
    ids=str,
)
async def test_an_assertion_that_says_something_else_is_refused(users, shop, changes):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)

    refusal_call = sign_in(users, an_assertion(users, terminal.name, key, **changes))
    assert await reason_of(refusal_call) == "ASSERTION_INVALID"


async def test_an_assertion_of_another_key_or_kind_is_refused(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    public_key = key.public_key().public_bytes_raw()
    wrong = [
        an_assertion(users, terminal.name, Ed25519PrivateKey.generate()),
        an_assertion(users, terminal.name, public_key, algorithm="HS256"),
        an_assertion(
            users, terminal.name, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"
        ),
        an_assertion(users, terminal.name, "", algorithm="none"),
        an_assertion(users, f"{shop.vendor.name}/terminals/{uuid4()}", key),
        an_assertion(users, f"users/{uuid4()}/terminals/{terminal.name[-36:]}", key),
        "not.a.token",
        "Ä.Ä.Ä",
        a_token({"alg": "EdDSA"}, "[" * 1_400),
        a_token({"alg": "EdDSA"}, "[]"),
        a_token({"alg": "EdDSA", "crit": ["tallystick"]}, "{}"),
    ]
    for assertion in wrong:
        assert await reason_of(sign_in(users, assertion)) == "ASSERTION_INVALID"


@pytest.mark.parametrize("off", [timedelta(days=365), timedelta(days=-365), timedelta(seconds=122)])
async def test_a_clock_that_is_off_is_told_the_time(users, shop, off):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    now = int((users.clock() - off).timestamp())

    refusal = await refusal_of(
        sign_in(users, an_assertion(users, terminal.name, key, iat=now, exp=now + 60))
    )

    assert refusal.reason == "ASSERTION_EXPIRED"
    told = refusal.metadata["serverTime"]
    assert abs((datetime.fromisoformat(told) - users.clock()).total_seconds()) < 30


async def test_an_assertion_counts_once_at_whatever_replica(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    assertion = an_assertion(users, terminal.name, key)

    async with users.around.running() as second:
        answers = await asyncio.gather(
            sign_in(users, assertion), sign_in(second, assertion), return_exceptions=True
        )
    failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(failed) == 1
    assert refused(failed[0]).reason == "ASSERTION_REPLAYED"
    assert await reason_of(sign_in(users, assertion)) == "ASSERTION_REPLAYED"


async def test_used_assertions_are_forgotten_when_they_would_be_refused_anyway(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    assertion = an_assertion(users, terminal.name, key)
    await sign_in(users, assertion)

    recorder = users.server._recorder
    await clean(recorder)
    assert len(await users.around.rows(tables.assertions)) == 1
    users.clock.advance(timedelta(minutes=5))
    await clean(recorder)
    assert await users.around.rows(tables.assertions) == []
    assert await reason_of(sign_in(users, assertion)) == "ASSERTION_EXPIRED"


async def test_a_revoked_terminal_is_out_at_once_and_for_ever(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    await sign_in(users, an_assertion(users, terminal.name, key))

    revoked = await shop.revoke(terminal)

    assert (revoked.state, revoked.revoke_reason, revoked.version) == (REVOKED, "lost", 2)
    assert await shop.revoke(terminal) == revoked, "a second time changes nothing"
    refusal = await refusal_of(sign_in(users, an_assertion(users, terminal.name, key)))
    assert (refusal.reason, refusal.metadata["name"]) == ("TERMINAL_REVOKED", terminal.name)
    events = await users.around.events()
    assert events[-1].tokens_revoked.token_subject == terminal.name
    assert events[-2].terminal_changed.terminal == revoked
    assert sum(event.HasField("tokens_revoked") for event in events) == 1
    # What services load when they start.
    async with users.around.calling(users.port, "payment") as channel:
        listed = await auth_service_pb2_grpc.AuthServiceStub(channel).ListRevocations(
            auth_service_pb2.ListRevocationsRequest()
        )
    assert terminal.name in {each.subject for each in listed.revocations}


async def test_a_suspended_vendors_terminals_are_out_until_it_is_reinstated(
    users, shop, tls_for, valkey_url
):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    before = await signed_in(users, terminal, key)
    async with an_offline_service(users, tls_for, valkey_url) as offline:
        assert not await offline.refuses(before)

        began = time.monotonic()
        await users.suspend(shop.vendor)
        await eventually(lambda: offline.refuses(before), seconds=5)

        assert time.monotonic() - began < 1
        refusal = await refusal_of(sign_in(users, an_assertion(users, terminal.name, key)))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "USER_STATE_WRONG",
        )
        assert refusal.metadata == {"state": "SUSPENDED", "needed": "ACTIVE"}
        await users.users.ReinstateUser(
            user_service_pb2.ReinstateUserRequest(name=shop.vendor.name, reason="cleared"),
            metadata=await users.admin(),
        )
        assert not await offline.refuses(await signed_in(users, terminal, key))
        assert await offline.refuses(before), "the old token has not come back"


async def test_another_service_refuses_a_revoked_terminals_tokens_within_a_second(
    users, shop, tls_for, valkey_url
):
    key, other_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    terminal, other = await shop.enrol(key), await shop.enrol(other_key)
    metadata, neighbour = (
        await signed_in(users, terminal, key),
        await signed_in(users, other, other_key),
    )
    async with an_offline_service(users, tls_for, valkey_url) as offline:
        assert not await offline.refuses(metadata)

        began = time.monotonic()
        await shop.revoke(terminal)
        await eventually(lambda: offline.refuses(metadata), seconds=5)

        assert time.monotonic() - began < 1
        assert not await offline.refuses(neighbour)
    # One that starts later has it from the list.
    async with an_offline_service(users, tls_for, valkey_url) as offline:
        await eventually(lambda: offline.refuses(metadata))
        assert not await offline.refuses(neighbour)


async def test_a_token_of_a_replica_whose_clock_is_ahead_falls_too(
    users, shop, tls_for, valkey_url
):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    ahead = CLOCKS_APART_MAX - timedelta(seconds=1)
    users.clock.advance(ahead)
    metadata = await signed_in(users, terminal, key)
    users.clock.advance(-ahead)

    await shop.revoke(terminal)

    async with an_offline_service(users, tls_for, valkey_url) as offline:
        await eventually(lambda: offline.refuses(metadata))


async def test_of_a_sign_in_and_a_revocation_at_once_no_token_is_left(
    users, shop, tls_for, valkey_url
):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    async with users.around.running() as second:
        *answers, _ = await asyncio.gather(
            *(sign_in(second, an_assertion(users, terminal.name, key)) for _ in range(4)),
            shop.revoke(terminal),
            return_exceptions=True,
        )
    let_in = [answer for answer in answers if not isinstance(answer, grpc.aio.AioRpcError)]
    others = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {refused(error).reason for error in others} <= {"TERMINAL_REVOKED"}
    async with an_offline_service(users, tls_for, valkey_url) as offline:
        for answer in let_in:
            metadata = as_envoy_says(answer.access_token)
            await eventually(lambda metadata=metadata: offline.refuses(metadata))


async def test_refusals_of_a_sign_in_come_in_the_contracts_order(users, shop):
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    used = an_assertion(users, terminal.name, key)
    await sign_in(users, used)
    await shop.revoke(terminal)
    await users.suspend(shop.vendor)
    long_ago = int(users.clock().timestamp()) - 3600
    old = {"iat": long_ago, "exp": long_ago + 60}
    reasons = [
        await reason_of(sign_in(users, assertion))
        for assertion in (
            an_assertion(users, terminal.name, stranger, **old),
            an_assertion(users, terminal.name, key, **old),
            used,
            an_assertion(users, terminal.name, key),
        )
    ]

    assert reasons == [
        "ASSERTION_INVALID",
        "ASSERTION_EXPIRED",
        "ASSERTION_REPLAYED",
        "TERMINAL_REVOKED",
    ]


async def test_a_refused_assertion_is_not_used_up(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)
    assertion = an_assertion(users, terminal.name, key)
    users.clock.advance(timedelta(minutes=3))
    assert await reason_of(sign_in(users, assertion)) == "ASSERTION_EXPIRED"
    users.clock.advance(timedelta(minutes=-3))

    assert (await sign_in(users, assertion)).terminal == terminal.name
