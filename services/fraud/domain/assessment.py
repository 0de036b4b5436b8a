"""What the checks say of one payment: a decision, a score and reasons a person can read."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

from services.fraud.domain.distance import distance_meters
from services.money import MINOR_UNIT_DIGITS, Money


class Decision(enum.Enum):
    """What to do with a payment."""

    ALLOW = "allow"
    REVIEW = "review"
    DECLINE = "decline"


class Code(enum.Enum):
    """A reason, named as in `fraud.v1.Signal.Code`."""

    DISTANCE_OVER_LIMIT = "DISTANCE_OVER_LIMIT"
    POSITION_MISSING = "POSITION_MISSING"
    POSITION_MOCKED = "POSITION_MOCKED"
    SITE_UNKNOWN = "SITE_UNKNOWN"
    AMOUNT_OVER_REVIEW_LIMIT = "AMOUNT_OVER_REVIEW_LIMIT"
    AMOUNT_OVER_LIMIT = "AMOUNT_OVER_LIMIT"
    FACTS_INVALID = "FACTS_INVALID"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a device says it is.

    Attributes:
        latitude: Degrees north, -90 to 90.
        longitude: Degrees east, -180 to 180.
        accuracy_meters: The radius it is 68 % sure to be within; 0 when it did not say.
        mocked: The device says the place is made up.
    """

    latitude: float
    longitude: float
    accuracy_meters: float = 0.0
    mocked: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A place a vendor sells at: `users/{uuid}/sites/{uuid}`, and whether it still does."""

    name: str
    latitude: float
    longitude: float
    open: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a payment.

    Attributes:
        amount: What would be paid; above zero.
        site: The name of the site it happens at; empty when it was not said.
        position: Where the payer's device is; None when it did not say.
    """

    amount: Money
    site: str
    position: Position | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a payment stops passing unseen.

    Amounts are minor units, the same number in every currency.

    Attributes:
        distance_meters: How far the device may be from the vendor's site, inclusive.
        position_floor_minor_units: From this amount on, inclusive, a payment needs a position
            and a site.
        review_minor_units: From this amount on, inclusive, a person must look.
        hard_minor_units: Above this amount, exclusive, a payment is refused.
    """

    distance_meters: float = 20_000.0
    position_floor_minor_units: int = 500_00
    review_minor_units: int = 5_000_00
    hard_minor_units: int = 100_000_00


@dataclass(frozen=True, slots=True)
class Signal:
    """One reason.

    Attributes:
        code: What was seen.
        weight: How much it says by itself, 1 to 100.
        detail: In words, with the figures.
    """

    code: Code
    weight: int
    detail: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the checks say.

    Attributes:
        decision: What to do.
        score: 0 (no sign) to 100. The decision is ALLOW below REVIEW_SCORE, DECLINE at
            DECLINE_SCORE, REVIEW between them.
        signals: Strongest first; signals of equal weight in the order of the checks.
    """

    decision: Decision
    score: int
    signals: tuple[Signal, ...]


# From this score on a person must look; a signal that weighs DECLINE_SCORE refuses the payment.
REVIEW_SCORE = 50
DECLINE_SCORE = 100

# A device that admits to a made-up position is the plainest sign short of a refusal. Distance comes
# next: honest devices exceed it now and then (a stale fix, a vendor's van). Facts that cannot be
# true are more often a defect than an attack. A large amount, or a large enough one without a
# position, says little by itself: just enough to look.
_WEIGHTS = {
    Code.AMOUNT_OVER_LIMIT: DECLINE_SCORE,
    Code.POSITION_MOCKED: 80,
    Code.DISTANCE_OVER_LIMIT: 70,
    Code.FACTS_INVALID: 60,
    Code.AMOUNT_OVER_REVIEW_LIMIT: 50,
    Code.POSITION_MISSING: 50,
    Code.SITE_UNKNOWN: 50,
}
# Of a missing position or site below the floor: listed, and never enough by itself or together.
_WEIGHT_BELOW_FLOOR = 10
# Degrees.
_LATITUDE_MAX = 90.0
_LONGITUDE_MAX = 180.0


def assess(facts: Facts, sites: Sequence[Site], limits: Limits) -> Assessment:
    """Judge one payment. Total: whatever the facts hold, there is an answer.

    The score treats signals as independent: 100 · (1 - Π(1 - weight / 100)), rounded, so that every
    further signal adds to it and none but a refusal reaches 100.

    Args:
        facts: The payment. An amount or a position that cannot be true gives FACTS_INVALID.
        sites: All sites of the vendor, open and closed; none when the vendor is not known.
        limits: Where a payment stops passing unseen.
    """
    signals = _amount_signals(facts.amount, limits)
    signals += _place_signals(facts, sites, limits)
    return _conclude(signals)


def not_assessable(problems: Sequence[str]) -> Assessment:
    """The answer for a payment whose facts break the contract: a person must look.

    Args:
        problems: What is wrong, each naming its field; at least one.
    """
    return _conclude([_signal(Code.FACTS_INVALID, problem) for problem in problems])


