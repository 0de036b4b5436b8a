"""Where an account may stand and what moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from uuid_utils import UUID

from services.refusal import Refusal
from services.user.domain import site as sites
from services.user.domain import user as users
from services.user.domain.site import Position, Site
from services.user.domain.user import Role, State

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADMIN = UUID(int=1)
SOMEBODY = UUID(int=2)


def a_payer(state=State.PENDING_APPROVAL):
    user = users.register(SOMEBODY, "asha", "Asha", Role.USER, has_site=False, now=NOW)
    if state is State.REJECTED:
        return users.reject(user, "no", now=NOW)
    if state is not State.PENDING_APPROVAL:
        user = users.approve(user, "", now=NOW)
    if state is State.SUSPENDED:
        user = users.suspend(user, "why", by=ADMIN, now=NOW)
    return user


VERBS = {
    "approve": lambda user, now: users.approve(user, "said so", now=now),
    "reject": lambda user, now: users.reject(user, "said so", now=now),
    "suspend": lambda user, now: users.suspend(user, "said so", by=ADMIN, now=now),
    "reinstate": lambda user, now: users.reinstate(user, "said so", now=now),
}
MOVES = {
    ("approve", State.PENDING_APPROVAL): State.ACTIVE,
    ("approve", State.ACTIVE): State.ACTIVE,
    ("reject", State.PENDING_APPROVAL): State.REJECTED,
    ("suspend", State.ACTIVE): State.SUSPENDED,
    ("reinstate", State.SUSPENDED): State.ACTIVE,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_moves_from_its_own_state_and_from_no_other(verb, state):
    user = a_payer(state)
    if (verb, state) in MOVES:
        assert VERBS[verb](user, NOW).state is MOVES[verb, state]
        return
    with pytest.raises(Refusal) as refused:
        VERBS[verb](user, NOW)
    assert refused.value.reason == "USER_STATE_WRONG"
    assert refused.value.metadata["state"] == state.value


def test_approving_an_active_account_changes_nothing():
    user = a_payer(State.ACTIVE)

    assert users.approve(user, "again", now=NOW + timedelta(hours=1)) == user


def test_an_admin_cannot_suspend_themself_whatever_their_state():
    with pytest.raises(Refusal) as refused:
        users.suspend(a_payer(State.REJECTED), "bye", by=SOMEBODY, now=NOW)

    assert refused.value.reason == "SELF_SUSPENSION"


@pytest.mark.parametrize(("role", "has_site"), [(Role.VENDOR, False), (Role.USER, True)])
def test_a_vendor_registers_with_a_site_and_a_payer_without(role, has_site):
    with pytest.raises(Refusal) as refused:
        users.register(SOMEBODY, "asha", "Asha", role, has_site=has_site, now=NOW)

    assert refused.value.reason == "SITE_REQUIRED"
    assert refused.value.metadata == {"role": role.value}


@pytest.mark.parametrize("state", [State.PENDING_APPROVAL, State.ACTIVE])
def test_pending_and_active_people_may_sign_in(state):
    users.check_may_sign_in(a_payer(state))


@pytest.mark.parametrize(
    ("state", "reason"),
    [(State.SUSPENDED, "USER_SUSPENDED"), (State.REJECTED, "USER_REJECTED")],
)
def test_suspended_and_rejected_people_may_not(state, reason):
    with pytest.raises(Refusal) as refused:
        users.check_may_sign_in(a_payer(state))

    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Asha", "asha"),
        ("+919876543210", "+919876543210"),
        ("a.b_c@d-e+f", "a.b_c@d-e+f"),
        ("ab", None),
        ("admin ", None),
        ("ádmin", None),
        ("a" * 65, None),
        (".dot", None),
        ("admin\n", None),
    ],
)
def test_usernames_have_one_spelling(typed, stored):
    assert users.fold_username(typed) == stored


def a_site(number, *, is_open=True):
    return Site(SOMEBODY, UUID(int=number), "Shop", Position(0, 0, 0, mocked=False), is_open, NOW)


def test_a_vendor_opens_sites_up_to_the_limit_and_again_after_closing_one():
    vendor = a_payer(State.ACTIVE)
    full = [a_site(number) for number in range(sites.OPEN_SITES_MAX)]
    sites.check_may_open(vendor, full[1:])
    sites.check_may_open(vendor, [sites.close(full[0]), *full[1:]])

    with pytest.raises(Refusal) as refused:
        sites.check_may_open(vendor, full)

    assert refused.value.reason == "TOO_MANY_SITES"
    assert refused.value.metadata == {"limit": str(sites.OPEN_SITES_MAX)}


def test_closed_sites_stay_on_record_and_that_record_is_bounded():
    closed = [a_site(number, is_open=False) for number in range(sites.SITES_MAX)]
    sites.check_may_open(a_payer(State.ACTIVE), closed[1:])

    with pytest.raises(Refusal) as refused:
        sites.check_may_open(a_payer(State.ACTIVE), closed)

    assert refused.value.metadata == {"limit": str(sites.SITES_MAX)}


class Account(RuleBasedStateMachine):
    """Any verbs in any order."""

    def __init__(self):
        super().__init__()
        self.user = a_payer()
        self.now = NOW
        self.was_rejected = False

    @rule(verb=st.sampled_from(sorted(VERBS)), seconds=st.integers(0, 10**6))
    def apply(self, verb, seconds):
        self.now += timedelta(seconds=seconds)
        before = self.user
        try:
            self.user = VERBS[verb](before, self.now)
        except Refusal:
            assert (verb, before.state) not in MOVES
            return
        assert self.user.state is MOVES[verb, before.state]
        changed = self.user != before
        assert self.user.version == before.version + changed
        if changed:
            assert self.user.update_time == self.now
            assert self.user.state_reason == "said so"

    @invariant()
    def what_an_account_is_never_changes(self):
        assert (self.user.user_id, self.user.username, self.user.role) == (
            SOMEBODY,
            "asha",
            Role.USER,
        )
        assert self.user.create_time == NOW

    @invariant()
    def a_rejection_is_final(self):
        assert not self.was_rejected or self.user.state is State.REJECTED
        self.was_rejected = self.user.state is State.REJECTED


TestAccount = Account.TestCase
