"""Facts from the wire, answers to it, and what of both is kept."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from math import isnan, nan

import numpy as np

from services.fraud.domain import assessment
from services.fraud.domain.assessment import (
    Assessment,
    Decision,
    Facts,
    Limits,
    Position,
    Signal,
)
from services.fraud.domain.measures import Measures, measure
from services.fraud.domain.tiers import Tier
from services.fraud.domain.variables import Case
from services.fraud.features.incidents import Incidents
from services.fraud.features.observation import Observation, ObservedPosition
from services.money import Money
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.user.v1 import user_pb2

DECISIONS = {
    Decision.ALLOW: pb.Assessment.DECISION_ALLOW,
    Decision.REVIEW: pb.Assessment.DECISION_REVIEW,
    Decision.DECLINE: pb.Assessment.DECISION_DECLINE,
}
_CODES = {code: pb.Signal.Code.Value(f"CODE_{code.value}") for code in assessment.Code}
_DECISIONS_KEPT = {value: decision for decision, value in DECISIONS.items()}
_CODES_KEPT = {value: code for code, value in _CODES.items()}
TIERS = {tier: user_pb2.User.Tier.Value(f"TIER_{tier.value}") for tier in Tier}
_TIERS_KNOWN: dict[int, Tier] = {value: tier for tier, value in TIERS.items()}
# Site known, metres to it and metres beyond the limit (NaN: not measured); the features follow.
_MEASURES = struct.Struct("<?dd")


def facts(payment: pb.PaymentFacts) -> Facts:
    """What is known of a payment, for the rules."""
    position = None
    if payment.HasField("position"):
        said = payment.position
        position = Position(said.latitude, said.longitude, said.accuracy_meters, said.mocked)
    return Facts(
        Money(payment.amount.minor_units, payment.amount.currency_code),
        payment.site,
        position,
        payment.payer,
        payment.vendor,
        payment.device,
    )


def observation(
    payment: pb.PaymentFacts, said: Facts, away_meters: float | None, *, now: float
) -> Observation:
    """The same, for counters and profiles.

    Args:
        payment: Possible, as `measures.problem` is empty.
        said: What `facts` made of it.
        away_meters: From the vendor's site.
        now: Seconds since 1970: when it happened, where it does not say.
    """
    position, place = None, said.position
    if place is not None:
        position = ObservedPosition(
            place.latitude, place.longitude, place.accuracy_meters, place.mocked
        )
    occurred = now
    if payment.HasField("occur_time"):
        occurred = payment.occur_time.seconds + payment.occur_time.nanos / 1e9
    age = None
    if payment.HasField("code_age"):
        age = payment.code_age.seconds + payment.code_age.nanos / 1e9
    return Observation(
        payment=payment.payment,
        payer=said.payer,
        vendor=said.vendor,
        amount=said.amount.minor_units,
        occur_time=occurred,
        position=position,
        site_distance_meters=away_meters,
        device=said.device,
        offline=payment.offline,
        code_age_seconds=age,
    )


def signals(said: Iterable[Signal]) -> list[pb.Signal]:
    """Reasons as callers see them."""
    return [
        pb.Signal(
            code=_CODES[each.code], reason=each.reason, weight=each.weight, detail=each.detail
        )
        for each in said
    ]


def answer(payment: str, found: Assessment) -> pb.Assessment:
    """An assessment as callers see it."""
    return pb.Assessment(
        payment=payment,
        decision=DECISIONS[found.decision],
        score=found.score,
        signals=signals(found.signals),
    )


def assessment_of(record: pb.GetAssessmentResponse) -> Assessment:
    """An assessment out of what is kept of it."""
    said = record.assessment
    return Assessment(
        _DECISIONS_KEPT[said.decision],
        said.score,
        tuple(_signal(each) for each in said.signals),
        tuple(_signal(each) for each in record.shadow_signals),
        record.model_silent,
    )


def _signal(said: pb.Signal) -> Signal:
    return Signal(_CODES_KEPT[said.code], said.reason, said.weight, said.detail)


def incidents_message(known: Incidents) -> pb.CodeIncidents:
    """What went wrong with offline codes."""
    return pb.CodeIncidents(
        vendor_wrong_codes=known.wrong_codes,
        vendor_duplicates=known.own_duplicates,
        payer_double_spends=known.double_spends,
    )


def tier(said: int) -> Tier:
    """A tier; the lowest for none, as before there were tiers, and for one this release does not know."""
    return _TIERS_KNOWN.get(said, Tier.BASIC)


def pack(measures: Measures, features: Sequence[float]) -> bytes:
    """What a payment was judged on, to be kept."""
    away, beyond = measures.away_meters, measures.beyond_meters
    return struct.pack(
        f"{_MEASURES.format}{len(features)}f",
        measures.site_known,
        nan if away is None else away,
        nan if beyond is None else beyond,
        *features,
    )


def unpack_features(kept: bytes) -> list[float]:
    """The features out of what `pack` made; none when it could not be judged."""
    found: list[float] = np.frombuffer(kept, "<f4", offset=_MEASURES.size).tolist()
    return found


def unpack(
    kept: bytes, features: Sequence[float], record: pb.GetAssessmentResponse, limits: Limits
) -> Case:
    """The payment as the rules saw it, for trying other rules on it.

    Args:
        kept: What `pack` made.
        features: What `unpack_features` finds there, in today's order.
        record: The assessment.
        limits: What this deployment allows.
    """
    said = facts(record.facts)
    site_known, away, beyond = _MEASURES.unpack_from(kept)
    # What was wrong with the position follows from the facts alone.
    problem = measure(said, (), limits)
    measures = Measures(
        problem.problem,
        problem.position_problem,
        site_known,
        None if isnan(away) else away,
        None if isnan(beyond) else beyond,
    )
    return Case(
        facts=said,
        measures=measures,
        features=features,
        history_known=record.history_known,
        model_score=record.model_score,
        limits=limits,
        time=record.create_time.seconds + record.create_time.nanos / 1e9,
        incidents=Incidents(
            record.incidents.vendor_wrong_codes,
            record.incidents.vendor_duplicates,
            record.incidents.payer_double_spends,
        ),
        tier=tier(record.payer_tier),
    )
