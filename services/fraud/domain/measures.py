"""What can be told of a payment by itself: where it happened, against where its vendor sells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from services.fraud.domain.assessment import Facts, Limits, Position, Site
from services.fraud.domain.distance import distance_meters
from services.money import MINOR_UNIT_DIGITS

# Degrees.
_LATITUDE_MAX = 90.0
_LONGITUDE_MAX = 180.0


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured of one payment.

    Attributes:
        problem: What cannot be true of its facts, naming the field; empty when all can be.
        position_problem: Why no distance can be taken from its position; empty when one can.
        site_known: The vendor has an open site to measure from.
        away_meters: From the position to that site, the nearest when none was named; None when
            either is not known.
        beyond_meters: How far that is over the limit, beyond the position's own accuracy, to the
            centimetre; not above 0 when within. None as before.
    """

    problem: str
    position_problem: str
    site_known: bool
    away_meters: float | None
    beyond_meters: float | None


def measure(facts: Facts, sites: Sequence[Site], limits: Limits) -> Measures:
    """Measure one payment. Total: whatever the facts hold, there is an answer.

    Args:
        facts: The payment.
        sites: All sites of the vendor, open and closed; none when the vendor is not known.
        limits: Where the distance limit lies.
    """
    places = _places(facts.site, sites)
    position = facts.position
    problem = _amount_problem(facts) or ("" if position is None else _problem(position))
    if problem:
        return Measures(problem, "", bool(places), None, None)
    if position is None:
        return Measures("", "no position came with it", bool(places), None, None)
    if position.accuracy_meters > limits.distance_meters:
        # Taken at its word, a device that is "somewhere within 100 km" would be near everything.
        vague = f"the position is only good to {position.accuracy_meters / 1000:.1f} km"
        return Measures("", vague, bool(places), None, None)
    if not places:
        return Measures("", "", site_known=False, away_meters=None, beyond_meters=None)
    away = min(
        distance_meters(position.latitude, position.longitude, site.latitude, site.longitude)
        for site in places
    )
    # To the centimetre: a place computed to lie exactly at the limit passes, whatever the last bit
    # of the computation says.
    beyond = round(away - position.accuracy_meters - limits.distance_meters, 2)
    return Measures("", "", site_known=True, away_meters=away, beyond_meters=beyond)


def _places(named: str, sites: Sequence[Site]) -> list[Site]:
    """Where to measure from: the named site when it is open, else every open one."""
    places = [site for site in sites if site.open]
    if named:
        for site in places:
            if site.name == named:
                return [site]
    return places


def _amount_problem(facts: Facts) -> str:
    if facts.amount.minor_units <= 0:
        return "amount: must be above zero"
    if facts.amount.currency_code not in MINOR_UNIT_DIGITS:
        return f"amount: {facts.amount.currency_code!r} is no currency we keep"
    return ""


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
