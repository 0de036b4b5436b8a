"""Which passwords are refused, and how the others are kept."""

from __future__ import annotations

import asyncio

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from services.refusal import Refusal
from services.user import passwords
from services.user.domain import password as rules
from services.user.passwords import Passwords, common_passwords

COMMON = common_passwords()


def is_refused(password, username="asha"):
    try:
        rules.check(password, username, COMMON)
    except Refusal as refusal:
        return refusal.reason == "PASSWORD_TOO_COMMON"
    return False


@pytest.mark.parametrize(
    "password",
    [
        "password1234",
        "PASSWORD1234",
        "Password2024!!",
        "p@ssw0rd2026!",
        "!!!Football99",
        "iloveyou143143",
        "123456789012",
        "210987654321",
        "qwertyuiop12",
        "QwertyUiop123!",
        "abcdefghijkl",
        "aaaaaaaaaaaa",
        "abcabcabcabc",
        "123412341234",
        "passwordpassword",
        "1q2w3e4r5t6y",
        "asha12345678asha",
        "x-asha-asha-y",
    ],
)
def test_what_is_tried_first_is_refused(password):
    assert is_refused(password)


@pytest.mark.parametrize(
    "password",
    [
        "green tractor by the well",
        "मेरी लाल साइकिल पुरानी है",
        "tH7-kq02_vLx",
        "my password is long enough",
        "football was cancelled on sunday",
        "asha likes mangoes in may",
    ],
)
def test_phrases_of_ones_own_pass(password):
    assert not is_refused(password)


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=24, max_size=24))
def test_random_letters_pass_unless_they_make_a_pattern(password):
    pattern = rules._runs(password) * 4 <= 24 or rules._repeats(password, COMMON)

    assert is_refused(password, "zz-nobody") == pattern


@given(
    st.sampled_from(sorted(filter(str.isalpha, COMMON))), st.text("0123456789!?._- ", max_size=12)
)
def test_a_listed_word_with_digits_and_signs_around_it_is_refused(word, around):
    assert is_refused(around + word + around)


def test_the_list_holds_what_its_note_says():
    assert len([word for word in COMMON if len(word) < 12]) == 800
    assert all(word == word.strip().lower() for word in COMMON)


@pytest.fixture
def hasher():
    value = Passwords(threads=1)
    yield value
    value.close()


async def test_a_password_verifies_and_another_does_not(hasher):
    stored = await hasher.hash("green tractor by the well")

    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.verify(stored, "green tractor by the well")
    assert not await hasher.verify(stored, "green tractor by the wall")


async def test_accents_may_be_composed_either_way(hasher):
    stored = await hasher.hash("caf\u00e9 at the corner")

    assert await hasher.verify(stored, "cafe\u0301 at the corner")


async def test_nobodys_password_is_looked_at_as_carefully_and_never_right(hasher, monkeypatch):
    looked_at = []
    original = PasswordHasher.verify

    def verify(self, stored, password):
        looked_at.append(stored)
        return original(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", verify)

    assert not await hasher.verify(None, "green tractor by the well")
    (stored,) = looked_at
    assert not hasher.is_outdated(stored)


async def test_a_hash_made_with_other_parameters_is_outdated(hasher):
    weaker = PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash("x" * 12)

    assert hasher.is_outdated(weaker)
    assert not hasher.is_outdated(await hasher.hash("x" * 12))


async def test_a_flood_of_sign_ins_is_refused_before_it_fills_the_queue(hasher):
    stored = await hasher.hash("green tractor by the well")
    calls = [hasher.verify(stored, "wrong") for _ in range(passwords.WAITING_MAX + 3)]

    answers = await asyncio.gather(*calls, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert [refusal.reason for refusal in refused] == ["OVERLOADED"] * 3
    assert answers.count(False) == passwords.WAITING_MAX
