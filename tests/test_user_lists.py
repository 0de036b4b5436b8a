"""Who may look at which accounts."""

from __future__ import annotations

import pytest
from uuid_utils import uuid4

from tallystick.access.v1 import access_pb2
from tallystick.user.v1 import user_pb2, user_service_pb2
from tests.user_service import reason_of, refusal_of, serving_users


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


async def usernames(users, **query):
    request = user_service_pb2.ListUsersRequest(**query)
    pages = []
    while True:
        answer = await users.users.ListUsers(request, metadata=await users.admin())
        pages.append([user.username for user in answer.users])
        if not answer.next_page_token:
            return pages
        request.page_token = answer.next_page_token


async def test_people_see_their_own_account_and_nobody_elses(users):
    asha, other = await users.approved("asha"), await users.approved("other")
    metadata = await users.person("asha")

    assert (await users.get_user(asha.name, metadata)).user == asha
    refusal = await refusal_of(users.get_user(other.name, metadata))
    nobody = f"users/{uuid4()}"
    missing = await refusal_of(users.get_user(nobody, metadata))

    assert (refusal.reason, refusal.metadata) == ("USER_NOT_FOUND", {"name": other.name})
    assert (missing.reason, missing.metadata) == ("USER_NOT_FOUND", {"name": nobody})


async def test_admins_see_every_account(users):
    asha = await users.register("asha")

    assert (await users.get_user(asha.name, await users.admin())).user == asha
    call = users.get_user(f"users/{uuid4()}", await users.admin())
    assert await reason_of(call) == "USER_NOT_FOUND"


async def test_accounts_are_listed_newest_first_a_page_at_a_time(users):
    for name in ("first", "second", "third", "fourth"):
        await users.register(name)

    assert await usernames(users, page_size=2) == [
        ["fourth", "third"],
        ["second", "first"],
        ["admin"],
    ]
    assert await usernames(users) == [["fourth", "third", "second", "first", "admin"]]


async def test_accounts_are_listed_by_state_and_role(users):
    await users.register("payer")
    await users.register("shop", vendor=True)
    await users.approved("active-shop", vendor=True)

    assert await usernames(users, state=user_pb2.User.STATE_PENDING_APPROVAL) == [["shop", "payer"]]
    assert await usernames(users, role=access_pb2.ROLE_VENDOR) == [["active-shop", "shop"]]
    assert await usernames(
        users, role=access_pb2.ROLE_VENDOR, state=user_pb2.User.STATE_ACTIVE
    ) == [["active-shop"]]
    assert await usernames(users, role=access_pb2.ROLE_TERMINAL) == [[]]


@pytest.mark.parametrize("token", ["nonsense!", "bm9uc2Vuc2U=", "AAAA"])
async def test_a_made_up_page_token_is_refused(users, token):
    call = users.users.ListUsers(
        user_service_pb2.ListUsersRequest(page_token=token), metadata=await users.admin()
    )

    assert await reason_of(call) == "PAGE_TOKEN_INVALID"


async def test_a_page_token_is_good_for_the_same_query_only(users):
    await users.register("asha")
    metadata = await users.admin()
    first = await users.users.ListUsers(
        user_service_pb2.ListUsersRequest(page_size=1), metadata=metadata
    )
    other = user_service_pb2.ListUsersRequest(
        page_token=first.next_page_token, role=access_pb2.ROLE_USER
    )

    assert await reason_of(users.users.ListUsers(other, metadata=metadata)) == "PAGE_TOKEN_INVALID"


async def test_only_admins_list_accounts(users):
    await users.approved("asha")

    call = users.users.ListUsers(
        user_service_pb2.ListUsersRequest(), metadata=await users.person("asha")
    )

    assert await reason_of(call) == "CALLER_NOT_ALLOWED"
