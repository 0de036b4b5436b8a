"""Terminals: enrolled by their vendor, signed in by their own key, gone within a second of their revocation."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.refusal import Refusal
from services.rpc.identity import Caller
from services.rpc.revocations import Revocations
from services.user.domain import terminal as rules
from services.user.store import tables
from services.user.upkeep import clean
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_pb2,
)
from tests.user_service import as_envoy_says, reason_of, refusal_of, serving_users

ENROLLED, REVOKED = user_pb2.Terminal.STATE_ENROLLED, user_pb2.Terminal.STATE_REVOKED


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


@pytest.fixture
async def shop(users):
    vendor = await users.approved("teashop", vendor=True)
    metadata = await users.person("teashop")
    (site,) = (await users.get_user(vendor.name, metadata)).sites
    return Shop(users, vendor, metadata, site)


class Shop:
    """A vendor with terminals."""

    def __init__(self, users, vendor, metadata, site):
        self.users = users
        self.vendor = vendor
        self.metadata = metadata
        self.site = site

    @property
    def terminals(self):
        return self.users.terminals

    def request(self, key=None, request_id=None, **changes):
        key = key or Ed25519PrivateKey.generate()
        fields = {
            "display_name": "Counter",
            "site": self.site.name,
            "public_key": key.public_key().public_bytes_raw(),
        }
        terminal = user_pb2.Terminal(**fields | changes)
        return terminal_service_pb2.EnrollTerminalRequest(
            request_id=request_id or str(uuid4()), terminal=terminal
        )

    async def enrol(self, key=None, **changes):
        request = self.request(key, **changes)
        return (await self.terminals.EnrollTerminal(request, metadata=self.metadata)).terminal

    async def revoke(self, terminal, metadata=None):
        request = terminal_service_pb2.RevokeTerminalRequest(name=terminal.name, reason="lost")
        answer = await self.terminals.RevokeTerminal(request, metadata=metadata or self.metadata)
        return answer.terminal

    async def list(self, metadata=None, **asked):
        request = terminal_service_pb2.ListTerminalsRequest(parent=self.vendor.name, **asked)
        return await self.terminals.ListTerminals(request, metadata=metadata or self.metadata)


def an_assertion(users, name, key, *, algorithm="EdDSA", without=(), **changes):
    now = int(users.clock().timestamp())
    claims = {
        "iss": name,
        "sub": name,
        "aud": "tallystick",
        "iat": now,
        "exp": now + 60,
        "jti": str(uuid4()),
    }
    claims = {claim: value for claim, value in (claims | changes).items() if claim not in without}
    return jwt.encode(claims, key, algorithm)


def sign_in(users, assertion):
    request = auth_service_pb2.AuthenticateTerminalRequest(assertion=assertion)
    return users.auth.AuthenticateTerminal(request)


async def test_a_vendor_enrols_a_terminal(users, shop):
    key = Ed25519PrivateKey.generate()

    terminal = await shop.enrol(key, scope="market-7")

    assert terminal.name.startswith(f"{shop.vendor.name}/terminals/")
    assert (terminal.state, terminal.scope, terminal.version) == (ENROLLED, "market-7", 1)
    assert terminal.public_key == key.public_key().public_bytes_raw()
    assert (await shop.enrol()).scope == "main"
    fact = next(e for e in await users.around.events() if e.HasField("terminal_changed"))
    assert fact.terminal_changed.terminal == terminal
    assert fact.terminal_changed.change == event_pb2.TerminalChanged.CHANGE_ENROLLED
    assert fact.actor == shop.vendor.name


async def test_enrolling_again_with_one_request_id_enrols_once(shop):
    request = shop.request()
    first, second = await asyncio.gather(
        *(shop.terminals.EnrollTerminal(request, metadata=shop.metadata) for _ in range(2))
    )

    assert first == second
    assert len((await shop.list()).terminals) == 1
    other = shop.request(request_id=request.request_id)
    refused = shop.terminals.EnrollTerminal(other, metadata=shop.metadata)
    assert await reason_of(refused) == "REQUEST_ID_REUSED"


async def test_who_may_not_enrol_is_told_why(users, shop):
    await users.approved("otherstore", vendor=True)
    metadata = await users.person("otherstore")
    request = shop.request()

    foreign = shop.terminals.EnrollTerminal(request, metadata=metadata)
    assert await reason_of(foreign) == "SITE_NOT_FOUND"
    nowhere = shop.request(site=f"{shop.vendor.name}/sites/{uuid4()}")
    refused = shop.terminals.EnrollTerminal(nowhere, metadata=shop.metadata)
    assert await reason_of(refused) == "SITE_NOT_FOUND"
    key = Ed25519PrivateKey.generate()
    await shop.enrol(key)
    again = shop.terminals.EnrollTerminal(shop.request(key), metadata=shop.metadata)
    assert await reason_of(again) == "TERMINAL_KEY_TAKEN"
    await users.register("newstore", vendor=True)
    pending = shop.terminals.EnrollTerminal(request, metadata=await users.person("newstore"))
    assert await reason_of(pending) == "USER_STATE_WRONG"


async def test_a_vendor_has_at_most_so_many_terminals(shop, monkeypatch):
    monkeypatch.setattr(rules, "ENROLLED_MAX", 2)
    first = await shop.enrol()
    await shop.enrol()

    refusal = await refusal_of(
        shop.terminals.EnrollTerminal(shop.request(), metadata=shop.metadata)
    )
    assert (refusal.reason, refusal.metadata) == ("TOO_MANY_TERMINALS", {"limit": "2"})
    await shop.revoke(first)
    await shop.enrol()


@pytest.mark.parametrize(
    "changes", [{"public_key": b"short"}, {"display_name": ""}, {"scope": "Ä"}]
)
async def test_fields_are_held_to_the_contract(shop, changes):
    refused = shop.terminals.EnrollTerminal(shop.request(**changes), metadata=shop.metadata)

    assert await reason_of(refused) == "FIELDS_INVALID"


async def test_terminals_are_listed_by_their_vendor_and_by_admins(users, shop):
    enrolled = [await shop.enrol() for _ in range(3)]
    revoked = await shop.revoke(enrolled[1])

    page = await shop.list(page_size=2)
    rest = await shop.list(page_size=2, page_token=page.next_page_token)
    assert [*page.terminals, *rest.terminals] == [enrolled[0], revoked, enrolled[2]]
    assert not rest.next_page_token
    assert len((await shop.list(await users.admin())).terminals) == 3
    await users.approved("otherstore", vendor=True)
    stranger = await users.person("otherstore")
    request = terminal_service_pb2.ListTerminalsRequest(parent=shop.vendor.name)
    refused = shop.terminals.ListTerminals(request, metadata=stranger)
    assert await reason_of(refused) == "USER_NOT_FOUND"


async def test_services_ask_for_terminals_by_name(users, shop):
    first, second = await shop.enrol(), await shop.enrol()
    unknown = f"{shop.vendor.name}/terminals/{uuid4()}"
    request = terminal_service_pb2.BatchGetTerminalsRequest(
        names=[first.name, second.name, unknown]
    )
    async with users.around.calling(users.port, "offline") as channel:
        found = await terminal_service_pb2_grpc.TerminalServiceStub(channel).BatchGetTerminals(
            request
        )
    assert {terminal.name for terminal in found.terminals} == {first.name, second.name}
    refused = shop.terminals.BatchGetTerminals(request, metadata=shop.metadata)
    assert await reason_of(refused) == "CALLER_NOT_ALLOWED"


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
    refused = users.get_user(shop.vendor.name, metadata)
    assert await reason_of(refused) == "CALLER_NOT_ALLOWED"
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

    refused = sign_in(users, an_assertion(users, terminal.name, key, **changes))
    assert await reason_of(refused) == "ASSERTION_INVALID"


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


async def test_nobody_revokes_anothers_terminal_but_an_admin_does(users, shop):
    terminal = await shop.enrol()
    await users.approved("otherstore", vendor=True)
    stranger = await users.person("otherstore")

    request = terminal_service_pb2.RevokeTerminalRequest(name=terminal.name, reason="lost")
    refused = shop.terminals.RevokeTerminal(request, metadata=stranger)
    assert await reason_of(refused) == "TERMINAL_NOT_FOUND"
    unknown = terminal_service_pb2.RevokeTerminalRequest(
        name=f"{shop.vendor.name}/terminals/{uuid4()}", reason="lost"
    )
    refused = shop.terminals.RevokeTerminal(unknown, metadata=shop.metadata)
    assert await reason_of(refused) == "TERMINAL_NOT_FOUND"
    assert (await shop.revoke(terminal, await users.admin())).state == REVOKED


async def test_a_suspended_vendors_terminals_are_out_until_it_is_reinstated(users, shop):
    key = Ed25519PrivateKey.generate()
    terminal = await shop.enrol(key)

    await users.suspend(shop.vendor)

    refused = sign_in(users, an_assertion(users, terminal.name, key))
    assert await reason_of(refused) == "USER_STATE_WRONG"


def test_a_terminals_token_falls_with_its_own_and_with_its_vendors_revocation():
    vendor, terminal = UUID(int=1), UUID(int=2)
    name = f"users/{vendor}/terminals/{terminal}"
    caller = Caller(name, frozenset({access_pb2.ROLE_TERMINAL}), "", 100)
    assert caller.is_terminal
    assert caller.user_id == vendor

    for subject in (name, f"users/{vendor}"):
        revocations = Revocations()
        revocations.check(caller)
        revocations.revoke(subject, 101)
        with pytest.raises(Refusal, match="revoked"):
            revocations.check(caller)
    revocations = Revocations()
    revocations.revoke(f"users/{vendor}/terminals/{UUID(int=3)}", 101)
    revocations.check(caller)
