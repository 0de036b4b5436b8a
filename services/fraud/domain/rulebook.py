"""All rules and lists of one revision, compiled: judges payments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.fraud.domain.assessment import (
    DECLINE_SCORE,
    PASSED,
    PASSED_UNHEARD,
    REVIEW_SCORE,
    Assessment,
    Code,
    Signal,
    conclude,
    not_assessable,
)
from services.fraud.domain.guard import Guard
from services.fraud.domain.language import Expressions
from services.fraud.domain.rules import Action, Entry, List, Mode, Rule, Suppression
from services.fraud.domain.variables import Case, render
from services.fraud.features.spec import INDEX

_CODES = {code.value: code for code in Code}
_BELOW_FLOOR = "_BELOW_FLOOR"
_NOTE_WEIGHT = 10
_COUNT_1D, _COUNT_30D = INDEX["count_1d"], INDEX["count_30d"]
# What the model says of a payer it knows nothing of is a guess about strangers: somebody's first payments,
# one after the other, look like a card being tried. Until so many of a payer's payments lie more than a day
# or so back, rules alone decide, except where newcomers are rare. The score is kept all the same.
_MODEL_PAYMENTS_MIN = 3.0


@dataclass(frozen=True, slots=True)
class _Known:
    rule: Rule
    code: Code


class RuleBook:
    """Rules and lists of one revision.

    Args:
        rules: As they are now, each of which compiles; those that are off are passed over.
        entries: Allow and deny lists.
        suppressions: Rules that are quiet about somebody.
        revision: Counts every change.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        entries: Iterable[Entry] = (),
        suppressions: Iterable[Suppression] = (),
        *,
        revision: int = 0,
    ) -> None:
        self.revision = revision
        self._rules = [
            _Known(rule, _code(rule.name))
            for rule in sorted(rules, key=_action)
            if rule.mode is not Mode.OFF
        ]
        self._expressions = Expressions([each.rule.expression for each in self._rules])
        self._lists: dict[tuple[List, str], float] = {
            (each.list, each.entity): each.expire_time for each in entries
        }
        self._suppressed: dict[tuple[str, str], float] = {
            (each.rule, each.entity): each.expire_time for each in suppressions
        }

    def judge(self, case: Case, guard: Guard) -> Assessment:
        """Judge one payment. Total: whatever comes, there is an answer.

        Facts that cannot be true ask for a person; the deny list declines; then rules that allow,
        and the allow list, pass; then rules that decline; then those that review.

        Args:
            case: The payment.
            guard: Watches how much each rule declines; told of every payment, in order.
        """
        if case.measures.problem:
            return not_assessable([case.measures.problem])
        newcomer = _is_newcomer(case)
        guard.count(newcomer=newcomer)
        listed = self._listed(case)
        if listed is not None and listed.code is Code.DENY_LISTED:
            return conclude([listed])
        held = self._expressions.hold(case)
        silent = newcomer and guard.newcomers_are_usual()
        model = None if silent else _model_signal(case.model_score)
        if not held and listed is None:
            return conclude([model]) if model else PASSED_UNHEARD if silent else PASSED
        said: list[Signal] = [] if model is None else [model]
        shadow: list[Signal] = []
        allowed = listed
        for number, holds in held:
            each = self._rules[number]
            if self._is_quiet(each.rule.name, case):
                continue
            signal = self._signal(each, case, guard) if holds else _failed(each.rule, case)
            if each.rule.mode is Mode.SHADOW:
                shadow.append(signal)
            elif holds and each.rule.action is Action.ALLOW:
                allowed = allowed or signal
            else:
                said.append(signal)
        if allowed is None:
            return conclude(said, shadow, model_silent=silent)
        notes = [signal for signal in said if signal.weight < REVIEW_SCORE]
        silenced = [signal for signal in said if signal.weight >= REVIEW_SCORE]
        return conclude([allowed, *notes], [*silenced, *shadow], model_silent=silent)

    def _signal(self, each: _Known, case: Case, guard: Guard) -> Signal:
        rule = each.rule
        weight = rule.weight
        detail = render(rule.detail, case)
        if rule.action is Action.DECLINE and rule.mode is Mode.LIVE and guard.stops(rule.name):
            weight = REVIEW_SCORE
            detail += "; the rule declines too much lately, so a person must look"
        return Signal(each.code, rule.name, weight, detail)

    def _listed(self, case: Case) -> Signal | None:
        if not self._lists:
            return None
        for which, code, weight in (
            (List.DENY, Code.DENY_LISTED, DECLINE_SCORE),
            (List.ALLOW, Code.ALLOW_LISTED, 0),
        ):
            for entity in _entities(case):
                if self._lists.get((which, entity), 0.0) > case.time:
                    name = which.name.lower()
                    return Signal(code, code.value, weight, f"{entity} is on the {name} list")
        return None

    def _is_quiet(self, rule: str, case: Case) -> bool:
        return bool(self._suppressed) and any(
            self._suppressed.get((rule, entity), 0.0) > case.time for entity in _entities(case)
        )


def judge_batch(book: RuleBook, cases: Sequence[Case], guard: Guard) -> list[Assessment]:
    """Judge payments, one after the other: the same answers as for each alone."""
    return [book.judge(case, guard) for case in cases]


def with_model_score(before: Assessment, score: float) -> Assessment:
    """What would have been said, had the model scored otherwise; rules are left as they spoke.

    Args:
        before: What `RuleBook.judge` said.
        score: The model's, 0 to 99.
    """
    denied = any(signal.code is Code.DENY_LISTED for signal in before.signals)
    if before.model_silent or denied:
        return before
    said = [signal for signal in before.signals if signal.code is not Code.MODEL]
    shadow = [signal for signal in before.shadow if signal.code is not Code.MODEL]
    model = _model_signal(score)
    if model is None:
        return conclude(said, shadow)
    # Only what allows weighs nothing, and it silences the model.
    if any(signal.weight == 0 for signal in said):
        return conclude(said, [model, *shadow])
    return conclude([model, *said], shadow)


def _action(rule: Rule) -> Action:
    return rule.action


def _code(name: str) -> Code:
    return _CODES.get(name.removesuffix(_BELOW_FLOOR), Code.RULE)


def _entities(case: Case) -> list[str]:
    facts = case.facts
    found = [facts.payer, facts.vendor]
    if facts.device:
        found.append(f"devices/{facts.device}")
    return found


def _is_newcomer(case: Case) -> bool:
    return case.features[_COUNT_30D] - case.features[_COUNT_1D] < _MODEL_PAYMENTS_MIN


def _model_signal(score: float) -> Signal | None:
    if score < REVIEW_SCORE:
        return None
    # Of the model's scale: every 25 points are ten times rarer among honest payments.
    rare = round(10 ** (score / 25))
    detail = f"at most one in {rare:,} honest payments looks as unlike the payer and the vendor"
    return Signal(Code.MODEL, Code.MODEL.value, min(DECLINE_SCORE - 1, math.floor(score)), detail)


def _failed(rule: Rule, case: Case) -> Signal:
    """A rule that cannot be computed for a payment is a reason to look, not to pass."""
    above = case.facts.amount.minor_units >= case.limits.position_floor_minor_units
    weight = REVIEW_SCORE if above else _NOTE_WEIGHT
    detail = f"rule {rule.name}, version {rule.version}, cannot be computed for this payment"
    return Signal(Code.RULE_FAILED, Code.RULE_FAILED.value, weight, detail)
