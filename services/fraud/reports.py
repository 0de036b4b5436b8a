"""What rules and model would have done, and how often they were right, from assessments kept."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from services import names, sql
from services.fraud import wire
from services.fraud.domain.assessment import Limits
from services.fraud.domain.language import compile_expression, values_of
from services.fraud.domain.rules import Action, Rule
from services.fraud.store import assessments
from services.fraud.store.assessments import FRAUD, HONEST, Stored
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb

_PAGE = 1_000
_REASONED_MAX = 200_000
_EXAMPLES = 10

_ALLOW = pb.Assessment.DECISION_ALLOW
_DECLINE = pb.Assessment.DECISION_DECLINE
_REVIEW = pb.Assessment.DECISION_REVIEW


async def precision(engine: AsyncEngine, start: datetime, end: datetime) -> pb.GetPrecisionResponse:
    """How often reasons and the bands of the model's score were right."""
    said: dict[tuple[str, bool], pb.Outcomes] = defaultdict(pb.Outcomes)
    passed: dict[tuple[str, bool], pb.Outcomes] = defaultdict(pb.Outcomes)
    async for stored in _range(engine, start, end, _REASONED_MAX, signalled=True):
        record = pb.GetAssessmentResponse.FromString(stored.record)
        reasons = {(each.reason, False) for each in record.assessment.signals}
        reasons |= {(each.reason, True) for each in record.shadow_signals}
        for reason in reasons:
            _add(said[reason], stored.label)
            if record.assessment.decision == _ALLOW:
                _add(passed[reason], stored.label)
    answer = pb.GetPrecisionResponse(
        reasons=[
            pb.ReasonPrecision(
                reason=name, shadow=shadow, said=outcomes, passed=passed[name, shadow]
            )
            for (name, shadow), outcomes in sorted(
                said.items(), key=lambda each: (-each[1].payments, each[0])
            )
        ]
    )
    async with sql.reading(engine) as connection:
        counted = await assessments.count_bands(connection, start, end)
    bands: dict[int, pb.Outcomes] = defaultdict(pb.Outcomes)
    for score, label, count in counted:
        _add(bands[score // 10 * 10], label, count)
    for first in sorted(bands):
        answer.bands.add(score_from=first, score_to=first + 10, outcomes=bands[first])
    return answer


async def backtest(
    engine: AsyncEngine, rule: Rule, start: datetime, end: datetime, *, limit: int, limits: Limits
) -> rules_pb.BacktestRuleResponse:
    """What a rule that compiles would have changed of the newest payments of a time.

    It is tried as one more rule beside those that judged the payment. Payments whose facts could
    not be true are passed over: no rule sees those.
    """
    expression = compile_expression(rule.expression)
    read = values_of(expression.names)
    answer = rules_pb.BacktestRuleResponse()
    changes: dict[tuple[int, int, str], rules_pb.BacktestRuleResponse.Change] = {}
    async for stored in _range(engine, start, end, limit):
        if not stored.features:
            continue
        record = pb.GetAssessmentResponse.FromString(stored.record)
        case = wire.unpack(stored.features, record, limits)
        if case.measures.problem:
            continue
        _add(answer.tried, stored.label)
        holds = expression.holds(read(case))
        if holds is None:
            answer.failed += 1
            continue
        if not holds:
            continue
        _add(answer.matched, stored.label)
        before = record.assessment.decision
        after = _after(before, rule.action)
        if before == after:
            continue
        reason = record.assessment.signals[0].reason if record.assessment.signals else ""
        change = changes.setdefault(
            (before, after, reason),
            rules_pb.BacktestRuleResponse.Change(**{"from": before, "to": after, "reason": reason}),  # type: ignore[arg-type]
        )
        _add(change.outcomes, stored.label)
        if len(change.examples) < _EXAMPLES:
            change.examples.append(names.payment_name(stored.payment_id))
    answer.changes.extend(sorted(changes.values(), key=lambda each: -each.outcomes.payments))
    return answer


def _after(before: int, action: Action) -> int:
    """The decision with one more rule that is true: the strongest counts, and ALLOW beats all."""
    if action is Action.ALLOW:
        return _ALLOW
    if action is Action.DECLINE:
        return _DECLINE
    if action is Action.REVIEW and before == _ALLOW:
        return _REVIEW
    return before


def _add(outcomes: pb.Outcomes, label: int, count: int = 1) -> None:
    outcomes.payments += count
    if label == FRAUD:
        outcomes.fraud += count
    elif label == HONEST:
        outcomes.honest += count


async def _range(
    engine: AsyncEngine, start: datetime, end: datetime, limit: int, *, signalled: bool = False
) -> AsyncIterator[Stored]:
    """Assessments of a time, newest first, a page at a time so that calls are served between."""
    before: UUID | None = None
    left = limit
    while left > 0:
        async with sql.reading(engine) as connection:
            page = await assessments.read_range(
                connection, start, end, limit=min(_PAGE, left), signalled=signalled, before=before
            )
        for number, stored in enumerate(page):
            if number % 50 == 0:
                await asyncio.sleep(0)
            yield stored
        if len(page) < min(_PAGE, left):
            return
        left -= len(page)
        end, before = page[-1].create_time, page[-1].payment_id
