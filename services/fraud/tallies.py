"""What back-tests count: decisions that would have been others, and what those payments were."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from services import names
from services.fraud import outcomes, wire
from services.fraud.domain.language import compile_expression
from services.fraud.domain.rulebook import with_model_score
from services.fraud.domain.rules import Action, Rule
from services.fraud.domain.variables import Case, features_of
from services.fraud.store.assessments import FRAUD, HONEST, UNKNOWN, Stored
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb

_EXAMPLES = 10
_INT64_MAX = 2**63 - 1
_QUANTILES = (0.5, 0.9, 0.99)

_ALLOW = pb.Assessment.DECISION_ALLOW
_DECLINE = pb.Assessment.DECISION_DECLINE
_REVIEW = pb.Assessment.DECISION_REVIEW

_Scores = rules_pb.BacktestModelResponse.Scores


class RuleTally:
    """What one more rule would have changed.

    Args:
        rule: It compiles.

    Attributes:
        needs: The features it is read from.
    """

    def __init__(self, rule: Rule) -> None:
        self._action = rule.action
        self._expression = compile_expression(rule.expression)
        self.needs = features_of(self._expression.names)
        self._answer = rules_pb.BacktestRuleResponse()
        self._changes: dict[tuple[int, int, str], rules_pb.BacktestRuleResponse.Change] = {}

    def pass_over(self) -> None:
        """Count a payment the rule cannot be tried on."""
        self._answer.not_comparable += 1

    def add(self, stored: Stored, record: pb.GetAssessmentResponse, case: Case) -> None:
        """Try it on a payment."""
        outcomes.count(self._answer.tried, stored.label)
        holds = self._expression.holds(self._expression.read(case))
        if holds is None:
            self._answer.failed += 1
            return
        if not holds:
            return
        outcomes.count(self._answer.matched, stored.label)
        before = record.assessment.decision
        after = _after(before, self._action)
        if before == after:
            return
        reason = record.assessment.signals[0].reason if record.assessment.signals else ""
        change = self._changes.setdefault(
            (before, after, reason),
            rules_pb.BacktestRuleResponse.Change(**{"from": before, "to": after, "reason": reason}),  # type: ignore[arg-type]
        )
        outcomes.count(change.outcomes, stored.label)
        if len(change.examples) < _EXAMPLES:
            change.examples.append(names.payment_name(stored.payment_id))

    def answer(self) -> rules_pb.BacktestRuleResponse:
        """All of it; most frequent changes first."""
        self._answer.changes.extend(
            sorted(self._changes.values(), key=lambda each: -each.outcomes.payments)
        )
        return self._answer


class ModelTally:
    """What another model would have changed.

    Args:
        version: The model's.
    """

    def __init__(self, version: str) -> None:
        self._answer = rules_pb.BacktestModelResponse(model_version=version)
        self._changes: dict[tuple[int, int, str, str], rules_pb.BacktestModelResponse.Change] = {}
        self._labels = array("b")
        self._drafts = array("d")
        self._befores = array("d")

    def pass_over(self) -> None:
        """Count a payment the model cannot be tried on."""
        self._answer.not_comparable += 1

    def add(self, stored: Stored, record: pb.GetAssessmentResponse, score: float) -> None:
        """Put its score of a payment in place of the one that counted."""
        outcomes.count(self._answer.tried, stored.label)
        self._answer.silent += record.model_silent
        self._labels.append(stored.label)
        self._drafts.append(score)
        self._befores.append(record.model_score)
        before = wire.assessment_of(record)
        after = with_model_score(before, score)
        if before.decision is after.decision:
            return
        said = (
            wire.DECISIONS[before.decision],
            wire.DECISIONS[after.decision],
            before.signals[0].reason if before.signals else "",
            after.signals[0].reason if after.signals else "",
        )
        change = self._changes.get(said)
        if change is None:
            from_, to, reason, new_reason = said
            change = self._changes[said] = rules_pb.BacktestModelResponse.Change(
                **{"from": from_, "to": to, "reason": reason, "new_reason": new_reason}  # type: ignore[arg-type]
            )
        outcomes.count(change.outcomes, stored.label)
        _add_worth(change, stored.label, record.facts)
        if len(change.examples) < _EXAMPLES:
            change.examples.append(names.payment_name(stored.payment_id))

    def answer(self) -> rules_pb.BacktestModelResponse:
        """All of it; most frequent changes first."""
        self._answer.changes.extend(
            sorted(self._changes.values(), key=lambda each: -each.outcomes.payments)
        )
        self._answer.scores.extend(self._scores())
        return self._answer

    def _scores(self) -> Iterator[_Scores]:
        labels, drafts = np.array(self._labels), np.array(self._drafts)
        befores = np.array(self._befores)
        for of, chosen in (
            (_Scores.OF_ALL, labels >= UNKNOWN),
            (_Scores.OF_FRAUD, labels == FRAUD),
            (_Scores.OF_HONEST, labels == HONEST),
        ):
            if not chosen.any():
                continue
            scores = _Scores(of=of, draft=_spread(drafts[chosen]))
            judged = befores[chosen & (befores >= 0)]
            if len(judged):
                scores.before.CopyFrom(_spread(judged))
            yield scores


def _spread(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> rules_pb.BacktestModelResponse.Spread:
    p50, p90, p99 = np.quantile(scores, _QUANTILES, method="inverted_cdf").tolist()
    return rules_pb.BacktestModelResponse.Spread(
        payments=len(scores),
        mean=float(scores.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        max=float(scores.max()),
    )


def _add_worth(
    change: rules_pb.BacktestModelResponse.Change, label: int, facts: pb.PaymentFacts
) -> None:
    code, minor_units = facts.amount.currency_code, facts.amount.minor_units
    for known in change.worth:
        if known.currency_code == code:
            worth = known
            break
    else:
        worth = change.worth.add(currency_code=code)
    worth.minor_units = _sum(worth.minor_units, minor_units)
    if label == FRAUD:
        worth.fraud_minor_units = _sum(worth.fraud_minor_units, minor_units)
    elif label == HONEST:
        worth.honest_minor_units = _sum(worth.honest_minor_units, minor_units)


def _sum(one: int, other: int) -> int:
    return min(one + other, _INT64_MAX)


def _after(before: int, action: Action) -> int:
    """The decision with one more rule that is true: the strongest counts, and ALLOW beats all."""
    if action is Action.ALLOW:
        return _ALLOW
    if action is Action.DECLINE:
        return _DECLINE
    if action is Action.REVIEW and before == _ALLOW:
        return _REVIEW
    return before
