"""Rules are asked first by what they begin with; CEL by itself says the same of whatever a payment may be."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.fraud.domain.assessment import Facts, Position, Site
from services.fraud.domain.language import ExpressionError, Expressions, compile_expression
from services.fraud.domain.leading import leading_tests
from services.fraud.domain.rules import built_in
from services.fraud.domain.variables import VARIABLES
from services.fraud.features.spec import NAMES
from services.money import Money
from tests.fraud_checks import case_of

SHOP = Site("users/vendor/sites/shop", 12.9716, 77.5946, open=True)


def loop(times):
    """True, after going round 10 ** times times: from six on CEL gives up."""
    tens = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    return "true" if not times else f"{tens}.all(x{times}, {loop(times - 1)})"


names = {
    kind: st.sampled_from(sorted(name for name, each in VARIABLES.items() if each.type == kind))
    for kind in ("double", "int", "bool", "string")
}
blanks = st.sampled_from(["", " ", "\n", " // amount || (\n"])
comparisons = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


def joined(*several, by=""):
    return st.tuples(*several).map(by.join)


doubles = st.recursive(
    names["double"]
    | st.sampled_from(["0.0", "1.0", "-1.0", ".5", "1e308", "1.5E-3", "50.0"])
    | names["int"].map("double({})".format),
    lambda part: (
        joined(part, blanks, st.sampled_from(["+", "-", "*", "/", "- -"]), blanks, part)
        | part.map("({})".format)
    ),
    max_leaves=4,
)
integers = st.recursive(
    names["int"] | st.sampled_from(["0", "7", "-1", "9223372036854775807"]),
    lambda part: joined(part, st.sampled_from(["+", "-", "*", "/", "%"]), part, by=" "),
    max_leaves=3,
)
quoted = ['"INR"', "'INR'", 'r"INR"', '"a && b || (c"', "'''a' || 'b'''", '"\\x49NR"', '""']
texts = names["string"] | st.sampled_from(quoted)
parts = st.one_of(
    joined(doubles, blanks, comparisons, blanks, doubles),
    joined(integers, blanks, comparisons, blanks, integers),
    joined(texts, comparisons, texts, by=" "),
    joined(st.sampled_from(["", "!", "!!"]), names["bool"] | st.sampled_from(["true", "false"])),
    st.sampled_from([loop(2), loop(6), "1 / (minor_units - minor_units) == 0"]),
    st.sampled_from(["vendor in [payer, site]", "site_known == history_known"]),
)
expressions = st.recursive(
    parts,
    lambda part: st.one_of(
        st.lists(part, min_size=2, max_size=4).map(" && ".join),
        st.lists(part, min_size=2, max_size=3).map(" || ".join),
        st.tuples(part, part, part).map("{0[0]} ? {0[1]} : {0[2]}".format),
        st.tuples(st.sampled_from(["", "!"]), part).map("{0[0]}({0[1]})".format),
    ),
    max_leaves=6,
)
figures = st.sampled_from([-1.0, 0.0, -0.0, 1.0, 50.0, 3e38]) | st.floats(0, 300, width=32)
cases = st.builds(
    lambda minor_units, place, sites, known, score, said: case_of(
        Facts(Money(minor_units, "INR"), "", place, "users/payer", "users/vendor"),
        sites,
        history_known=known,
        model_score=score,
        **said,
    ),
    st.integers(1, 2**63 - 1) | st.integers(1, 10_000_00),
    st.sampled_from([None, Position(12.9, 77.5), Position(12.9, 77.5, mocked=True)]),
    st.sampled_from([[], [SHOP]]),
    st.booleans(),
    st.floats(-1, 99),
    st.dictionaries(st.sampled_from(NAMES), figures, max_size=12),
)


def said_by_cel(texts, case):
    """What CEL says of each that is not false, asked for each alone."""
    compiled = [compile_expression(text) for text in texts]
    answers = [each.holds(each.read(case)) for each in compiled]
    return [(number, answer) for number, answer in enumerate(answers) if answer is not False]


@settings(max_examples=400)
@given(st.lists(expressions, min_size=1, max_size=4), cases)
def test_what_expressions_begin_with_changes_no_answer(texts, case):
    try:
        expected = said_by_cel(texts, case)
    except ExpressionError:
        assume(False)

    assert Expressions(texts).hold(case) == expected


@settings(max_examples=200)
@given(cases)
def test_the_built_in_rules_say_what_cel_says_of_them(case):
    texts = [rule.expression for rule in built_in()]

    assert Expressions(texts).hold(case) == said_by_cel(texts, case)


def test_every_built_in_rule_begins_with_a_comparison():
    assert all(leading_tests(rule.expression) for rule in built_in())


@pytest.mark.parametrize(
    ("expression", "tests"),
    [
        ("amount > 1.0", 1),
        ("!site_known && history_known && minor_units >= floor_minor_units", 3),
        ("sum_1h + amount * 2.0 - 1.0 >= 1.5 * double(review_minor_units)", 1),
        ('currency == "INR" && model_score == -1.0', 2),
        ("amount > 1.0 && (remote == 0.0 || site_known) && count_1h > 2.0", 1),
        ("amount > 1.0 // and\n && remote == 0.0 // ||", 2),
        # What may fail comes before what is plain: CEL might fail where the rest is false.
        ("1 / minor_units == 0 && amount > 1.0", 0),
        # The sum of integers may not fit, and a double divided by zero is no error in CEL.
        ("minor_units + 1 > 5 && amount > 1.0", 0),
        ("amount / count_1h > 2.0", 0),
        # One of them is enough.
        ("amount > 1.0 && site_known || history_known", 0),
        ("amount > 1.0 && site_known ? history_known : false", 0),
        # Quotes hide what is between them.
        ('amount > 1.0 && site != "a || b"', 2),
        ("amount > 1.0 && site != '''a' || '''", 0),
        ('amount > 1.0 && site != "\\"" || site_known', 0),
        ("(amount > 1.0) && site_known", 0),
        ("vendor in [payer]", 0),
        ("true", 0),
    ],
)
def test_only_what_must_hold_and_cannot_fail_is_asked_first(expression, tests):
    assert compile_expression(expression)
    assert len(leading_tests(expression)) == tests


def test_a_rule_that_goes_round_too_often_fails_only_where_cel_gets_to_it():
    case = case_of(Facts(Money(1_00, "INR"), "", None), [SHOP])
    before, behind = f"{loop(6)} && amount > 500.0", f"amount > 500.0 && {loop(6)}"

    assert Expressions([before, behind]).hold(case) == [(0, None)]
