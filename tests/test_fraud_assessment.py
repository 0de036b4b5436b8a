"""What the checks say of one payment: the rules at their edges, and what holds for every payment."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.fraud.domain.assessment import (
    DECLINE_SCORE,
    REVIEW_SCORE,
    Code,
    Decision,
    Facts,
    Limits,
    Position,
    Site,
    not_assessable,
)
from services.fraud.domain.distance import EARTH_RADIUS_METERS
from services.money import Money
from tests.fraud_checks import assess

LIMITS = Limits()
SHOP = Site("users/v/sites/shop", 12.9716, 77.5946, open=True)
STALL = Site("users/v/sites/stall", 13.9716, 77.5946, open=True)
AT_SHOP = Position(SHOP.latitude, SHOP.longitude)


def north_of(site, meters, **said):
    degrees = meters / EARTH_RADIUS_METERS * 57.29577951308232
    return Position(site.latitude + degrees, site.longitude, **said)


def a_payment(minor_units=100_00, *, position=AT_SHOP, site="", currency="INR"):
    return Facts(Money(minor_units, currency), site, position)


def codes(assessment):
    return [signal.code for signal in assessment.signals]


def test_a_small_payment_at_the_shop_passes_without_a_sign():
    found = assess(a_payment(), [SHOP], LIMITS)

    assert (found.decision, found.score, found.signals) == (Decision.ALLOW, 0, ())


@pytest.mark.parametrize(
    ("meters", "decision"),
    [
        (0, Decision.ALLOW),
        (19_999, Decision.ALLOW),
        (20_000, Decision.ALLOW),
        (20_001, Decision.REVIEW),
        (312_400, Decision.REVIEW),
    ],
)
def test_a_device_exactly_twenty_kilometers_away_passes_and_a_meter_more_is_reviewed(
    meters, decision
):
    assert assess(a_payment(position=north_of(SHOP, meters)), [SHOP], LIMITS).decision is decision


@pytest.mark.parametrize("latitude", [-89.0, -45.0, 0.0, 0.1, 33.3, 51.47, 60.17, 89.0])
def test_exactly_at_the_limit_passes_wherever_the_shop_is(latitude):
    shop = replace(SHOP, latitude=latitude)

    found = assess(a_payment(position=north_of(shop, 20_000)), [shop], LIMITS)

    assert found.decision is Decision.ALLOW


def test_the_detail_gives_the_distance_and_the_limit():
    found = assess(a_payment(position=north_of(SHOP, 312_400)), [SHOP], LIMITS)

    (signal,) = found.signals
    assert signal.code is Code.DISTANCE_OVER_LIMIT
    assert signal.detail == "312.4 km from the vendor's site; the limit is 20 km"


def test_a_detail_never_gives_a_distance_that_reads_as_within_the_limit():
    found = assess(a_payment(position=north_of(SHOP, 20_002)), [SHOP], LIMITS)

    assert found.signals[0].detail == "20.00200 km from the vendor's site; the limit is 20 km"


@pytest.mark.parametrize(
    ("accuracy", "decision"),
    [(0, Decision.REVIEW), (4_999, Decision.REVIEW), (5_000, Decision.ALLOW)],
)
def test_the_devices_own_accuracy_counts_in_its_favour(accuracy, decision):
    position = north_of(SHOP, 25_000, accuracy_meters=accuracy)

    assert assess(a_payment(position=position), [SHOP], LIMITS).decision is decision


@pytest.mark.parametrize(
    ("amount", "decision"), [(499_99, Decision.ALLOW), (500_00, Decision.REVIEW)]
)
def test_a_position_vaguer_than_the_limit_is_like_a_missing_one(amount, decision):
    somewhere = Position(SHOP.latitude + 0.9, SHOP.longitude, 100_000.0)

    found = assess(a_payment(amount, position=somewhere), [SHOP], LIMITS)

    assert found.decision is decision
    assert [signal.code for signal in found.signals] == [Code.POSITION_MISSING]


def test_the_nearest_open_site_counts_when_none_is_named():
    near_the_stall = a_payment(position=north_of(STALL, 1_000))

    assert assess(near_the_stall, [SHOP, STALL], LIMITS).decision is Decision.ALLOW
    assert assess(near_the_stall, [SHOP], LIMITS).decision is Decision.REVIEW


def test_the_named_site_counts_alone():
    named = a_payment(position=north_of(STALL, 1_000), site=SHOP.name)

    assert codes(assess(named, [SHOP, STALL], LIMITS)) == [Code.DISTANCE_OVER_LIMIT]


@pytest.mark.parametrize("site", ["users/v/sites/gone", "users/other/sites/shop"])
def test_a_named_site_the_vendor_does_not_have_gives_way_to_the_nearest_open_one(site):
    named = a_payment(position=AT_SHOP, site=site)

    assert assess(named, [SHOP, STALL], LIMITS).decision is Decision.ALLOW


def test_a_closed_site_is_no_place_to_measure_from():
    closed = replace(SHOP, open=False)

    assert codes(assess(a_payment(site=SHOP.name), [closed, STALL], LIMITS)) == [
        Code.DISTANCE_OVER_LIMIT
    ]
    assert codes(assess(a_payment(), [closed], LIMITS)) == [Code.SITE_UNKNOWN]


@pytest.mark.parametrize(
    ("minor_units", "decision"),
    [(1, Decision.ALLOW), (499_99, Decision.ALLOW), (500_00, Decision.REVIEW)],
)
def test_a_payment_without_a_position_passes_below_the_floor_only_and_says_so(
    minor_units, decision
):
    found = assess(a_payment(minor_units, position=None), [SHOP], LIMITS)

    assert found.decision is decision
    assert codes(found) == [Code.POSITION_MISSING]
    assert found.score > 0


@pytest.mark.parametrize(
    ("minor_units", "decision"),
    [(1, Decision.ALLOW), (499_99, Decision.ALLOW), (500_00, Decision.REVIEW)],
)
def test_an_unknown_site_is_like_a_missing_position(minor_units, decision):
    found = assess(a_payment(minor_units), [], LIMITS)

    assert found.decision is decision
    assert codes(found) == [Code.SITE_UNKNOWN]


def test_neither_position_nor_site_still_passes_below_the_floor():
    found = assess(a_payment(499_99, position=None), [], LIMITS)

    assert found.decision is Decision.ALLOW
    assert codes(found) == [Code.POSITION_MISSING, Code.SITE_UNKNOWN]


def test_a_made_up_position_is_reviewed_however_small_and_near_the_payment():
    mocked = replace(AT_SHOP, mocked=True)

    found = assess(a_payment(1, position=mocked), [SHOP], LIMITS)

    assert found.decision is Decision.REVIEW
    assert codes(found) == [Code.POSITION_MOCKED]


@pytest.mark.parametrize(
    ("minor_units", "decision", "code"),
    [
        (4_999_99, Decision.ALLOW, None),
        (5_000_00, Decision.REVIEW, Code.AMOUNT_OVER_REVIEW_LIMIT),
        (100_000_00, Decision.REVIEW, Code.AMOUNT_OVER_REVIEW_LIMIT),
        (100_000_01, Decision.DECLINE, Code.AMOUNT_OVER_LIMIT),
    ],
)
def test_amounts_are_reviewed_from_one_limit_on_and_refused_above_another(
    minor_units, decision, code
):
    found = assess(a_payment(minor_units), [SHOP], LIMITS)

    assert found.decision is decision
    assert codes(found) == ([] if code is None else [code])


def test_a_refused_amount_is_explained():
    (signal,) = assess(a_payment(100_000_01), [SHOP], LIMITS).signals

    assert signal.detail == "100000.01 INR; the limit is 100000.00 INR"


def test_signals_come_strongest_first_and_add_up():
    far_and_mocked = north_of(SHOP, 50_000, mocked=True)

    found = assess(a_payment(5_000_00, position=far_and_mocked), [SHOP], LIMITS)

    assert codes(found) == [
        Code.POSITION_MOCKED,
        Code.DISTANCE_OVER_LIMIT,
        Code.AMOUNT_OVER_REVIEW_LIMIT,
    ]
    # 100 · (1 - 0.2 · 0.3 · 0.5)
    assert found.score == 97


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        (a_payment(0), "amount"),
        (a_payment(-1), "amount"),
        (a_payment(currency="XXX"), "amount"),
        (a_payment(position=Position(nan, 0)), "position.latitude"),
        (a_payment(position=Position(90.1, 0)), "position.latitude"),
        (a_payment(position=Position(0, -inf)), "position.longitude"),
        (a_payment(position=Position(0, 180.1)), "position.longitude"),
        (a_payment(position=Position(0, 0, -1.0)), "position.accuracy_meters"),
        (a_payment(position=Position(0, 0, inf)), "position.accuracy_meters"),
        (a_payment(position=Position(0, 0, nan)), "position.accuracy_meters"),
    ],
)
def test_facts_that_cannot_be_true_are_reviewed_and_named(facts, field):
    found = assess(facts, [SHOP], LIMITS)

    assert found.decision is Decision.REVIEW
    assert found.signals[0].code is Code.FACTS_INVALID
    assert found.signals[0].detail.startswith(f"{field}: ")


def test_facts_that_break_the_contract_are_reviewed_with_every_problem():
    found = not_assessable(["payer: is required", "amount: is required"])

    assert found.decision is Decision.REVIEW
    assert codes(found) == [Code.FACTS_INVALID, Code.FACTS_INVALID]


any_float = st.floats(allow_nan=True, allow_infinity=True)
positions = st.builds(
    Position,
    st.floats(-90, 90) | any_float,
    st.floats(-180, 180) | any_float,
    st.floats(0, 100_000) | any_float,
    st.booleans(),
)
any_facts = st.builds(
    Facts,
    st.builds(
        Money,
        st.integers(-(2**63), 2**63 - 1) | st.integers(1, 200_000_00),
        st.sampled_from(["INR", "JPY", "KWD", "XXX", ""]),
    ),
    st.sampled_from(["", SHOP.name, STALL.name, "users/v/sites/none"]),
    st.none() | positions,
)
any_sites = st.lists(
    st.builds(
        Site,
        st.sampled_from([SHOP.name, STALL.name]),
        st.floats(-90, 90),
        st.floats(-180, 180),
        st.booleans(),
    ),
    max_size=4,
)


@given(any_facts, any_sites)
def test_whatever_comes_there_is_an_answer_and_its_parts_agree(facts, sites):
    found = assess(facts, sites, LIMITS)

    assert found.decision is (
        Decision.ALLOW
        if found.score < REVIEW_SCORE
        else Decision.REVIEW
        if found.score < DECLINE_SCORE
        else Decision.DECLINE
    )
    weights = [signal.weight for signal in found.signals]
    assert weights == sorted(weights, reverse=True)
    assert found.score >= max(weights, default=0)
    assert all(signal.detail for signal in found.signals)


@given(any_facts, any_sites)
def test_nothing_passes_unseen_but_a_true_near_and_small_payment(facts, sites):
    found = assess(facts, sites, LIMITS)

    if found.decision is Decision.ALLOW:
        assert 0 < facts.amount.minor_units < LIMITS.review_minor_units
        if facts.amount.minor_units >= LIMITS.position_floor_minor_units:
            assert facts.position is not None
            assert any(site.open for site in sites)
        assert facts.position is None or not facts.position.mocked


@given(any_facts, any_sites, st.integers(1, 10**9))
def test_a_larger_amount_is_never_judged_more_mildly(facts, sites, more):
    order = [Decision.ALLOW, Decision.REVIEW, Decision.DECLINE]
    smaller = replace(facts, amount=Money(abs(facts.amount.minor_units) % 10**9 + 1, "INR"))
    larger = replace(smaller, amount=Money(smaller.amount.minor_units + more, "INR"))

    mild, strict = assess(smaller, sites, LIMITS), assess(larger, sites, LIMITS)

    assert order.index(mild.decision) <= order.index(strict.decision)
