"""Tries draft rules and models on payments already assessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy.ext.asyncio import AsyncEngine

from services.fraud import outcomes, wire
from services.fraud.domain.assessment import Limits
from services.fraud.domain.feature_lists import Arrangement
from services.fraud.domain.rules import Rule
from services.fraud.drafts import Drafts
from services.fraud.feature_lists import FeatureLists
from services.fraud.model.scorer import Scorer
from services.fraud.store.assessments import Stored
from services.fraud.tallies import ModelTally, RuleTally
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb

# Payments scored in one call, in a thread: a few milliseconds of trees.
_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Period:
    """Which payments: of those assessed from `start` on and before `end`, the newest `limit`."""

    start: datetime
    end: datetime
    limit: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """An assessment, with its features in today's order and the names of those it lacks."""

    stored: Stored
    record: pb.GetAssessmentResponse
    features: Sequence[float]
    unknown: frozenset[str]


class Backtests:
    """Tries drafts, one at a time, while payments go on being judged.

    Args:
        engine: The fraud service's database.
        lists: Which features assessments were kept with.
        drafts: The draft models.
        limits: What this deployment allows.
    """

    def __init__(
        self, engine: AsyncEngine, lists: FeatureLists, drafts: Drafts, limits: Limits
    ) -> None:
        self._engine = engine
        self._lists = lists
        self._drafts = drafts
        self._limits = limits
        # Each takes what the event loop has to spare: two at once would take it from payments.
        self._turn = asyncio.Lock()

    async def rule(self, rule: Rule, period: Period) -> rules_pb.BacktestRuleResponse:
        """Try a rule that compiles, as one more beside those that judged the payments."""
        tally = RuleTally(rule)
        async with self._turn:
            async for kept in self._kept(period):
                if kept is None or not kept.unknown.isdisjoint(tally.needs):
                    tally.pass_over()
                    continue
                case = wire.unpack(kept.stored.features, kept.features, kept.record, self._limits)
                tally.add(kept.stored, kept.record, case)
        return tally.answer()

    async def model(self, name: str, period: Period) -> rules_pb.BacktestModelResponse:
        """Try a draft model in place of the one that judged the payments.

        Raises:
            Refusal: as `Drafts.open`.
        """
        async with self._turn:
            scorer = await self._drafts.open(name)
            tally = ModelTally(scorer.version)
            waiting: list[_Kept] = []
            async for kept in self._kept(period):
                # Without history no model is asked, and on features it does not know it must not be.
                if kept is None or kept.unknown or not kept.record.history_known:
                    tally.pass_over()
                    continue
                waiting.append(kept)
                if len(waiting) == _AT_ONCE:
                    await _score(scorer, waiting, tally)
                    waiting.clear()
            await _score(scorer, waiting, tally)
            return await asyncio.to_thread(tally.answer)

    async def _kept(self, period: Period) -> AsyncIterator[_Kept | None]:
        """What is kept of each payment; None where nobody knows what its figures mean."""
        arrangements: dict[str, Arrangement | None] = {}
        async for stored in outcomes.read(self._engine, period.start, period.end, period.limit):
            record = pb.GetAssessmentResponse.FromString(stored.record)
            version = record.features_version
            if version not in arrangements:
                known = await self._lists.find(version)
                arrangements[version] = None if known is None else Arrangement(known)
            arrangement = arrangements[version]
            features = None
            if arrangement is not None:
                features = arrangement.arrange(wire.unpack_features(stored.features))
            if arrangement is None or features is None:
                yield None
            else:
                yield _Kept(stored, record, features, arrangement.unknown)


async def _score(scorer: Scorer, waiting: Sequence[_Kept], tally: ModelTally) -> None:
    matrix = np.array([kept.features for kept in waiting], np.float32)
    scores = await asyncio.to_thread(scorer.score, matrix)
    for number, (kept, score) in enumerate(zip(waiting, scores.tolist(), strict=True)):
        if number % outcomes.YIELD_EVERY == 0:
            await asyncio.sleep(0)
        tally.add(kept.stored, kept.record, score)
