"""Rules and lists as analysts keep them."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.fraud.domain.assessment import DECLINE_SCORE, Facts, Limits
from services.fraud.domain.language import (
    Expression,
    ExpressionError,
    check_cost,
    compile_expression,
)
from services.fraud.domain.measures import Measures
from services.fraud.domain.tiers import Tier
from services.fraud.domain.variables import Case, unknown_placeholders
from services.fraud.features.incidents import Incidents
from services.fraud.features.spec import FEATURES
from services.money import Money

RULES_MAX = 200
_REVIEW_WEIGHT = 60
_NOTE_WEIGHT = 10
_REVIEW_WEIGHT_MIN = 50


class Action(enum.IntEnum):
    """What a rule does, numbered as in `fraud.v1.Rule.Action`, which is the order they count in."""

    ALLOW = 1
    DECLINE = 2
    REVIEW = 3
    NOTE = 4


class Mode(enum.IntEnum):
    """Whether a rule counts, numbered as in `fraud.v1.Rule.Mode`."""

    LIVE = 1
    SHADOW = 2
    OFF = 3


class List(enum.IntEnum):
    """A list, numbered as in `fraud.v1.Entry.List`."""

    ALLOW = 1
    DENY = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in one version; the contract says what each field means."""

    name: str
    expression: str
    action: Action
    mode: Mode
    weight: int
    detail: str
    version: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """Somebody on a list: `users/{uuid}` or `devices/{id}`, until seconds since 1970."""

    list: List
    entity: str
    expire_time: float


@dataclass(frozen=True, slots=True)
class Suppression:
    """A rule that is quiet about an entity, until seconds since 1970."""

    rule: str
    entity: str
    expire_time: float


def weight_of(action: Action, asked: int) -> int:
    """The weight a rule has, in place of 0.

    Raises:
        ExpressionError: it contradicts the action.
    """
    if action is Action.DECLINE:
        return DECLINE_SCORE
    if action is Action.ALLOW:
        return 0
    if action is Action.NOTE:
        if asked >= _REVIEW_WEIGHT_MIN:
            raise ExpressionError(f"weight {asked}: a note weighs less than {_REVIEW_WEIGHT_MIN}")
        return asked or _NOTE_WEIGHT
    if 0 < asked < _REVIEW_WEIGHT_MIN:
        raise ExpressionError(f"weight {asked}: a review weighs {_REVIEW_WEIGHT_MIN} or more")
    return asked or _REVIEW_WEIGHT


def check(rule: Rule) -> Expression:
    """See that a rule can be used; answers its expression.

    Raises:
        ExpressionError: it cannot, and where it is wrong.
        CostError: it takes too long.
    """
    expression = compile_expression(rule.expression)
    if unknown := unknown_placeholders(rule.detail):
        raise ExpressionError(f"detail: there is no {{{unknown[0]}}} to put there")
    check_cost(expression, samples())
    return expression


@cache
def samples() -> tuple[Case, ...]:
    """Payments a new rule is tried on: unknown, ordinary, and everything at once."""
    measures = Measures("", "", site_known=True, away_meters=25_000.0, beyond_meters=5_000.0)
    nowhere = Measures("", "no position came with it", False, None, None)  # noqa: FBT003
    levels: tuple[tuple[Measures, float, int, str, Tier], ...] = (
        (nowhere, -1.0, 1, "", Tier.BASIC),
        (nowhere, 0.0, 499_99, "", Tier.BASIC),
        (measures, 1.0, 100_00, "device", Tier.STANDARD),
        (measures, 1e6, 2**63 - 1, "d" * 64, Tier.PLUS),
    )
    name = "users/00000000-0000-0000-0000-000000000000"
    return tuple(
        Case(
            Facts(Money(minor_units, "INR"), "", None, name, name, device),
            measured,
            (level,) * len(FEATURES),
            history_known=level > 0,
            model_score=min(level, 99.0),
            limits=Limits(),
            time=0.0,
            incidents=Incidents(max(level, 0.0), max(level, 0.0), max(level, 0.0)),
            tier=tier,
        )
        for measured, level, minor_units, device, tier in levels
    )


@cache
def built_in() -> Sequence[Rule]:
    """The rules a new deployment starts with."""
    said = tomllib.loads(Path(__file__).with_name("builtin_rules.toml").read_text())
    return tuple(
        Rule(
            each["name"],
            each["expression"],
            Action[each["action"]],
            Mode[each.get("mode", "LIVE")],
            weight_of(Action[each["action"]], each.get("weight", 0)),
            each["detail"],
        )
        for each in said["rule"]
    )
