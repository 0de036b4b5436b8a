"""The built-in rules on one payment of a payer and a vendor nobody knows yet."""

from __future__ import annotations

from services.fraud.domain.assessment import Limits
from services.fraud.domain.guard import Guard
from services.fraud.domain.measures import measure
from services.fraud.domain.rulebook import RuleBook
from services.fraud.domain.rules import built_in
from services.fraud.domain.variables import Case
from services.fraud.features.observation import Observation, ObservedPosition
from services.fraud.features.spec import INDEX, NAMES
from services.fraud.features.store import without_history

BUILT_IN = RuleBook(built_in())
NOW = 1_800_000_000.0


def assess(facts, sites, limits):
    """What the built-in rules say."""
    return BUILT_IN.judge(case_of(facts, sites, limits), Guard())


def case_of(facts, sites=(), limits=None, *, history_known=True, model_score=-1.0, **features):
    """A payment as rules see it; `features` in place of those of somebody nobody knows."""
    limits = limits or Limits()
    measures = measure(facts, sites, limits)
    row = [0.0] * len(NAMES)
    if not measures.problem:
        position = None
        if facts.position is not None:
            said = facts.position
            position = ObservedPosition(
                said.latitude, said.longitude, said.accuracy_meters, said.mocked
            )
        seen = Observation(
            "payments/1",
            facts.payer or "users/p",
            facts.vendor or "users/v",
            facts.amount.minor_units,
            NOW,
            position,
            measures.away_meters,
            facts.device,
        )
        row = without_history([seen], now=NOW).matrix.tolist()[0]
    for name, value in features.items():
        row[INDEX[name]] = value
    return Case(facts, measures, row, model_score, history_known, limits, NOW)
