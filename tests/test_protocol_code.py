"""The offline code: its layout, its check symbol, its tag."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import code as codes
from protocol.code import ALPHABET, Code, CodeInvalid, Flaw

KEY = bytes(range(32))
VECTORS = json.loads((Path(__file__).parents[1] / "docs" / "offline-test-vectors.json").read_text())

fields = st.builds(
    Code,
    serial=st.integers(0, 2**32 - 1),
    tag=st.integers(0, 2**30 - 1),
    keyset=st.integers(0, 7),
    tier=st.integers(0, 15),
    expiry_day=st.integers(0, 63),
)


@given(fields)
def test_a_code_reads_back_as_it_was_written(code):
    symbols = code.symbols()

    assert len(symbols) == 16
    assert codes.parse(symbols) == code
    assert codes.parse(codes.pretty(symbols)) == code


@given(fields, st.randoms(use_true_random=False))
def test_a_code_may_be_typed_as_people_type(code, rng):
    typed = codes.pretty(code.symbols())
    for right, wrong in (("0", "oO0"), ("1", "iIlL1")):
        typed = "".join(rng.choice(wrong) if symbol == right else symbol for symbol in typed)
    typed = "".join(rng.choice((symbol.lower(), symbol)) for symbol in typed)

    assert codes.parse(f" {typed.replace('-', rng.choice(('', ' ', '-')))}") == code


@given(fields)
def test_no_single_wrong_symbol_is_accepted(code):
    symbols = code.symbols()

    for place, right in enumerate(symbols):
        for wrong in ALPHABET.replace(right, ""):
            with pytest.raises(CodeInvalid) as refused:
                codes.parse(symbols[:place] + wrong + symbols[place + 1 :])
            assert refused.value.flaw is Flaw.CHECK


@given(fields)
def test_no_swap_of_two_different_symbols_is_accepted(code):
    symbols = code.symbols()

    for first in range(16):
        for second in range(first + 1, 16):
            swapped = list(symbols)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            if swapped[first] != swapped[second]:
                with pytest.raises(CodeInvalid):
                    codes.parse("".join(swapped))


def test_a_million_codes_with_typing_errors():
    """Of 500,000 with one wrong symbol none is accepted. Of 500,000 with two, one in 31 passes the check symbol (the
    second error must be the one that cancels the first), and none of those has the right tag: that takes one in 2³⁰.
    """
    rng = random.Random(20261127)
    values = {symbol: value for value, symbol in enumerate(ALPHABET)}
    passed = 0
    for _ in range(1000):
        made = codes.make(
            rng.getrandbits(32),
            rng.randrange(8),
            rng.randrange(16),
            rng.randrange(64),
            key=KEY,
            issuer="tallystick",
            currency="INR",
        )
        right = [values[symbol] for symbol in made.symbols()]
        assert codes.check_digit(right[:15]) == right[15]
        for _ in range(500):
            wrong = right.copy()
            wrong[rng.randrange(16)] ^= rng.randrange(1, 32)
            assert codes.check_digit(wrong[:15]) != wrong[15]
        for _ in range(500):
            wrong = right.copy()
            for place in rng.sample(range(16), 2):
                wrong[place] ^= rng.randrange(1, 32)
            if codes.check_digit(wrong[:15]) == wrong[15]:
                passed += 1
                found = codes.parse("".join(ALPHABET[digit] for digit in wrong))
                assert not codes.verify(found, key=KEY, issuer="tallystick", currency="INR")
    assert 500_000 / 31 * 0.95 < passed < 500_000 / 31 * 1.05


@given(
    fields, st.sampled_from(["serial", "keyset", "tier", "expiry_day", "issuer", "currency", "key"])
)
def test_a_tag_is_for_exactly_one_record_issuer_currency_and_key(code, changed):
    made = codes.make(
        code.serial,
        code.keyset,
        code.tier,
        code.expiry_day,
        key=KEY,
        issuer="tallystick",
        currency="INR",
    )
    asked = {"key": KEY, "issuer": "tallystick", "currency": "INR"}
    assert codes.verify(made, **asked)

    said = {name: getattr(made, name) for name in ("serial", "tag", "keyset", "tier", "expiry_day")}
    if changed in asked:
        asked[changed] = {"key": bytes(32), "issuer": "other", "currency": "KES"}[changed]
    else:
        said[changed] ^= 1
    assert not codes.verify(Code(**said), **asked)


@pytest.mark.parametrize(
    ("text", "flaw", "position"),
    [
        ("", Flaw.LENGTH, 0),
        ("0000-0000-0000-000", Flaw.LENGTH, 0),
        ("0000-0000-0000-0000-0", Flaw.LENGTH, 0),
        ("0000-U000-0000-0000", Flaw.SYMBOL, 5),
        ("0000-0000-0000-000é", Flaw.SYMBOL, 16),
        ("SSSS-SSSS-SSSS-Sß", Flaw.SYMBOL, 14),
        ("ﬁ" * 8, Flaw.SYMBOL, 1),
        ("0000-0000-0000-0001", Flaw.CHECK, 0),
    ],
)
def test_what_is_no_code_says_what_is_wrong(text, flaw, position):
    with pytest.raises(CodeInvalid) as refused:
        codes.parse(text)

    assert (refused.value.flaw, refused.value.position) == (flaw, position)


def test_a_code_may_be_spent_until_the_end_of_its_last_day():
    epoch = datetime(2026, 11, 16, tzinfo=UTC)
    issued = datetime(2026, 11, 27, 23, 59, tzinfo=UTC)

    day = codes.expiry_day(issued, epoch, 3)

    assert day == 14
    assert codes.expire_time(epoch, day) == datetime(2026, 12, 1, tzinfo=UTC)
    assert codes.issue_day_time(epoch, day, 3) == datetime(2026, 11, 27, tzinfo=UTC)
    assert codes.expire_time(epoch, day) - issued >= timedelta(hours=72)


@pytest.mark.parametrize("vector", VECTORS["codes"], ids=lambda vector: vector["symbols"])
def test_the_published_vectors_hold(vector):
    key = codes.scope_key(bytes.fromhex(vector["master"]), vector["keyset"], vector["scope"])
    code = codes.make(
        vector["serial"],
        vector["keyset"],
        vector["tier"],
        vector["expiry_day"],
        key=key,
        issuer=vector["issuer"],
        currency=vector["currency"],
    )

    assert key.hex() == vector["scope_key"]
    assert code.tag == vector["tag"]
    assert codes.pretty(code.symbols()) == vector["symbols"]
    assert f"{codes.filter_key(key, code.symbols()):016x}" == vector["filter_key"]
