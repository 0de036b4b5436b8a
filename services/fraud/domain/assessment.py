"""What the checks say of one payment: a decision, a score and reasons a person can read."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.fraud.domain.tiers import Tier
from services.money import Money


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
    RULE = "RULE"
    MODEL = "MODEL"
    HISTORY_UNAVAILABLE = "HISTORY_UNAVAILABLE"
    RULE_FAILED = "RULE_FAILED"
    DENY_LISTED = "DENY_LISTED"
    ALLOW_LISTED = "ALLOW_LISTED"


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
        payer: `users/{uuid}`.
        vendor: `users/{uuid}`.
        device: An id of the payer's device; empty when it is not known.
    """

    amount: Money
    site: str
    position: Position | None
    payer: str = ""
    vendor: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a payment stops passing unseen.

    Amounts are minor units, the same number in every currency.

    Attributes:
        distance_meters: How far the device may be from the vendor's site, inclusive.
        position_floor_minor_units: From this amount on, inclusive, a payment needs a position,
            a site and a history that can be read.
        review_minor_units: From this amount on, inclusive, a person must look: for payers on the
            lowest tier, and those whose tier is not known.
        hard_minor_units: Above this amount, exclusive, a payment is refused, whoever pays.
        standard_review_minor_units: As `review_minor_units`, on tier STANDARD; not below it.
        plus_review_minor_units: As `review_minor_units`, on tier PLUS; not below STANDARD's.
    """

    distance_meters: float = 20_000.0
    position_floor_minor_units: int = 500_00
    review_minor_units: int = 5_000_00
    hard_minor_units: int = 100_000_00
    standard_review_minor_units: int = 10_000_00
    plus_review_minor_units: int = 25_000_00

    def review_from(self, tier: Tier) -> int:
        """From this amount on, inclusive, a person must look at what a payer on a tier pays."""
        if tier is Tier.BASIC:  # nearly everybody
            return self.review_minor_units
        return (
            self.standard_review_minor_units
            if tier is Tier.STANDARD
            else self.plus_review_minor_units
        )


@dataclass(frozen=True, slots=True)
class Signal:
    """One reason.

    Attributes:
        code: What was seen.
        reason: The rule's name; without a rule, the code's.
        weight: How much it says by itself: DECLINE_SCORE refuses, REVIEW_SCORE and more asks for a
            person, less is a note.
        detail: In words, with the figures.
    """

    code: Code
    reason: str
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
        shadow: What rules in shadow would have added, and what an ALLOW silenced.
        model_silent: The model was not listened to, whatever its score.
    """

    decision: Decision
    score: int
    signals: tuple[Signal, ...]
    shadow: tuple[Signal, ...] = ()
    model_silent: bool = False


# From this score on a person must look; a signal that weighs DECLINE_SCORE refuses the payment.
REVIEW_SCORE = 50
DECLINE_SCORE = 100
# Facts that cannot be true are more often a defect than an attack.
_FACTS_INVALID_WEIGHT = 60

PASSED = Assessment(Decision.ALLOW, 0, ())
PASSED_UNHEARD = Assessment(Decision.ALLOW, 0, (), model_silent=True)


def not_assessable(problems: Sequence[str]) -> Assessment:
    """The answer for a payment whose facts cannot be true: a person must look.

    Args:
        problems: What is wrong, each naming its field; at least one.
    """
    code = Code.FACTS_INVALID
    return conclude([Signal(code, code.value, _FACTS_INVALID_WEIGHT, each) for each in problems])


def conclude(
    signals: Sequence[Signal], shadow: Iterable[Signal] = (), *, model_silent: bool = False
) -> Assessment:
    """The answer that signals add up to.

    The score treats them as independent: 100 · (1 - Π(1 - weight / 100)), rounded, so that every
    further signal adds to it. The strongest alone decides: notes never add up to a review, nor
    reviews to a refusal.
    """
    if not signals:
        return Assessment(Decision.ALLOW, 0, (), tuple(shadow), model_silent)
    ordered = tuple(sorted(signals, key=_strongest_first))
    strongest = ordered[0].weight
    if strongest >= DECLINE_SCORE:
        return Assessment(Decision.DECLINE, DECLINE_SCORE, ordered, tuple(shadow), model_silent)
    left = 1.0
    for signal in ordered:
        left *= 1 - signal.weight / 100
    score = round(100 * (1 - left))
    if strongest >= REVIEW_SCORE:
        score = min(DECLINE_SCORE - 1, score)
        return Assessment(Decision.REVIEW, score, ordered, tuple(shadow), model_silent)
    score = min(REVIEW_SCORE - 1, score)
    return Assessment(Decision.ALLOW, score, ordered, tuple(shadow), model_silent)


def _strongest_first(signal: Signal) -> int:
    return -signal.weight
