"""The hot path: payments through measures, features, model and rules, a batch at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from opentelemetry import metrics
from redis.exceptions import RedisError

from services.fraud import wire
from services.fraud.domain.assessment import Assessment, Decision, Limits, Site, not_assessable
from services.fraud.domain.guard import Guard
from services.fraud.domain.measures import measure
from services.fraud.domain.rulebook import RuleBook
from services.fraud.domain.tiers import Tier
from services.fraud.domain.variables import Case
from services.fraud.features.derive import FeatureBatch
from services.fraud.features.incidents import NO_INCIDENTS
from services.fraud.features.observation import Observation
from services.fraud.features.store import FeatureStore, without_history
from services.fraud.model.scorer import Scorer
from tallystick.fraud.v1 import fraud_service_pb2 as pb

log = logging.getLogger(__name__)

# After it failed: every batch would wait that long while Valkey is away.
_HISTORY_PAUSE_SECONDS = 1.0
# Payments let through whose profiles wait to learn from them. They ride along with the next batch.
_SETTLED_MAX = 2_000

_degraded = metrics.get_meter("tallystick.fraud").create_counter(
    "tallystick.fraud.history.unavailable",
    description="Payments judged without counters and profiles.",
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A payment and what was said of it.

    Attributes:
        payment: As it was asked.
        assessment: What was said.
        answer: The same, as callers see it.
        case: What it was judged on; None when its facts break the contract.
        model_version: Which model; empty without one.
        rules_revision: Which rules.
    """

    payment: pb.PaymentFacts
    assessment: Assessment
    answer: pb.Assessment
    case: Case | None
    model_version: str
    rules_revision: int


class Assessor:
    """Judges payments.

    Args:
        history: Counters and profiles.
        scorer: The model.
        book: The rules as they are now.
        guard: Watches what rules decline.
        limits: What this deployment allows.
        now: Seconds since 1970.
        clock: Seconds that only grow.
        history_seconds: How long counters and profiles are waited for; payment waits 150 ms for it all.
    """

    def __init__(
        self,
        history: FeatureStore,
        scorer: Scorer,
        book: Callable[[], RuleBook],
        guard: Guard,
        limits: Limits,
        *,
        now: Callable[[], float],
        clock: Callable[[], float],
        history_seconds: float,
    ) -> None:
        self._history = history
        self._scorer = scorer
        self._book = book
        self._guard = guard
        self._limits = limits
        self._now = now
        self._clock = clock
        self._history_seconds = history_seconds
        self._ask_again_at = 0.0
        self._settled: list[Observation] = []

    async def assess(
        self,
        payments: Sequence[pb.PaymentFacts],
        problems: Sequence[Sequence[tuple[str, str]]],
        sites: Callable[[str], Sequence[Site]],
        tiers: Callable[[str], Tier],
    ) -> list[Judged]:
        """Judge payments, in the order asked. Total: there is an answer for each.

        Args:
            payments: What came.
            problems: How each breaks the contract; usually not at all.
            sites: All sites of a vendor.
            tiers: The tier of a payer.
        """
        now = self._now()
        facts = [wire.facts(payment) for payment in payments]
        measured = [
            None if problem else measure(said, sites(said.vendor), self._limits)
            for said, problem in zip(facts, problems, strict=True)
        ]
        possible = [at for at, each in enumerate(measured) if each and not each.problem]
        observed = [
            wire.observation(payments[at], facts[at], measures.away_meters, now=now)
            for at in possible
            if (measures := measured[at])
        ]
        features, known = await self._features(observed, now)
        scores = (
            self._scorer.score(features.matrix).tolist()
            if self._scorer.available and known
            else [-1.0] * len(observed)
        )
        rows = features.matrix.tolist()
        told = dict(zip(possible, zip(rows, scores, strict=True), strict=True))
        happened = dict(zip(possible, features.incidents, strict=True))
        cases = [
            None
            if measures is None
            else Case(
                said,
                measures,
                *told.get(at, ([], -1.0)),
                known,
                self._limits,
                now,
                happened.get(at, NO_INCIDENTS),
                tiers(said.payer),
            )
            for at, (said, measures) in enumerate(zip(facts, measured, strict=True))
        ]
        judged = self._judge(payments, problems, cases)
        if known:
            self._keep(
                seen
                for at, seen in zip(possible, observed, strict=True)
                if judged[at].assessment.decision is Decision.ALLOW
            )
        return judged

    def _judge(
        self,
        payments: Sequence[pb.PaymentFacts],
        problems: Sequence[Sequence[tuple[str, str]]],
        cases: Sequence[Case | None],
    ) -> list[Judged]:
        book, version = self._book(), self._scorer.version
        judged: list[Judged] = []
        for payment, problem, case in zip(payments, problems, cases, strict=True):
            if case is None:
                found = not_assessable([f"{field}: {what}" for field, what in problem])
            else:
                found = book.judge(case, self._guard)
            answer = wire.answer(payment.payment, found)
            judged.append(Judged(payment, found, answer, case, version, book.revision))
        return judged

    async def settle_now(self) -> None:
        """Let profiles learn from what was let through since the last batch."""
        if not self._settled or self._clock() < self._ask_again_at:
            return
        settled, self._settled = self._settled, []
        try:
            async with asyncio.timeout(1.0):
                await self._history.settle(settled, now=self._now())
        except (RedisError, OSError, TimeoutError) as error:
            self._settled = [*settled, *self._settled][:_SETTLED_MAX]
            self._away(error)

    async def _features(
        self, observed: Sequence[Observation], now: float
    ) -> tuple[FeatureBatch, bool]:
        """The features, and whether they rest on history."""
        if not observed:
            return without_history(observed, now=now), True
        if self._clock() >= self._ask_again_at:
            settled, self._settled = self._settled, []
            try:
                async with asyncio.timeout(self._history_seconds):
                    return await self._history.observe(observed, now=now, settled=settled), True
            except (RedisError, OSError, TimeoutError) as error:
                # It may have learnt from them all the same, and knows them then by their ids.
                self._settled = [*settled, *self._settled][:_SETTLED_MAX]
                self._away(error)
        _degraded.add(len(observed))
        return without_history(observed, now=now), False

    def _away(self, error: Exception) -> None:
        self._ask_again_at = self._clock() + _HISTORY_PAUSE_SECONDS
        log.warning("no history: rules without it", extra={"cause": repr(error)[:300]})

    def _keep(self, seen: Iterable[Observation]) -> None:
        self._settled.extend(seen)
        del self._settled[:-_SETTLED_MAX]
