"""Terminals, their assertions and their tokens, as rules: no server, no clock."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import UUID

from services.refusal import Refusal
from services.rpc.identity import Caller
from services.rpc.revocations import Revocations
from services.user import assertion as assertions
from services.user.domain import terminal as terminals
from services.user.domain.site import Site
from services.user.domain.terminal import (
    ASSERTION_LIFE_MAX,
    CLOCK_TOLERANCE,
    ENROLLED_MAX,
    State,
    Terminal,
)
from services.user.domain.user import Role, User
from services.user.domain.user import State as UserState
from services.user.messages import position
from tallystick.access.v1 import access_pb2
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import user_pb2

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
A_MOMENT = timedelta(microseconds=1)
VENDOR, TERMINAL = UUID(int=1), UUID(int=2)
NAME = f"users/{VENDOR}/terminals/{TERMINAL}"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
SITE_NAME = f"users/{VENDOR}/sites/{UUID(int=3)}"
spans = st.timedeltas(timedelta(minutes=-10), timedelta(minutes=10))


def reason_of(decide):
    try:
        decide()
    except Refusal as refusal:
        return refusal.reason
    return None


def base64url(plain):
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


def a_terminal():
    return Terminal(
        VENDOR, TERMINAL, "Counter", UUID(int=3), "main", PUBLIC_KEY, State.ENROLLED, NOW
    )


def a_vendor(state=UserState.ACTIVE):
    return User(VENDOR, "teashop", "Tea by the lake", Role.VENDOR, state, "", NOW, NOW, 1)


def a_site(*, is_open=True):
    where = position(position_pb2.Position(latitude=12.97, longitude=77.59, accuracy_meters=15))
    return Site(VENDOR, UUID(int=3), "Tea by the lake", where, is_open=is_open, create_time=NOW)


def enrolling(vendor=None, site=None, *, key_taken=False, enrolled=0):
    return reason_of(
        lambda: terminals.check_may_enrol(
            vendor or a_vendor(), site, SITE_NAME, key_taken=key_taken, enrolled=enrolled
        )
    )


def test_who_may_not_enrol_is_told_the_first_reason():
    worst = {"key_taken": True, "enrolled": ENROLLED_MAX}

    assert enrolling(a_vendor(UserState.SUSPENDED), None, **worst) == "USER_STATE_WRONG"
    assert enrolling(site=None, **worst) == "SITE_NOT_FOUND"
    assert enrolling(site=a_site(is_open=False), **worst) == "SITE_NOT_FOUND"
    assert enrolling(site=a_site(), **worst) == "TERMINAL_KEY_TAKEN"
    assert enrolling(site=a_site(), enrolled=ENROLLED_MAX) == "TOO_MANY_TERMINALS"
    assert enrolling(site=a_site(), enrolled=ENROLLED_MAX - 1) is None


@pytest.mark.parametrize("state", [state for state in UserState if state is not UserState.ACTIVE])
def test_only_an_active_vendor_sells(state):
    assert reason_of(lambda: terminals.check_vendor(a_vendor(state))) == "USER_STATE_WRONG"


def test_a_terminal_is_revoked_once():
    revoked = terminals.revoke(a_terminal(), "lost", now=NOW)

    assert (revoked.state, revoked.revoke_time, revoked.version) == (State.REVOKED, NOW, 2)
    assert terminals.revoke(revoked, "again", now=NOW + timedelta(days=1)) == revoked
    assert reason_of(lambda: terminals.check_may_sign_in(revoked)) == "TERMINAL_REVOKED"
    assert reason_of(lambda: terminals.check_may_sign_in(a_terminal())) is None


def timed(issued, expires):
    return reason_of(lambda: terminals.check_assertion_time(issued, expires, now=NOW))


@pytest.mark.parametrize(
    ("issued", "expires", "reason"),
    [
        (NOW, NOW + A_MOMENT, None),
        (NOW, NOW, "ASSERTION_INVALID"),
        (NOW, NOW - A_MOMENT, "ASSERTION_INVALID"),
        (NOW, NOW + ASSERTION_LIFE_MAX, None),
        (NOW, NOW + ASSERTION_LIFE_MAX + A_MOMENT, "ASSERTION_INVALID"),
        (NOW + CLOCK_TOLERANCE, NOW + 2 * CLOCK_TOLERANCE, None),
        (NOW + CLOCK_TOLERANCE + A_MOMENT, NOW + 2 * CLOCK_TOLERANCE, "ASSERTION_EXPIRED"),
        (NOW - 2 * CLOCK_TOLERANCE, NOW - CLOCK_TOLERANCE, None),
        (NOW - 2 * CLOCK_TOLERANCE, NOW - CLOCK_TOLERANCE - A_MOMENT, "ASSERTION_EXPIRED"),
    ],
)
def test_an_assertion_counts_up_to_its_edges(issued, expires, reason):
    assert timed(issued, expires) == reason


@given(issued=spans, life=spans)
def test_an_assertion_that_counts_was_made_just_now_and_is_short(issued, life):
    reason = timed(NOW + issued, NOW + issued + life)

    if reason is None:
        assert timedelta() < life <= ASSERTION_LIFE_MAX
        assert -ASSERTION_LIFE_MAX - CLOCK_TOLERANCE <= issued <= CLOCK_TOLERANCE
    elif reason == "ASSERTION_EXPIRED":
        assert abs(issued) > CLOCK_TOLERANCE
    else:
        assert reason == "ASSERTION_INVALID"


def claims(**changes):
    issued = int(NOW.timestamp())
    return {
        "iss": NAME,
        "sub": NAME,
        "aud": "tallystick",
        "iat": issued,
        "exp": issued + 60,
        "jti": str(UUID(int=9)),
        **changes,
    }


def test_an_assertion_says_what_was_signed():
    token = jwt.encode(claims(), KEY, "EdDSA")

    found = assertions.verify(token, PUBLIC_KEY)

    assert assertions.claimed_by(token) == (VENDOR, TERMINAL)
    assert (found.vendor_id, found.terminal_id, found.assertion_id) == (
        VENDOR,
        TERMINAL,
        UUID(int=9),
    )
    assert (found.issue_time, found.expire_time) == (NOW, NOW + timedelta(minutes=1))


@given(st.data())
def test_an_assertion_changed_anywhere_is_refused(data):
    token = jwt.encode(claims(), KEY, "EdDSA")
    # The last symbol of a signature carries four bits that nobody reads.
    place = data.draw(st.integers(0, len(token) - 2))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    symbol = data.draw(st.sampled_from(alphabet.replace(token[place], "")))
    changed = token[:place] + symbol + token[place + 1 :]

    assert reason_of(lambda: assertions.verify(changed, PUBLIC_KEY)) == "ASSERTION_INVALID"


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(claim=st.sampled_from(["iss", "sub", "aud", "iat", "exp", "jti", "nbf"]), value=odd_values)
def test_whatever_a_claim_holds_it_is_read_or_refused(claim, value):
    # By hand: the library would not sign all of it.
    parts = [json.dumps({"alg": "EdDSA"}), json.dumps(claims(**{claim: value}))]
    signed = ".".join(base64url(part.encode()) for part in parts)
    odd = f"{signed}.{base64url(KEY.sign(signed.encode()))}"

    assert reason_of(lambda: assertions.claimed_by(odd)) in {None, "ASSERTION_INVALID"}
    assert reason_of(lambda: assertions.verify(odd, PUBLIC_KEY)) in {None, "ASSERTION_INVALID"}


@given(st.text(max_size=200))
def test_any_text_is_refused_as_an_assertion(text):
    assert reason_of(lambda: assertions.claimed_by(text)) == "ASSERTION_INVALID"
    assert reason_of(lambda: assertions.verify(text, PUBLIC_KEY)) == "ASSERTION_INVALID"


def test_a_tokens_subject_is_the_terminal_and_its_role_nothing_else():
    found, expire_time = terminals.access_claims(a_terminal(), UUID(int=5), now=NOW)

    assert (found["sub"], found["roles"]) == (NAME, ["TERMINAL"])
    assert "sid" not in found
    assert expire_time - NOW == timedelta(minutes=15)
    assert f"ROLE_{terminals.ROLE}" in access_pb2.Role.keys()  # noqa: SIM118 - an enum, not a dict


def test_states_are_numbered_as_in_the_contract():
    contract = user_pb2.Terminal.State.keys()

    assert {f"STATE_{state.value}" for state in State} == set(contract) - {"STATE_UNSPECIFIED"}


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
