"""Registration, and operators made by operators."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import uuid4

from services.user.store import tables
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2, user_service_pb2
from tests.user_service import (
    OTHER_PASSWORD,
    PASSWORD,
    a_registration,
    a_site,
    reason_of,
    refusal_of,
    serving_users,
)


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


def a_new_admin(**changes):
    request = user_service_pb2.CreateAdminRequest(
        request_id=str(uuid4()), username="meera", password=PASSWORD, display_name="Meera"
    )
    for field, value in changes.items():
        setattr(request, field, value)
    return request


async def test_a_payer_waits_for_approval(users):
    answer = await users.users.RegisterUser(a_registration("Asha"))

    user = answer.user
    assert (user.username, user.display_name) == ("asha", "Asha")
    assert user.role == access_pb2.ROLE_USER
    assert user.state == user_pb2.User.STATE_PENDING_APPROVAL
    assert user.version == 1
    assert not answer.HasField("site")
    found = await users.get_user(user.name, await users.person("asha"))
    assert found.user == user


async def test_a_vendor_registers_with_a_first_site(users):
    answer = await users.users.RegisterUser(a_registration("teashop", vendor=True))

    assert answer.user.role == access_pb2.ROLE_VENDOR
    assert answer.site.name.startswith(f"{answer.user.name}/sites/")
    assert answer.site.open
    assert answer.site.position == a_site().position
    found = await users.get_user(answer.user.name, await users.person("teashop"))
    assert list(found.sites) == [answer.site]


async def test_a_registration_is_recorded_with_the_account_and_its_sites(users):
    answer = await users.users.RegisterUser(a_registration("teashop", vendor=True))

    event = (await users.around.events())[-1]
    assert event.source == "user"
    assert event.subject == event.actor == answer.user.name
    assert event.user_changed.change == event_pb2.UserChanged.CHANGE_REGISTERED
    assert event.user_changed.user == answer.user
    assert list(event.user_changed.sites) == [answer.site]


async def test_a_common_password_is_refused(users):
    refusal = await refusal_of(
        users.users.RegisterUser(a_registration(password="Password2024!!", vendor=True))
    )

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.domain, refusal.reason) == ("user.tallystick", "PASSWORD_TOO_COMMON")


async def test_a_vendor_without_a_site_is_refused(users):
    request = a_registration(vendor=True)
    request.ClearField("site")

    refusal = await refusal_of(users.users.RegisterUser(request))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.reason, refusal.metadata) == ("SITE_REQUIRED", {"role": "VENDOR"})


async def test_a_username_is_taken_in_any_letter_case(users):
    await users.register("asha")

    refusal = await refusal_of(users.users.RegisterUser(a_registration("ASHA")))

    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert (refusal.reason, refusal.metadata) == ("USERNAME_TAKEN", {"username": "asha"})


async def test_refusals_come_in_the_order_of_the_contract(users):
    first = a_registration("asha")
    await users.users.RegisterUser(first)
    wrong = a_registration("asha", vendor=True, password="password1234")
    wrong.ClearField("site")

    wrong.request_id = first.request_id
    assert await reason_of(users.users.RegisterUser(wrong)) == "REQUEST_ID_REUSED"
    wrong.request_id = str(uuid4())
    assert await reason_of(users.users.RegisterUser(wrong)) == "PASSWORD_TOO_COMMON"
    wrong.password = PASSWORD
    assert await reason_of(users.users.RegisterUser(wrong)) == "SITE_REQUIRED"
    wrong.site.CopyFrom(a_site())
    assert await reason_of(users.users.RegisterUser(wrong)) == "USERNAME_TAKEN"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "once"),
        ("username", "a b c"),
        ("username", "no"),
        ("password", "short"),
        ("display_name", ""),
        ("role", access_pb2.ROLE_ADMIN),
    ],
)
async def test_a_field_that_breaks_the_contract_is_named(users, field, value):
    refusal = await refusal_of(users.users.RegisterUser(a_registration(**{field: value})))

    assert (refusal.reason, refusal.metadata) == ("FIELDS_INVALID", {"field": field})
    assert len(await users.around.rows(tables.users)) == 1  # the first admin


async def test_a_repeated_request_gets_the_first_answer(users):
    request = a_registration("teashop", vendor=True)
    first = await users.users.RegisterUser(request)
    await users.approve(first.user)

    assert await users.users.RegisterUser(request) == first
    assert len(await users.around.rows(tables.users)) == 2


async def test_a_repeated_request_gets_its_answer_after_the_password_was_changed(users):
    request = a_registration("asha")
    first = await users.users.RegisterUser(request)
    await users.change_password(await users.person("asha"))

    assert await users.users.RegisterUser(request) == first


@pytest.mark.parametrize(
    ("field", "value"), [("display_name", "Usha"), ("password", OTHER_PASSWORD)]
)
async def test_a_request_id_with_another_body_is_refused(users, field, value):
    request = a_registration("asha")
    await users.users.RegisterUser(request)
    setattr(request, field, value)

    refusal = await refusal_of(users.users.RegisterUser(request))

    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert refusal.metadata == {"requestId": request.request_id}


async def test_the_same_request_sent_several_times_at_once_registers_once(users):
    request = a_registration("teashop", vendor=True)

    answers = await asyncio.gather(*(users.users.RegisterUser(request) for _ in range(4)))

    assert all(answer == answers[0] for answer in answers)
    assert len(await users.around.rows(tables.users)) == 2
    assert len(await users.around.rows(tables.sites)) == 1


async def test_of_several_people_who_take_a_username_at_once_one_gets_it(users):
    requests = [a_registration(name) for name in ("asha", "Asha", "ASHA", "aSHA")]

    outcomes = await asyncio.gather(
        *(users.users.RegisterUser(request) for request in requests), return_exceptions=True
    )

    lost = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [error.code() for error in lost] == [grpc.StatusCode.ALREADY_EXISTS] * 3
    assert len(await users.around.rows(tables.users)) == 2


async def test_no_password_is_on_record(users):
    await users.register("asha")

    everything = [
        str(row)
        for table in tables.metadata.sorted_tables
        for row in await users.around.rows(table)
    ]
    assert not any(PASSWORD in row for row in everything)


async def test_an_operator_makes_another_one_active_at_once(users):
    request = a_new_admin()
    metadata = await users.admin()

    answer = await users.users.CreateAdmin(request, metadata=metadata)

    assert answer.user.role == access_pb2.ROLE_ADMIN
    assert answer.user.state == user_pb2.User.STATE_ACTIVE
    assert await users.users.CreateAdmin(request, metadata=metadata) == answer
    event = (await users.around.events())[-1]
    assert event.user_changed.user == answer.user
    assert event.actor != answer.user.name
    found = await users.get_user(answer.user.name, await users.person("meera"))
    assert found.user == answer.user


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"password": "Password2024!!"}, "PASSWORD_TOO_COMMON"),
        ({"username": "Admin"}, "USERNAME_TAKEN"),
    ],
)
async def test_an_operator_cannot_be_made_like_that(users, changes, reason):
    call = users.users.CreateAdmin(a_new_admin(**changes), metadata=await users.admin())

    assert await reason_of(call) == reason


async def test_an_operators_request_ids_are_their_own(users):
    request = a_new_admin()
    await users.users.CreateAdmin(request, metadata=await users.admin())
    changed = a_new_admin(request_id=request.request_id, display_name="Mira")

    refusal = await reason_of(users.users.CreateAdmin(changed, metadata=await users.admin()))
    other = await users.users.CreateAdmin(
        a_new_admin(request_id=request.request_id, username="mira"),
        metadata=await users.person("meera"),
    )

    assert refusal == "REQUEST_ID_REUSED"
    assert other.user.username == "mira"


async def test_only_operators_make_operators(users):
    await users.approved("asha")

    call = users.users.CreateAdmin(a_new_admin(), metadata=await users.person("asha"))

    assert await reason_of(call) == "CALLER_NOT_ALLOWED"
    assert await reason_of(users.users.CreateAdmin(a_new_admin())) == "UNAUTHENTICATED"
