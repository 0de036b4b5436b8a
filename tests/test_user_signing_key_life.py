"""The life of signing keys: what gateways know is always enough to verify what is signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.user.domain import signing_key as rules
from services.user.domain.session import ACCESS_TOKEN_LIFE
from services.user.domain.signing_key import SigningKey, State

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PUBLISH = timedelta(seconds=10)


def a_key(number, *, created, signs):
    return SigningKey(f"kid-{number}", number, "{}", b"", created, signs)


def keys_after(gaps):
    """The keys of rotations asked for with these gaps between them, the first at `NOW`."""
    keys, now = [], NOW
    for gap in (0, *gaps):
        now += timedelta(seconds=gap)
        if rules.waiting(keys, now=now) is None:
            signs = rules.next_sign_time(keys, publish=PUBLISH, now=now)
            keys.append(a_key(len(keys) + 1, created=now, signs=signs))
    return keys


def test_the_first_key_signs_at_once():
    (key,) = keys_after([])

    assert rules.state(key, [key], now=NOW) is State.SIGNING


def test_a_new_key_is_published_then_signs_and_the_old_one_retires():
    old, new = keys = keys_after([100])

    waits = new.create_time + PUBLISH - timedelta(microseconds=1)
    assert [rules.state(key, keys, now=waits) for key in keys] == [State.SIGNING, State.PUBLISHED]
    assert rules.waiting(keys, now=waits) == new
    signs = new.create_time + PUBLISH
    assert [rules.state(key, keys, now=signs) for key in keys] == [State.RETIRED, State.SIGNING]
    assert rules.waiting(keys, now=signs) is None
    assert rules.signing(keys, now=waits) == old


def test_asking_again_while_a_key_waits_adds_none():
    assert len(keys_after([100, 3, 3])) == 2
    assert len(keys_after([100, 10])) == 3


def test_a_retired_key_leaves_the_set_when_its_last_token_has_expired():
    old, new = keys = keys_after([100])
    last_token_expires = new.sign_time + ACCESS_TOKEN_LIFE

    assert rules.published(keys, now=last_token_expires) == [old, new]
    assert rules.published(keys, now=last_token_expires + timedelta(minutes=1)) == [new]


@pytest.mark.parametrize(("days", "due"), [(29.9, False), (30, True)])
def test_a_key_is_due_at_its_age(days, due):
    now = NOW + timedelta(days=days)

    assert rules.due(keys_after([]), age_max=timedelta(days=30), now=now) is due
    assert rules.due([], age_max=timedelta(days=30), now=now)


GAPS = st.lists(st.integers(0, 2000), max_size=12)
MOMENTS = st.integers(0, 20_000)


@given(GAPS, MOMENTS)
def test_exactly_one_key_signs_at_any_time(gaps, seconds):
    keys, now = keys_after(gaps), NOW + timedelta(seconds=seconds)

    states = [rules.state(key, keys, now=now) for key in keys]

    assert states.count(State.SIGNING) == 1


@given(GAPS, MOMENTS, st.integers(0, int(ACCESS_TOKEN_LIFE.total_seconds())))
def test_a_token_verifies_from_its_signature_to_its_end(gaps, seconds, age):
    keys, now = keys_after(gaps), NOW + timedelta(seconds=seconds)
    signer = rules.signing(keys, now=now)
    later = now + timedelta(seconds=age)

    known = [key for key in keys if key.create_time <= later]
    assert signer in rules.published(known, now=later)


@given(GAPS, MOMENTS)
def test_a_gateway_that_learns_late_still_knows_the_key_that_signs(gaps, seconds):
    now = NOW + timedelta(seconds=seconds)
    keys = keys_after(gaps)
    then = now - PUBLISH
    known_then = [key for key in keys if key.create_time <= then]
    signer = rules.signing(keys, now=now)

    assert signer.number == 1 or signer in rules.published(known_then, now=then)
