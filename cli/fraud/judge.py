"""The checks as AssessPayments runs them, without the wire: rules as shipped, and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.fraud.domain.assessment import Decision, Facts, Limits, Position, Site
from services.fraud.domain.guard import Guard
from services.fraud.domain.measures import measure
from services.fraud.domain.rulebook import RuleBook, judge_batch
from services.fraud.domain.rules import built_in
from services.fraud.domain.variables import Case
from services.fraud.features.derive import FeatureBatch
from services.fraud.features.observation import Observation
from services.fraud.model.scorer import Scorer
from services.money import Money

# The worlds name none; all amounts are hundredths.
_CURRENCY = "BRL"


class Checks:
    """The built-in rules with the default limits, and a model.

    Args:
        scorer: Without a model the rules judge alone.
        sites: Where each vendor sells, by its name.
    """

    def __init__(self, scorer: Scorer, sites: Mapping[str, tuple[Site, ...]]) -> None:
        self._scorer = scorer
        self._sites = sites
        self._book = RuleBook(built_in())
        self._guard = Guard()
        self._limits = Limits()

    def judge(
        self, observed: Sequence[Observation], features: FeatureBatch
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which payments are not let through, and by what a desk would sort all of them."""
        available = self._scorer.available
        scores = self._scorer.score(features.matrix) if available else np.full(len(observed), -1.0)
        cases = [
            self._case(seen, vector.values, score)
            for seen, vector, score in zip(observed, features, scores.tolist(), strict=True)
        ]
        found = judge_batch(self._book, cases, self._guard)
        stopped = np.array([each.decision is not Decision.ALLOW for each in found])
        # The assessment's score is whole; the model's own breaks its ties.
        rank = np.array([float(each.score) for each in found]) + scores / 1_000
        return stopped, rank

    def _case(self, seen: Observation, features: tuple[float, ...], score: float) -> Case:
        position = None
        if seen.position is not None:
            said = seen.position
            position = Position(said.latitude, said.longitude, said.accuracy_meters, said.mocked)
        facts = Facts(
            Money(seen.amount, _CURRENCY), "", position, seen.payer, seen.vendor, seen.device
        )
        return Case(
            facts,
            measure(facts, self._sites.get(seen.vendor, ()), self._limits),
            features,
            history_known=True,
            model_score=score,
            limits=self._limits,
            time=seen.occur_time,
        )
