"""What a terminal says to a code with no network: every check, in its order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID

from pos import lockout
from pos.clock import TrustedClock
from pos.decision import (
    Key,
    Limits,
    Refusal,
    Situation,
    Terms,
    Typed,
    VoucherShown,
    Warning,  # noqa: A004 - what it is called
    decide,
)
from pos.lockout import Lockout
from protocol import code as codes
from protocol import issued_filter, signed, voucher
from protocol.voucher import Spend, Voucher

KEY = bytes([7]) * 32
EPOCH = datetime(2026, 11, 16, tzinfo=UTC)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ISSUER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
DEVICE = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
KEY_ID = signed.key_id(ISSUER.public_key().public_bytes_raw())
VENDOR, TERMINAL = UUID(int=7), UUID(int=8)
TODAY = codes.expiry_day(NOW, EPOCH, 3)
EARLIER = int(NOW.timestamp()) - 601


def a_code(serial=1, *, keyset=3, tier=4, day=TODAY, key=KEY, currency="INR"):
    made = codes.make(serial, keyset, tier, day, key=key, issuer="tallystick", currency=currency)
    return made.symbols()


def mark(symbols):
    return codes.filter_key(KEY, symbols)


YESTERDAYS = a_code(2, day=TODAY - 1)
LIMITS = Limits(
    payment_max=500_00,
    stored_soft=1_000_00,
    stored_hard=2_000_00,
    count_soft=5,
    count_hard=10,
    age_soft=timedelta(hours=12),
    age_hard=timedelta(hours=24),
)
TERMS = Terms(
    version=1,
    server_time=NOW - timedelta(hours=1),
    issuer="tallystick",
    scope="main",
    tiers={(4, "INR"): 100_00, (5, "INR"): 600_00},
    keys={3: Key(KEY, EPOCH)},
    issuer_keys={KEY_ID: ISSUER.public_key().public_bytes_raw()},
    denied=frozenset({mark(a_code(66))}),
    issued=issued_filter.build([mark(YESTERDAYS)]),
    issued_time=NOW - timedelta(hours=1),
    limits={"INR": LIMITS},
    spend_days=3,
)
SITUATION = Situation(
    now=NOW,
    terms=TERMS,
    moved=False,
    lockout=Lockout(),
    vendor_id=VENDOR,
    terminal_id=TERMINAL,
    is_spent=lambda symbols: symbols == a_code(77),
    stored_count=0,
    stored={},
)


def said(shown, minor_units=100_00, currency="INR", **changes):
    shown = Typed(shown) if isinstance(shown, str) else shown
    return decide(shown, minor_units, currency, replace(SITUATION, **changes))


def test_a_good_code_is_approved_whole_or_in_part():
    for minor_units in (1, 80_00, 100_00):
        decision = said(a_code(), minor_units)

        assert decision.approved
        assert decision.message == "APPROVED OFFLINE (provisional)"
        assert (decision.symbols, decision.value) == (a_code(), 100_00)


@pytest.mark.parametrize(
    ("shown", "minor_units", "changes", "refusal"),
    [
        ("0", 1, {"lockout": Lockout(3, NOW + timedelta(seconds=1))}, Refusal.LOCKED),
        ("0", 1, {"moved": True}, Refusal.MOVED),
        ("0", 1, {"terms": None}, Refusal.NEVER_SYNCED),
        ("0", 0, {}, Refusal.AMOUNT_INVALID),
        ("0000", 1, {}, Refusal.CODE_LENGTH),
        ("U" * 16, 1, {}, Refusal.CODE_SYMBOL),
        (a_code()[:-1] + ("0" if a_code()[-1] != "0" else "1"), 1, {}, Refusal.CHECK_SYMBOL),
        (a_code(keyset=4), 1, {}, Refusal.KEYSET_UNKNOWN),
        (a_code(day=TODAY - 4), 1, {}, Refusal.EXPIRED),
        (a_code(), 100_01, {}, Refusal.AMOUNT_OVER_VALUE),
        (a_code(key=bytes(32)), 1, {}, Refusal.TAG_WRONG),
        (a_code(77), 1, {}, Refusal.SPENT_HERE),
        (a_code(66), 1, {}, Refusal.REVOKED),
        (a_code(88, day=TODAY - 1), 1, {}, Refusal.NOT_ISSUED),
        (a_code(tier=5), 500_01, {}, Refusal.PAYMENT_OVER_LIMIT),
        (a_code(), 100_00, {"stored": {"INR": 1_900_01}}, Refusal.STORED_TOTAL_OVER_LIMIT),
        (a_code(), 1, {"stored_count": 10}, Refusal.STORED_COUNT_OVER_LIMIT),
        (
            a_code(day=TODAY + 2),
            1,
            {"now": NOW + timedelta(hours=23, seconds=1)},
            Refusal.MUST_SYNC,
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Refusal) else "",
)
def test_each_check_has_a_reason_of_its_own(shown, minor_units, changes, refusal):
    decision = said(shown, minor_units, **changes)

    assert decision.refusal is refusal
    assert decision.message


@pytest.mark.parametrize("minor_units", [-1, 0, 1 << 63, 10**40])
def test_an_amount_that_no_message_can_carry_is_refused(minor_units):
    assert said(a_code(), minor_units).refusal is Refusal.AMOUNT_INVALID
    spend = shown(a_voucher())
    assert said(spend, minor_units).refusal is Refusal.AMOUNT_INVALID


def test_a_tier_that_has_no_value_in_the_currency_is_worth_nothing():
    assert said(a_code(tier=9), 1).refusal is Refusal.AMOUNT_OVER_VALUE


def test_the_first_check_that_fails_is_the_answer():
    wrong_in_everything = a_code(77, tier=9, day=TODAY - 5, key=bytes(32))

    assert said(wrong_in_everything, 900_00).refusal is Refusal.EXPIRED
    assert said(a_code(77, key=bytes(32)), 900_00).refusal is Refusal.AMOUNT_OVER_VALUE
    assert said(a_code(77), stored_count=10).refusal is Refusal.SPENT_HERE


def test_a_code_younger_than_the_filter_needs_not_be_in_it():
    assert said(a_code(12345)).approved, "issued today, after the filter was made"
    assert said(YESTERDAYS).approved, "issued yesterday, and in the filter"


def test_a_code_expires_at_the_end_of_its_last_day_to_the_second():
    last = codes.expire_time(EPOCH, TODAY - 3)
    shown = a_code(day=TODAY - 3)
    terms = replace(TERMS, issued=issued_filter.build([mark(shown)]))

    assert said(shown, now=last - timedelta(microseconds=1), terms=terms).approved
    assert said(shown, now=last, terms=terms).refusal is Refusal.EXPIRED


def test_what_comes_near_a_limit_warns():
    assert said(a_code(), stored={"INR": 900_00}).warnings == ()
    assert said(a_code(), stored={"INR": 900_01}).warnings == (Warning.STORED_TOTAL,)
    assert said(a_code(), stored_count=5).warnings == (Warning.STORED_COUNT,)
    assert said(a_code(), now=NOW + timedelta(hours=11, seconds=1)).warnings == (Warning.SYNC_SOON,)


def a_voucher(**changes):
    fields = {
        "issuer": "tallystick",
        "currency": "INR",
        "scope": "main",
        "serial": 5,
        "keyset": 3,
        "tier": 4,
        "expiry_day": TODAY,
        "minor_units": 90_00,
        "device_key": DEVICE.public_key().public_bytes_raw(),
        "key_id": KEY_ID,
    }
    return voucher.issue(Voucher(**fields | changes), ISSUER)


def shown(data, minor_units=90_00, *, seconds=None, key=DEVICE, terminal=TERMINAL):
    seconds = int(NOW.timestamp()) if seconds is None else seconds
    spend = Spend(VENDOR, terminal, minor_units, "INR", seconds)
    return VoucherShown(data, seconds, voucher.sign_spend(data, spend, key))


def test_a_voucher_is_taken_with_public_keys_and_both_signatures():
    decision = said(shown(a_voucher()), 90_00)

    assert decision.approved
    assert decision.value == 90_00
    assert decision.symbols == a_code(5), "the same code, typed, is spent with it"


@pytest.mark.parametrize(
    ("spend", "minor_units", "refusal"),
    [
        (lambda: shown(a_voucher(), 80_00), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(), key=ISSUER), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(), terminal=UUID(int=1)), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(scope="lake")), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(currency="KES")), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(issuer="other")), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(), seconds=EARLIER), 90_00, Refusal.VOUCHER_INVALID),
        (lambda: shown(a_voucher(keyset=6)), 90_00, Refusal.KEYSET_UNKNOWN),
        (lambda: shown(a_voucher(expiry_day=TODAY - 4)), 90_00, Refusal.EXPIRED),
        (lambda: shown(a_voucher(), 90_01), 90_01, Refusal.AMOUNT_OVER_VALUE),
        (lambda: shown(a_voucher(serial=77)), 90_00, Refusal.SPENT_HERE),
        (lambda: shown(a_voucher(serial=66)), 90_00, Refusal.REVOKED),
    ],
    ids=[
        "amount raised",
        "another device",
        "another terminal",
        "another area",
        "another currency",
        "another issuer",
        "signed too long ago",
        "keyset unknown",
        "expired",
        "over its value",
        "spent here",
        "revoked",
    ],
)
def test_a_voucher_that_is_not_right_is_refused(spend, minor_units, refusal):
    assert said(spend(), minor_units).refusal is refusal


def test_the_ladder_locks_from_the_third_guess_on_and_doubles():
    ladder, waits = Lockout(), []
    for _ in range(12):
        ladder = lockout.count_wrong(ladder, now=NOW)
        left = ladder.left(NOW)
        waits.append(0 if left is None else left.total_seconds())

    assert waits == [0, 0, 10, 20, 40, 80, 160, 320, 640, 1280, 1280, 1280]
    assert ladder.left(NOW + timedelta(seconds=1280)) is None
    assert lockout.forgiven() == Lockout()


class Clocks:
    def __init__(self, wall):
        self.wall = wall
        self.seconds = 0.0

    def trusted(self):
        return TrustedClock(lambda: self.wall, lambda: self.seconds)


def test_time_is_never_before_what_the_server_said_last():
    clocks = Clocks(NOW - timedelta(days=365))
    clock = clocks.trusted()
    clock.raise_floor(NOW)

    assert clock() == NOW, "a clock a year behind begins at the floor"
    clocks.seconds += 11.0
    assert clock() == NOW + timedelta(seconds=11), "and does not stand still there"
    clocks.wall = NOW + timedelta(hours=1)
    assert clock() == NOW + timedelta(hours=1)


def test_once_the_server_has_spoken_the_wall_clock_is_not_asked():
    clocks = Clocks(NOW + timedelta(days=365))
    clock = clocks.trusted()
    clock.learn(NOW)
    clocks.seconds += 90.0

    assert clock() == NOW + timedelta(seconds=90)
    clocks.wall = NOW - timedelta(days=365)
    assert clock() == NOW + timedelta(seconds=90)


def test_a_clock_a_year_ahead_after_a_cold_start_asks_for_a_sync_and_takes_nothing():
    clocks = Clocks(NOW + timedelta(days=365))
    clock = clocks.trusted()
    clock.raise_floor(NOW)
    far = codes.expiry_day(clock(), EPOCH, 0)

    assert said(a_code(), now=clock()).refusal is Refusal.EXPIRED
    assert far > 63, "no code lives so long that it could pass"
