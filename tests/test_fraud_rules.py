"""Rules: what an expression may be, in which order rules count, and the built-in ones at their edges."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uuid_utils import UUID

from services.fraud.domain import rules
from services.fraud.domain.assessment import Code, Decision, Facts, Limits, Position, Site
from services.fraud.domain.guard import Guard
from services.fraud.domain.language import (
    CostError,
    ExpressionError,
    check_cost,
    compile_expression,
)
from services.fraud.domain.offline_risk import Level, after_label, after_suspicion, is_suspicious
from services.fraud.domain.rulebook import RuleBook, judge_batch, with_model_score
from services.fraud.domain.rules import Action, Entry, List, Mode, Rule, Suppression, built_in
from services.fraud.domain.tiers import Tier
from services.fraud.domain.variables import VARIABLES, render, unknown_placeholders
from services.fraud.features.incidents import NO_INCIDENTS, Incidents
from services.fraud.features.spec import NAMES
from services.money import Money
from tests.fraud_checks import BUILT_IN, NOW, case_of

PAYER, VENDOR = "users/payer", "users/vendor"
SHOP = Site(f"{VENDOR}/sites/shop", 12.9716, 77.5946, open=True)
AT_SHOP = Position(SHOP.latitude, SHOP.longitude)
DAY = 86_400.0


def a_case(minor_units=100_00, *, device="", **said):
    facts = Facts(Money(minor_units, "INR"), "", AT_SHOP, PAYER, VENDOR, device)
    return case_of(facts, [SHOP], **said)


def a_rule(name="R_ONE", expression="true", action=Action.REVIEW, mode=Mode.LIVE, **said):
    weight = rules.weight_of(action, 0)
    return replace(Rule(name, expression, action, mode, weight, "it is so"), **said)


def judge(case, *made, **kept):
    return RuleBook(made, **kept).judge(case, Guard())


def reasons(assessment):
    return [signal.reason for signal in assessment.signals]


@pytest.mark.parametrize(
    ("expression", "line", "column", "problem"),
    [
        ("amount >", 1, 9, "Syntax error"),
        ("amount > 1.0 &&\n  speed > 3.0", 2, 3, "undeclared reference to 'speed'"),
        ("amount > 1", 1, 8, "no matching overload"),
        ("payer > 3.0", 1, 7, "no matching overload"),
        ("amount + 1.0", 0, 0, "it gives a double"),
        ("(" * 400 + "true" + ")" * 400, 0, 0, "recursion limit"),
    ],
)
def test_an_expression_that_cannot_be_used_says_where(expression, line, column, problem):
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression)

    assert (caught.value.line, caught.value.column) == (line, column)
    assert problem in caught.value.problem


_ENDLESS = "amount > 0.0"
for _depth in range(6):
    _ENDLESS = f"[1,2,3,4,5,6,7,8,9,10].all(x{_depth}, {_ENDLESS} || true)"


@pytest.mark.parametrize(
    "expression", ["minor_units / 0 == 1", "int(payer) > 1", "payer.matches('(')", _ENDLESS]
)
def test_an_expression_that_cannot_be_computed_is_refused(expression):
    with pytest.raises(ExpressionError, match="cannot be computed for an ordinary payment"):
        rules.check(a_rule(expression=expression))


def test_an_expression_that_takes_too_long_is_refused():
    ticks = iter(range(10_000))

    with pytest.raises(CostError, match="1000000"):
        check_cost(compile_expression("amount > 1.0"), [a_case()], clock=lambda: next(ticks))


def test_a_rule_is_tried_on_payers_of_every_tier():
    # A condition that is false for all that is tried would hide what stands behind it.
    assert {case.tier for case in rules.samples()} == set(Tier)
    for tier in Tier:
        with pytest.raises(ExpressionError, match="cannot be computed for an ordinary payment"):
            rules.check(a_rule(expression=f'payer_tier == "{tier.value}" && minor_units / 0 == 1'))


def test_a_double_divided_by_zero_is_infinite_and_no_failure():
    assert compile_expression("amount / 0.0 > 1.0").holds({"amount": 1.0}) is True


def test_a_detail_may_name_variables_only():
    assert unknown_placeholders("{count_1h} of {nonsense} at {distance}") == ["nonsense"]
    with pytest.raises(ExpressionError, match="nonsense"):
        rules.check(a_rule(detail="{nonsense}"))


def test_a_detail_gives_money_as_money_and_figures_short():
    case = a_case(1_234_56, sum_1d=99_00.0, count_1h=3.14159)

    assert render("{amount}, {sum_1d}, {count_1h}", case) == "1234.56 INR, 99.00 INR, 3.142"


def test_every_feature_may_be_named():
    assert set(NAMES) <= VARIABLES.keys()


@pytest.mark.parametrize("failing", ["1 / 0 == 1", "minor_units / 0 > 1 || amount < 0.0"])
@pytest.mark.parametrize("action", list(Action))
def test_a_rule_that_cannot_be_computed_is_a_reason_to_look_never_a_pass(failing, action):
    broken = a_rule("BROKEN", failing, action)

    small, large = (judge(a_case(amount), broken) for amount in (499_99, 500_00))

    assert (small.decision, large.decision) == (Decision.ALLOW, Decision.REVIEW)
    assert reasons(small) == reasons(large) == ["RULE_FAILED"]


def test_one_rule_that_cannot_be_computed_does_not_hide_the_others():
    found = judge(a_case(), a_rule("BROKEN", "1 / 0 == 1"), a_rule("NEVER", "false"), a_rule())

    assert reasons(found) == ["R_ONE", "RULE_FAILED"]


def test_allow_beats_decline_beats_review_beats_note():
    made = [a_rule(action.name, action=action) for action in reversed(Action)]

    found = [judge(a_case(), *made[: count + 1]) for count in range(4)]

    assert [each.decision.name for each in found] == ["ALLOW", "REVIEW", "DECLINE", "ALLOW"]
    assert [each.score for each in found] == [10, 64, 100, 10]
    assert reasons(found[3]) == ["NOTE", "ALLOW"]
    # What was silenced is kept for the report.
    assert {signal.reason for signal in found[3].shadow} == {"DECLINE", "REVIEW"}


def test_notes_never_add_up_to_a_review_nor_reviews_to_a_refusal():
    notes = [a_rule(f"NOTE_{n}", action=Action.NOTE, weight=49) for n in range(9)]
    reviews = [a_rule(f"LOOK_{n}", weight=99) for n in range(9)]

    assert judge(a_case(), *notes).score == 49
    assert judge(a_case(), *notes, *reviews).score == 99


def test_a_rule_in_shadow_is_recorded_and_decides_nothing():
    found = judge(
        a_case(), a_rule(mode=Mode.SHADOW, action=Action.DECLINE), a_rule("OFF", mode=Mode.OFF)
    )

    assert (found.decision, found.signals) == (Decision.ALLOW, ())
    assert [signal.reason for signal in found.shadow] == ["R_ONE"]


@pytest.mark.parametrize("entity", [PAYER, VENDOR, "devices/d1"])
def test_a_list_counts_for_payer_vendor_and_device_until_it_expires(entity):
    case = a_case(device="d1")
    denied = [Entry(List.DENY, entity, NOW + 1)]
    allowed = [Entry(List.ALLOW, entity, NOW + 1)]

    assert judge(case, entries=denied).decision is Decision.DECLINE
    assert judge(case, a_rule(action=Action.DECLINE), entries=allowed).decision is Decision.ALLOW
    assert reasons(judge(case, entries=[*allowed, *denied])) == ["DENY_LISTED"]
    expired = [Entry(List.DENY, entity, NOW)]
    assert judge(case, entries=expired).decision is Decision.ALLOW


@pytest.mark.parametrize("entity", [PAYER, VENDOR, "devices/d1"])
def test_a_suppressed_rule_is_quiet_about_that_entity_until_then(entity):
    case, quiet = a_case(device="d1"), Suppression("R_ONE", entity, NOW + 1)

    assert reasons(judge(case, a_rule(), a_rule("R_TWO"), suppressions=[quiet])) == ["R_TWO"]
    assert reasons(judge(case, a_rule(), suppressions=[replace(quiet, expire_time=NOW)])) == [
        "R_ONE"
    ]
    assert reasons(judge(case, a_rule(), suppressions=[replace(quiet, entity="users/x")])) == [
        "R_ONE"
    ]


def test_a_rule_that_declines_everything_soon_only_reviews_and_recovers():
    book, guard = RuleBook([a_rule("BAD", "minor_units > 1", Action.DECLINE)]), Guard(0.05)
    caught, fine = a_case(2), a_case(1)

    decisions = [book.judge(caught, guard).decision for _ in range(500)]

    declined = decisions.count(Decision.DECLINE)
    assert 1 <= declined <= 25
    assert decisions[-1] is Decision.REVIEW
    assert guard.tripped() == {"BAD"}
    assert (guard.take_news(), guard.take_news()) == (["BAD"], [])
    for _ in range(10_000):
        book.judge(fine, guard)
    assert book.judge(caught, guard).decision is Decision.DECLINE
    assert guard.tripped() == frozenset()


def test_a_rule_that_declines_its_share_is_left_alone():
    book, guard = RuleBook([a_rule("FINE", "minor_units > 1", Action.DECLINE)]), Guard(0.05)

    decisions = [
        book.judge(a_case(2 if number % 25 == 0 else 1), guard).decision for number in range(5_000)
    ]

    assert decisions.count(Decision.DECLINE) == 200


@pytest.mark.parametrize(("asked", "action"), [(50, Action.NOTE), (49, Action.REVIEW)])
def test_a_weight_that_contradicts_the_action_is_refused(asked, action):
    with pytest.raises(ExpressionError, match=f"weight {asked}"):
        rules.weight_of(action, asked)


def test_the_built_in_rules_can_be_used_and_have_names_of_their_own():
    made = built_in()

    for rule in made:
        rules.check(rule)
    assert len({rule.name for rule in made}) == len(made)


USUAL = {"payer_payments": 20.0, "payer_devices": 1.0, "payer_vendor_payments": 5.0}


@pytest.mark.parametrize(
    ("reason", "below", "at"),
    [
        ("AMOUNT_PER_MINUTE", {"sum_1m": 4_899_99.0}, {"sum_1m": 4_900_00.0}),
        ("AMOUNT_PER_HOUR", {"sum_1h": 7_399_99.0}, {"sum_1h": 7_400_00.0}),
        ("AMOUNT_PER_DAY", {"sum_1d": 9_899_99.0}, {"sum_1d": 9_900_00.0}),
        ("AMOUNT_PER_WEEK", {"sum_7d": 29_899_99.0}, {"sum_7d": 29_900_00.0}),
        (
            "AMOUNT_AGAINST_HISTORY",
            {"amount_to_max": 5.0, "amount_to_mean": 16.0},
            {"amount_to_max": 5.1, "amount_to_mean": 16.0},
        ),
        (
            "IMPOSSIBLE_TRAVEL",
            {"travel_km": 50.0, "travel_km_per_hour": 2e3},
            {"travel_km": 51.0, "travel_km_per_hour": 1001.0},
        ),
        ("VELOCITY_1M", {"count_1m": 9.9}, {"count_1m": 10.0}),
        ("VELOCITY_1H", {"count_1h": 29.9}, {"count_1h": 30.0}),
        ("VELOCITY_1D", {"count_1d": 59.9}, {"count_1d": 60.0}),
        ("VELOCITY_7D", {"count_7d": 199.0}, {"count_7d": 200.0}),
        (
            "NEW_DEVICE",
            {"device_known": -1.0, "amount_to_max": 4.0},
            {"device_known": 0.0, "amount_to_max": 3.5},
        ),
        (
            "VENDOR_COMPROMISED",
            {"vendor_fraud_7d": 2.9, "vendor_fraud_share": 0.9},
            {"vendor_fraud_7d": 3.0, "vendor_fraud_share": 0.6},
        ),
        (
            "CODES_GATHERED",
            {
                "offline": 0.0,
                "code_age_seconds": 3601.0,
                "vendor_old_code_share": 0.7,
                "vendor_offline_share": 0.7,
                "vendor_count_7d": 8.0,
            },
            {
                "offline": 1.0,
                "code_age_seconds": 3601.0,
                "vendor_old_code_share": 0.7,
                "vendor_offline_share": 0.7,
                "vendor_count_7d": 8.0,
            },
        ),
    ],
)
def test_a_built_in_rule_holds_from_its_edge_on(reason, below, at):
    assert reason not in reasons(BUILT_IN.judge(a_case(**{**USUAL, **below}), Guard()))
    found = BUILT_IN.judge(a_case(**{**USUAL, **at}), Guard())
    assert found.decision is Decision.REVIEW
    assert reasons(found) == [reason]


def test_a_first_payment_to_a_vendor_is_held_for_its_amount_only():
    said = {**USUAL, "payer_vendor_payments": 0.0, "amount_to_max": 4.5}

    assert BUILT_IN.judge(a_case(499_99, **said), Guard()).decision is Decision.ALLOW
    assert reasons(BUILT_IN.judge(a_case(500_00, **said), Guard())) == ["FIRST_PAYEE"]


def test_a_vendor_that_is_always_far_away_has_its_usual_distance_subtracted():
    far = Position(SHOP.latitude + 0.5, SHOP.longitude)
    facts = Facts(Money(100_00, "INR"), "", far, PAYER, VENDOR)

    strange, usual = (
        case_of(facts, [SHOP], vendor_distance_excess_km=excess) for excess in (55.6, 5.0)
    )

    assert reasons(BUILT_IN.judge(strange, Guard())) == ["DISTANCE_OVER_LIMIT"]
    assert reasons(BUILT_IN.judge(usual, Guard())) == []


@pytest.mark.parametrize(
    ("name", "below", "at", "minor_units", "features"),
    [
        (
            "CODE_GUESSING",
            Incidents(wrong_codes=9.99),
            Incidents(wrong_codes=10),
            1,
            {"offline": 1.0},
        ),
        ("CODE_GUESSING", NO_INCIDENTS, Incidents(wrong_codes=1e6), 1, {"offline": 1.0}),
        (
            "CODES_BROUGHT_TWICE",
            Incidents(own_duplicates=2.99),
            Incidents(own_duplicates=3),
            1,
            {"offline": 1.0},
        ),
        (
            "CODES_SPENT_TWICE",
            Incidents(double_spends=0.49),
            Incidents(double_spends=0.5),
            500_00,
            {"offline": 0.0},
        ),
    ],
)
def test_what_went_wrong_with_codes_asks_for_a_person(name, below, at, minor_units, features):
    case = a_case(minor_units, **features)

    passed = BUILT_IN.judge(replace(case, incidents=below), Guard())
    held = BUILT_IN.judge(replace(case, incidents=at), Guard())

    assert passed.decision is Decision.ALLOW
    assert (held.decision, reasons(held)) == (Decision.REVIEW, [name])
    assert not is_suspicious(held), "who pays has not guessed, and who has is suspended already"


def test_what_went_wrong_with_codes_holds_nothing_else():
    known = Incidents(wrong_codes=1e6, own_duplicates=1e6, double_spends=1e6)

    online = BUILT_IN.judge(replace(a_case(499_99, offline=0.0), incidents=known), Guard())

    assert online.decision is Decision.ALLOW


@pytest.mark.parametrize(
    ("amount", "decision"), [(499_99, Decision.ALLOW), (500_00, Decision.REVIEW)]
)
def test_without_history_payments_from_the_floor_on_are_reviewed(amount, decision):
    found = BUILT_IN.judge(a_case(amount, history_known=False), Guard())

    assert found.decision is decision
    assert [signal.code for signal in found.signals] == [Code.HISTORY_UNAVAILABLE]


@pytest.mark.parametrize(
    ("score", "earlier", "decision"),
    [
        (49.9, 20.0, Decision.ALLOW),
        (50.0, 20.0, Decision.REVIEW),
        (99.0, 20.0, Decision.REVIEW),
        (99.0, 2.9, Decision.ALLOW),
    ],
)
def test_the_model_asks_for_a_person_and_never_refuses_nor_judges_strangers(
    score, earlier, decision
):
    found = BUILT_IN.judge(
        a_case(model_score=score, count_1d=9.0, count_30d=9.0 + earlier), Guard()
    )

    assert found.decision is decision
    assert reasons(found) == ([] if decision is Decision.ALLOW else ["MODEL"])


def test_a_stranger_is_judged_by_the_model_only_where_strangers_are_rare():
    guard = Guard()
    known = a_case(count_30d=20.0)
    stranger = a_case(model_score=60.0)

    decisions = []
    for _ in range(3):
        decisions.append(BUILT_IN.judge(stranger, guard).decision)
        for _ in range(1_500):
            BUILT_IN.judge(known, guard)

    assert decisions == [Decision.ALLOW, Decision.ALLOW, Decision.REVIEW]
    for _ in range(200):
        BUILT_IN.judge(stranger, guard)
    assert BUILT_IN.judge(stranger, guard).decision is Decision.ALLOW


features = st.sampled_from(sorted(set(NAMES)))
values = st.sampled_from([-1.0, 0.0, 1.0, 7.0, 50.0, 1e6, 3e38]) | st.floats(0, 300, width=32)
cases = st.builds(
    lambda amount, said, known, score: a_case(
        amount, history_known=known, model_score=score, **said
    ),
    st.integers(1, 2**63 - 1) | st.integers(1, 10_000_00),
    st.dictionaries(features, values, max_size=12),
    st.booleans(),
    st.floats(-1, 99),
)


@settings(max_examples=200)
@given(cases, st.floats(0, 99), st.floats(0, 99), st.booleans(), st.sampled_from([None, *List]))
def test_another_score_says_what_judging_with_it_would_have(case, score, other, settled, listed):
    entries = [] if listed is None else [Entry(listed, PAYER, NOW + 1)]
    noted = a_rule("NOTED", "minor_units % 2 == 1", Action.NOTE)
    tried = a_rule("TRIED", "amount > 50.0", mode=Mode.SHADOW)
    passes = a_rule("PASSES", "count_1h > 100.0", Action.ALLOW)
    book = RuleBook([*built_in(), noted, tried, passes], entries)

    def judged(with_score):
        guard = Guard()
        # Where few are strangers, the model is listened to about them as well.
        guard._newcomers = 0.0 if settled else 1.0
        return book.judge(replace(case, model_score=with_score), guard)

    assert with_model_score(judged(score), score) == judged(score)
    found, expected = with_model_score(judged(score), other), judged(other)
    assert (found.decision, found.score, found.signals) == (
        expected.decision,
        expected.score,
        expected.signals,
    )
    assert set(found.shadow) == set(expected.shadow)


@settings(max_examples=60)
@given(st.lists(cases, max_size=12))
def test_a_batch_is_judged_as_its_payments_one_by_one(batch):
    together, alone = Guard(), Guard()

    assert judge_batch(BUILT_IN, batch, together) == [BUILT_IN.judge(each, alone) for each in batch]


@given(cases)
def test_whatever_the_features_there_is_an_answer_whose_parts_agree(case):
    found = BUILT_IN.judge(case, Guard())

    strongest = max((signal.weight for signal in found.signals), default=0)
    assert found.decision is (
        Decision.DECLINE
        if strongest == 100
        else Decision.REVIEW
        if strongest >= 50
        else Decision.ALLOW
    )
    assert (found.score >= 50) == (found.decision is not Decision.ALLOW)
    assert (found.score == 100) == (found.decision is Decision.DECLINE)
    if (
        not case.history_known
        and case.facts.amount.minor_units >= Limits().position_floor_minor_units
    ):
        assert found.decision is not Decision.ALLOW


def test_a_suspicion_reduces_a_fraud_suspends_and_only_its_own_honesty_takes_it_back():
    now, first, second = datetime(2027, 1, 1, tzinfo=UTC), UUID(int=1), UUID(int=2)
    reduced = after_suspicion(None, first, now)
    suspended = after_label(reduced, second, fraud=True, now=now)

    assert (reduced.level, suspended.level) == (Level.REDUCED, Level.SUSPENDED)
    assert after_suspicion(suspended, first, now) is None
    assert after_suspicion(reduced, second, now) is None
    assert after_suspicion(reduced, second, now + timedelta(hours=20)).level is Level.REDUCED
    assert after_label(suspended, first, fraud=False, now=now) is None
    assert after_label(suspended, second, fraud=False, now=now).level is Level.NORMAL


def test_an_amount_alone_says_nothing_against_its_payer():
    large = BUILT_IN.judge(a_case(200_000_00), Guard())
    mocked = BUILT_IN.judge(a_case(position_mocked=1.0), Guard())

    assert large.decision is Decision.DECLINE
    assert not is_suspicious(large)
    assert is_suspicious(mocked)
