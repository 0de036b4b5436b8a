"""What rules may name: the features, and what is known of the payment exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.fraud.domain.assessment import Facts, Limits
from services.fraud.domain.measures import Measures
from services.fraud.domain.tiers import Tier
from services.fraud.features.incidents import NO_INCIDENTS, Incidents
from services.fraud.features.spec import FEATURES, INDEX
from services.money import MINOR_UNIT_DIGITS, Money

Value = float | int | bool | str


@dataclass(frozen=True, slots=True)
class Case:
    """A payment as rules see it.

    Attributes:
        facts: What came with it; possible, as `measures.problem` is empty.
        measures: What was measured of it.
        features: In the order of the feature list.
        model_score: 0 to 99; -1 without a model.
        history_known: Features rest on counters and profiles that could be read.
        limits: What this deployment allows.
        time: Now, seconds since 1970: what lists and suppressions expire by.
        incidents: What went wrong with offline codes lately.
        tier: The payer's; the lowest when it is not known.
    """

    facts: Facts
    measures: Measures
    features: Sequence[float]
    model_score: float
    history_known: bool
    limits: Limits
    time: float
    incidents: Incidents = NO_INCIDENTS
    tier: Tier = Tier.BASIC


@dataclass(frozen=True, slots=True)
class Variable:
    """What an expression may name.

    Attributes:
        name: As rules write it.
        type: `double`, `int`, `bool` or `string`, as in CEL.
        unit: What it counts in.
        meaning: One line.
        read: Its value for a payment.
        features: The features it is read from.
    """

    name: str
    type: str
    unit: str
    meaning: str
    read: Callable[[Case], Value]
    features: frozenset[str] = frozenset()


def _beyond(case: Case) -> float:
    beyond = case.measures.beyond_meters
    return -1.0 if beyond is None else beyond


def _vendor_usual_km(case: Case) -> float:
    beyond = case.measures.beyond_meters
    excess = case.features[INDEX["vendor_distance_excess_km"]]
    if beyond is None or excess < 0:
        return 0.0
    return max(0.0, (beyond + case.limits.distance_meters) / 1_000 - excess)


def _feature(name: str) -> Callable[[Case], Value]:
    at = INDEX[name]
    return lambda case: case.features[at]


_FACTS: tuple[Variable, ...] = (
    Variable(
        "minor_units",
        "int",
        "minor units",
        "What would be paid, exactly.",
        lambda case: case.facts.amount.minor_units,
    ),
    Variable(
        "currency",
        "string",
        "ISO 4217",
        "The payment's currency.",
        lambda case: case.facts.amount.currency_code,
    ),
    Variable("payer", "string", "name", "`users/{uuid}`.", lambda case: case.facts.payer),
    Variable("vendor", "string", "name", "`users/{uuid}`.", lambda case: case.facts.vendor),
    Variable(
        "payer_tier",
        "string",
        "tier",
        '"BASIC", "STANDARD" or "PLUS"; "BASIC" for a payer nobody knows.',
        lambda case: case.tier.value,
    ),
    Variable(
        "site",
        "string",
        "name",
        "The vendor's site; empty: not said.",
        lambda case: case.facts.site,
    ),
    Variable(
        "device",
        "string",
        "id",
        "The payer's device; empty: no id.",
        lambda case: case.facts.device,
    ),
    Variable(
        "position_usable",
        "bool",
        "yes or no",
        "A position came that a distance can be taken from.",
        lambda case: not case.measures.position_problem,
    ),
    Variable(
        "site_known",
        "bool",
        "yes or no",
        "The vendor has an open site on record.",
        lambda case: case.measures.site_known,
    ),
    Variable(
        "beyond_limit_m",
        "double",
        "m",
        "From the vendor's site, over the distance limit and beyond the position's accuracy, to the "
        "centimetre; 0 or less within the limit; -1 when it cannot be measured.",
        _beyond,
    ),
    Variable(
        "vendor_usual_km",
        "double",
        "km",
        "How far from its site the vendor's payers usually are; 0 when not known.",
        _vendor_usual_km,
        frozenset({"vendor_distance_excess_km"}),
    ),
    Variable(
        "history_known",
        "bool",
        "yes or no",
        "Counters and profiles could be read.",
        lambda case: case.history_known,
    ),
    Variable(
        "model_score",
        "double",
        "score",
        "The model's, 0 to 99; 50: one in a hundred honest payments scores as high. -1: no model.",
        lambda case: case.model_score,
    ),
    Variable(
        "vendor_wrong_codes_1d",
        "double",
        "codes",
        "Decayed count of wrong codes typed in at the vendor's terminals, half-life 1 day. A slip does not count.",
        lambda case: case.incidents.wrong_codes,
    ),
    Variable(
        "vendor_duplicates_7d",
        "double",
        "codes",
        "Decayed count of codes that the vendor's own terminals brought twice, half-life 7 days.",
        lambda case: case.incidents.own_duplicates,
    ),
    Variable(
        "payer_double_spends_28d",
        "double",
        "codes",
        "Decayed count of the payer's codes that two vendors brought, half-life 28 days.",
        lambda case: case.incidents.double_spends,
    ),
    Variable(
        "distance_limit_km",
        "double",
        "km",
        "This deployment's distance limit.",
        lambda case: case.limits.distance_meters / 1_000,
    ),
    Variable(
        "floor_minor_units",
        "int",
        "minor units",
        "From here on a payment needs a position, a site and a history.",
        lambda case: case.limits.position_floor_minor_units,
    ),
    Variable(
        "review_minor_units",
        "int",
        "minor units",
        "From here on a person must look, at what a payer on this one's tier pays.",
        lambda case: case.limits.review_from(case.tier),
    ),
    Variable(
        "hard_minor_units",
        "int",
        "minor units",
        "Above this a payment is refused.",
        lambda case: case.limits.hard_minor_units,
    ),
)

VARIABLES: dict[str, Variable] = {
    each.name: each
    for each in (
        *_FACTS,
        *(
            Variable(
                each.name,
                "double",
                each.unit,
                each.meaning,
                _feature(each.name),
                frozenset({each.name}),
            )
            for each in FEATURES
        ),
    )
}


def features_of(names: Iterable[str]) -> frozenset[str]:
    """The features that some variables are read from."""
    return frozenset[str]().union(*(VARIABLES[name].features for name in names))


def _distance(case: Case) -> str:
    away = case.measures.away_meters
    if away is None:
        return "an unknown distance"
    kilometers, limit = away / 1_000, case.limits.distance_meters / 1_000
    text = f"{kilometers:.1f}"
    if float(text) <= limit:  # "20.0 km; the limit is 20 km" would explain nothing
        text = f"{kilometers:.5f}"
    return f"{text} km"


# What details may name besides variables.
TEXTS: dict[str, Callable[[Case], str]] = {
    "distance": _distance,
    "distance_limit": lambda case: f"{case.limits.distance_meters / 1_000:g} km",
    "position_problem": lambda case: case.measures.position_problem or "it has a position",
}
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


def unknown_placeholders(detail: str) -> list[str]:
    """What a detail names in braces that nobody knows."""
    names = _PLACEHOLDER.findall(detail)
    return [name for name in names if name not in TEXTS and name not in VARIABLES]


def render(detail: str, case: Case) -> str:
    """A detail with the figures of a payment."""
    return _PLACEHOLDER.sub(lambda found: _text(found[1], case), detail)


def _text(name: str, case: Case) -> str:
    if name in TEXTS:
        return TEXTS[name](case)
    # The feature is a float of seven digits; nobody should read a rounded amount.
    variable = VARIABLES["minor_units" if name == "amount" else name]
    value = variable.read(case)
    if variable.unit == "minor units":
        return _money(round(float(value)) if isinstance(value, float) else int(value), case)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _money(minor_units: int, case: Case) -> str:
    return _money_text(minor_units, case.facts.amount.currency_code)


@lru_cache(maxsize=256)
def _money_text(minor_units: int, currency_code: str) -> str:
    known = currency_code in MINOR_UNIT_DIGITS
    return str(Money(minor_units, currency_code)) if known else f"{minor_units} minor units"