def _conclude(signals: list[Signal]) -> Assessment:
    if not signals:
        return _PASSED
    signals.sort(key=_strongest_first)
    strongest = signals[0].weight
    if strongest >= DECLINE_SCORE:
        return Assessment(Decision.DECLINE, DECLINE_SCORE, tuple(signals))
    left = 1.0
    for signal in signals:
        left *= 1 - signal.weight / 100
    score = min(DECLINE_SCORE - 1, round(100 * (1 - left)))
    decision = Decision.REVIEW if score >= REVIEW_SCORE else Decision.ALLOW
    return Assessment(decision, score, tuple(signals))


_PASSED = Assessment(Decision.ALLOW, 0, ())


def _strongest_first(signal: Signal) -> int:
    return -signal.weight


def _signal(code: Code, detail: str) -> Signal:
    return Signal(code, _WEIGHTS[code], detail)


def _amount_signals(amount: Money, limits: Limits) -> list[Signal]:
    if amount.minor_units <= 0:
        return [_signal(Code.FACTS_INVALID, "amount: must be above zero")]
    if amount.currency_code not in MINOR_UNIT_DIGITS:
        return [
            _signal(Code.FACTS_INVALID, f"amount: {amount.currency_code!r} is no currency we keep")
        ]
    if amount.minor_units > limits.hard_minor_units:
        limit = _text(limits.hard_minor_units, amount.currency_code)
        return [_signal(Code.AMOUNT_OVER_LIMIT, f"{amount}; the limit is {limit}")]
    if amount.minor_units >= limits.review_minor_units:
        limit = _text(limits.review_minor_units, amount.currency_code)
        detail = f"{amount}; from {limit} on a person must look"
        return [_signal(Code.AMOUNT_OVER_REVIEW_LIMIT, detail)]
    return []


def _place_signals(facts: Facts, sites: Sequence[Site], limits: Limits) -> list[Signal]:
    signals: list[Signal] = []
    position = facts.position
    if position is None:
        signals.append(_absence(Code.POSITION_MISSING, "no position came with it", facts, limits))
    elif problem := _problem(position):
        signals.append(_signal(Code.FACTS_INVALID, problem))
        return signals
    elif position.mocked:
        detail = "the device says that its position is made up"
        signals.append(_signal(Code.POSITION_MOCKED, detail))
    elif position.accuracy_meters > limits.distance_meters:
        # Taken at its word, a device that is "somewhere within 100 km" would be near everything.
        detail = f"the position is only good to {position.accuracy_meters / 1000:.1f} km"
        signals.append(_absence(Code.POSITION_MISSING, detail, facts, limits))
        position = None
    places = _places(facts.site, sites)
    if not places:
        detail = "the vendor has no open site on record"
        signals.append(_absence(Code.SITE_UNKNOWN, detail, facts, limits))
    elif position is not None:
        away = min(
            distance_meters(position.latitude, position.longitude, site.latitude, site.longitude)
            for site in places
        )
        # To the centimetre: a place computed to lie exactly at the limit passes, whatever the last
        # bit of the computation says.
        if round(away - position.accuracy_meters - limits.distance_meters, 2) > 0:
            signals.append(_signal(Code.DISTANCE_OVER_LIMIT, _distance_detail(away, limits)))
    return signals


def _places(named: str, sites: Sequence[Site]) -> list[Site]:
    """Where to measure from: the named site when it is open, else every open one."""
    places = [site for site in sites if site.open]
    if named:
        for site in places:
            if site.name == named:
                return [site]
    return places


def _absence(code: Code, detail: str, facts: Facts, limits: Limits) -> Signal:
    if facts.amount.minor_units < limits.position_floor_minor_units:
        return Signal(code, _WEIGHT_BELOW_FLOOR, detail)
    floor = _text(limits.position_floor_minor_units, facts.amount.currency_code)
    return _signal(code, f"{detail}; from {floor} on it is needed")


def _problem(position: Position) -> str:
    """What cannot be true of a position; empty when it can be."""
    # NaN fails every comparison, so each is asked for what must hold.
    if not -_LATITUDE_MAX <= position.latitude <= _LATITUDE_MAX:
        return "position.latitude: must be -90 to 90"
    if not -_LONGITUDE_MAX <= position.longitude <= _LONGITUDE_MAX:
        return "position.longitude: must be -180 to 180"
    if not (position.accuracy_meters >= 0 and isfinite(position.accuracy_meters)):
        return "position.accuracy_meters: must be finite and not below 0"
    return ""


def _distance_detail(away: float, limits: Limits) -> str:
    kilometers, limit = away / 1000, limits.distance_meters / 1000
    text = f"{kilometers:.1f}"
    if float(text) <= limit:  # "20.0 km; the limit is 20 km" would explain nothing
        text = f"{kilometers:.5f}"
    return f"{text} km from the vendor's site; the limit is {limit:g} km"


@lru_cache(maxsize=256)
def _text(minor_units: int, currency_code: str) -> str:
    known = currency_code in MINOR_UNIT_DIGITS
    return str(Money(minor_units, currency_code)) if known else f"{minor_units} minor units"
