"""How long wrong passwords make an account wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.refusal import Refusal
from services.user.domain import lockout

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def after(count, *, now=NOW):
    attempts = None
    for _ in range(count):
        attempts = lockout.count_wrong(attempts, now=now)
    return attempts


def test_the_first_mistakes_cost_nothing():
    lockout.check(None, now=NOW)
    lockout.check(after(lockout.FREE_ATTEMPTS), now=NOW)


@pytest.mark.parametrize(("wrong", "seconds"), [(5, 2), (6, 4), (7, 8), (13, 512), (14, 900)])
def test_then_the_wait_doubles_up_to_a_quarter_of_an_hour(wrong, seconds):
    attempts = after(wrong)

    with pytest.raises(Refusal) as refused:
        lockout.check(attempts, now=NOW)

    assert refused.value.reason == "TOO_MANY_ATTEMPTS"
    assert refused.value.retry_after == timedelta(seconds=seconds)
    lockout.check(attempts, now=NOW + timedelta(seconds=seconds))


@given(st.integers(1, 5000))
def test_nobody_is_locked_out_for_longer_than_the_cap(wrong):
    attempts = lockout.count_wrong(lockout.Attempts(wrong - 1, NOW, NOW), now=NOW)

    lockout.check(attempts, now=NOW + lockout.DELAY_MAX)


def test_a_day_without_mistakes_is_forgiven():
    later = NOW + lockout.MEMORY

    assert lockout.count_wrong(after(50), now=later).wrong == 1
    assert lockout.count_wrong(after(50), now=later - timedelta(seconds=1)).wrong == 51
