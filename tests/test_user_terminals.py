"""Terminals: enrolled, listed and revoked by their vendor."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import uuid4

from services.user.domain import terminal as rules
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import (
    terminal_service_pb2,
    terminal_service_pb2_grpc,
)
from tests.shop import ENROLLED, REVOKED, open_shop
from tests.user_service import reason_of, refusal_of, refused, serving_users


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


@pytest.fixture
async def shop(users):
    return await open_shop(users)


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
    refusal_call = shop.terminals.EnrollTerminal(other, metadata=shop.metadata)
    assert await reason_of(refusal_call) == "REQUEST_ID_REUSED"


async def test_who_may_not_enrol_is_told_why(users, shop):
    await users.approved("otherstore", vendor=True)
    metadata = await users.person("otherstore")
    request = shop.request()

    foreign = shop.terminals.EnrollTerminal(request, metadata=metadata)
    assert await reason_of(foreign) == "SITE_NOT_FOUND"
    nowhere = shop.request(site=f"{shop.vendor.name}/sites/{uuid4()}")
    refusal_call = shop.terminals.EnrollTerminal(nowhere, metadata=shop.metadata)
    assert await reason_of(refusal_call) == "SITE_NOT_FOUND"
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
    "changes",
    [
        {"public_key": b"short"},
        {"public_key": (1).to_bytes(32, "little")},
        {"display_name": ""},
        {"scope": "Ä"},
    ],
)
async def test_fields_are_held_to_the_contract(shop, changes):
    refusal_call = shop.terminals.EnrollTerminal(shop.request(**changes), metadata=shop.metadata)

    assert await reason_of(refusal_call) == "FIELDS_INVALID"


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
    refusal_call = shop.terminals.ListTerminals(request, metadata=stranger)
    assert await reason_of(refusal_call) == "USER_NOT_FOUND"


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
    refusal_call = shop.terminals.BatchGetTerminals(request, metadata=shop.metadata)
    assert await reason_of(refusal_call) == "CALLER_NOT_ALLOWED"


async def test_nobody_revokes_anothers_terminal_but_an_admin_does(users, shop):
    terminal = await shop.enrol()
    await users.approved("otherstore", vendor=True)
    stranger = await users.person("otherstore")

    request = terminal_service_pb2.RevokeTerminalRequest(name=terminal.name, reason="lost")
    refusal_call = shop.terminals.RevokeTerminal(request, metadata=stranger)
    assert await reason_of(refusal_call) == "TERMINAL_NOT_FOUND"
    unknown = terminal_service_pb2.RevokeTerminalRequest(
        name=f"{shop.vendor.name}/terminals/{uuid4()}", reason="lost"
    )
    refusal_call = shop.terminals.RevokeTerminal(unknown, metadata=shop.metadata)
    assert await reason_of(refusal_call) == "TERMINAL_NOT_FOUND"
    assert (await shop.revoke(terminal, await users.admin())).state == REVOKED


async def test_of_two_vendors_who_enrol_one_key_at_once_one_has_it(users, shop):
    other = await users.approved("otherstore", vendor=True)
    metadata = await users.person("otherstore")
    (site,) = (await users.get_user(other.name, metadata)).sites
    key = Ed25519PrivateKey.generate()
    async with users.around.running() as second:
        answers = await asyncio.gather(
            shop.terminals.EnrollTerminal(shop.request(key), metadata=shop.metadata),
            second.terminals.EnrollTerminal(shop.request(key, site=site.name), metadata=metadata),
            return_exceptions=True,
        )

    (lost,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert refused(lost).reason == "TERMINAL_KEY_TAKEN"


async def test_enrolments_at_once_do_not_pass_the_limit(users, shop, monkeypatch):
    monkeypatch.setattr(rules, "ENROLLED_MAX", 2)
    async with users.around.running() as second:
        answers = await asyncio.gather(
            *(
                replica.terminals.EnrollTerminal(shop.request(), metadata=shop.metadata)
                for replica in (users, second, users, second)
            ),
            return_exceptions=True,
        )

    lost = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [refused(error).reason for error in lost] == ["TOO_MANY_TERMINALS"] * 2
    assert len((await shop.list()).terminals) == 2
