"""The checks as AssessPayments runs them, without the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.fraud.features.derive import FeatureBatch
from services.fraud.features.observation import Observation
from services.fraud.model.scorer import REVIEW_SCORE, Scorer


class Checks:
    """The shipped model."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def judge(
        self, observed: Sequence[Observation], features: FeatureBatch
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which payments are not let through, and the scores of all."""
        if not self._scorer.available:
            return np.zeros(len(observed), bool), np.zeros(len(observed))
        scores = self._scorer.score(features.matrix)
        return scores >= REVIEW_SCORE, scores
