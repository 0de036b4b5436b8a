"""How an account comes to another tier, and who learns of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import UUID, uuid4

from services.refusal import Refusal
from services.user import store
from services.user.domain import user as users_domain
from services.user.domain.user import Role, State, Tier
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2, user_service_pb2, user_service_pb2_grpc
from tests.user_service import reason_of, refusal_of, serving_users

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADMIN = UUID(int=1)
SOMEBODY = UUID(int=2)
BASIC, STANDARD, PLUS = (
    user_pb2.User.TIER_BASIC,
    user_pb2.User.TIER_STANDARD,
    user_pb2.User.TIER_PLUS,
)


def an_account(state=State.ACTIVE, role=Role.USER):
    if role is Role.ADMIN:
        return users_domain.create_admin(SOMEBODY, "asha", "Asha", now=NOW)
    user = users_domain.register(
        SOMEBODY, "asha", "Asha", role, has_site=role is Role.VENDOR, now=NOW
    )
    if state is State.REJECTED:
        return users_domain.reject(user, "no", now=NOW)
    if state is not State.PENDING_APPROVAL:
        user = users_domain.approve(user, "papers", now=NOW)
    if state is State.SUSPENDED:
        user = users_domain.suspend(user, "why", by=ADMIN, now=NOW)
    return user


def change(user, tier, *, version=None, now=NOW):
    return users_domain.change_tier(
        user, tier, "said so", version=user.version if version is None else version, now=now
    )


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("role", [Role.USER, Role.VENDOR])
def test_an_account_starts_on_the_lowest_tier_and_is_moved_when_it_may_or_might_pay(state, role):
    user = an_account(state, role)
    assert user.tier is Tier.BASIC
    if state in (State.ACTIVE, State.SUSPENDED):
        moved = change(user, Tier.PLUS, now=NOW + timedelta(hours=1))
        assert (moved.tier, moved.tier_reason, moved.version) == (
            Tier.PLUS,
            "said so",
            user.version + 1,
        )
        assert moved.update_time == NOW + timedelta(hours=1)
        assert (moved.state, moved.state_reason) == (user.state, user.state_reason)
        return
    with pytest.raises(Refusal) as refused:
        change(user, Tier.PLUS)
    assert refused.value.reason == "USER_STATE_WRONG"
    assert refused.value.metadata == {"state": state.value, "needed": "ACTIVE or SUSPENDED"}


def test_refusals_come_in_the_order_of_the_contract():
    admin = an_account(role=Role.ADMIN)
    for user, reason in (
        (admin, "TIER_NOT_APPLICABLE"),
        (an_account(State.PENDING_APPROVAL), "USER_STATE_WRONG"),
        (an_account(), "USER_CHANGED"),
    ):
        with pytest.raises(Refusal) as refused:
            change(user, Tier.STANDARD, version=user.version + 1)
        assert refused.value.reason == reason
    # An admin's account that already is on the tier is refused all the same.
    with pytest.raises(Refusal) as refused:
        change(admin, Tier.BASIC)
    assert refused.value.metadata == {"role": "ADMIN"}


@given(st.lists(st.sampled_from(Tier), max_size=8))
def test_whatever_tiers_are_asked_for_the_last_one_counts_and_only_changes_are_versions(wanted):
    user = an_account()
    for tier in wanted:
        before, user = user, change(user, tier)
        assert user.version == before.version + (tier is not before.tier)
        # What was just done, and asked for again because the answer was lost, changes nothing.
        assert change(user, tier, version=before.version) == user
    assert user.tier is (wanted[-1] if wanted else Tier.BASIC)


@pytest.fixture
async def users(tls_for, valkey_url, database_url, tmp_path):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as replica:
        yield replica


async def put(users, user, tier, *, reason="passport seen", metadata=None):
    request = user_service_pb2.ChangeTierRequest(
        name=user.name, tier=tier, reason=reason, version=user.version
    )
    answer = await users.users.ChangeTier(request, metadata=metadata or await users.admin())
    return answer.user


async def test_a_changed_tier_is_on_record_and_told_with_its_actor_and_reason(users):
    user = await users.approved("asha")
    assert (user.tier, user.tier_reason) == (BASIC, "")

    raised = await put(users, user, PLUS)

    assert (raised.tier, raised.tier_reason) == (PLUS, "passport seen")
    assert (raised.version, raised.state_reason) == (user.version + 1, user.state_reason)
    assert (await users.get_user(user.name, await users.person("asha"))).user == raised
    event = (await users.around.events())[-1]
    admin = await users.sign_in(users.around.admin.username, users.around.admin.password)
    assert event.user_changed.change == event_pb2.UserChanged.CHANGE_TIER
    assert event.user_changed.user == raised
    assert (event.actor, event.subject) == (admin.user, user.name)


async def test_a_repeated_change_succeeds_and_records_nothing(users):
    user = await users.approved("asha")
    raised = await put(users, user, STANDARD)
    before = len(await users.around.events())

    # As it was sent the first time, with the version of before it.
    assert await put(users, user, STANDARD) == raised

    assert len(await users.around.events()) == before


async def test_a_repeated_change_does_not_undo_what_another_admin_did_since(users):
    user = await users.approved("asha")
    raised = await put(users, user, PLUS)
    lowered = await put(users, raised, BASIC, reason="the passport was forged")

    refusal = await refusal_of(put(users, user, PLUS))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refusal.domain, refusal.reason) == ("user.tallystick", "USER_CHANGED")
    assert refusal.metadata == {"version": str(lowered.version)}
    assert (await users.get_user(user.name, await users.admin())).user == lowered


async def test_of_two_admins_at_once_one_decides_and_the_other_is_told(users):
    user = await users.approved("asha")

    outcomes = await asyncio.gather(
        put(users, user, STANDARD), put(users, user, PLUS), return_exceptions=True
    )

    (won,) = [each for each in outcomes if isinstance(each, user_pb2.User)]
    assert sum(isinstance(each, grpc.aio.AioRpcError) for each in outcomes) == 1
    assert (await users.get_user(user.name, await users.admin())).user == won


async def test_every_refusal_says_what_stands_in_the_way(users):
    nobody = user_pb2.User(name=f"users/{uuid4()}", version=1)
    refusal = await refusal_of(put(users, nobody, PLUS))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert (refusal.reason, refusal.metadata) == ("USER_NOT_FOUND", {"name": nobody.name})

    session = await users.sign_in(users.around.admin.username, users.around.admin.password)
    admin = (await users.get_user(session.user, await users.admin())).user
    assert admin.tier == BASIC
    refusal = await refusal_of(put(users, admin, PLUS))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refusal.reason, refusal.metadata) == ("TIER_NOT_APPLICABLE", {"role": "ADMIN"})

    pending = await users.register("pending")
    refusal = await refusal_of(put(users, pending, PLUS))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refusal.reason, refusal.metadata["state"]) == ("USER_STATE_WRONG", "PENDING_APPROVAL")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": 0},
        {"tier": 9},
        {"reason": ""},
        {"reason": "x" * 501},
        {"version": 0},
        {"name": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_request_that_breaks_the_contract_changes_nothing(users, wrong):
    user = await users.approved("asha")
    said = {"name": user.name, "tier": PLUS, "reason": "x", "version": user.version}
    request = user_service_pb2.ChangeTierRequest(**{**said, **wrong})

    call = users.users.ChangeTier(request, metadata=await users.admin())

    assert await reason_of(call) == "FIELDS_INVALID"
    assert (await users.get_user(user.name, await users.admin())).user == user


async def test_a_suspended_account_can_be_lowered_before_it_is_reinstated(users):
    raised = await put(users, await users.approved("asha"), PLUS)
    suspended = await users.suspend(raised)
    assert suspended.tier == PLUS

    lowered = await put(users, suspended, BASIC, reason="papers expired")

    assert (lowered.tier, lowered.state) == (BASIC, user_pb2.User.STATE_SUSPENDED)


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_nobody_raises_their_own_tier(users):
    for username, vendor in (("asha", False), ("shop", True)):
        user = await users.approved(username, vendor=vendor)
        call = put(users, user, PLUS, metadata=await users.person(username))

        assert await reason_of(call) == "CALLER_NOT_ALLOWED"


async def test_accounts_are_listed_by_tier_for_admins_and_for_the_fraud_service(users):
    asha, other = await users.approved("asha"), await users.approved("other")
    shop = await users.approved("shop", vendor=True)
    raised = [await put(users, user, PLUS) for user in (asha, shop)]
    await put(users, other, STANDARD)
    request = user_service_pb2.ListUsersRequest(tier=PLUS, page_size=1)

    seen = []
    async with users.around.calling(users.port, "fraud") as calls:
        stub = user_service_pb2_grpc.UserServiceStub(calls)
        while True:
            page = await stub.ListUsers(request)
            seen += page.users
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
    answer = await users.users.ListUsers(
        user_service_pb2.ListUsersRequest(tier=STANDARD), metadata=await users.admin()
    )

    assert seen == raised[::-1]
    assert [user.username for user in answer.users] == ["other"]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_page_token_of_one_tier_is_none_of_another(users):
    for name in ("one", "two"):
        await put(users, await users.approved(name), PLUS)
    request = user_service_pb2.ListUsersRequest(tier=PLUS, page_size=1)
    page = await users.users.ListUsers(request, metadata=await users.admin())
    other = user_service_pb2.ListUsersRequest(tier=STANDARD, page_token=page.next_page_token)

    call = users.users.ListUsers(other, metadata=await users.admin())

    assert await reason_of(call) == "PAGE_TOKEN_INVALID"


async def test_an_account_of_a_replica_that_knows_no_tiers_is_on_the_lowest(users):
    user = await users.approved("asha")
    table = store.tables.users
    columns = [each for each in table.columns if not each.name.startswith("tier")]
    async with users.around.database() as connection:
        row = (
            await connection.execute(sa.select(*columns).where(table.c.username == "asha"))
        ).one()
        await connection.execute(sa.delete(table).where(table.c.username == "asha"))
        old = sa.table("users", *(sa.column(each.name, each.type) for each in columns))
        await connection.execute(sa.insert(old), dict(row._mapping))

    assert (await users.get_user(user.name, await users.admin())).user == user
