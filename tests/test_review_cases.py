"""How cases move: every rule, and that no order, repetition or loss of messages changes where they end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uuid_utils import UUID

from services.admin.domain import case as cases
from services.admin.domain import refusals
from services.admin.domain.case import Case, Decision, Fact, Kind, Outcome, Owner, State
from services.refusal import Refusal
from tallystick.admin.v1 import error_reason_pb2, review_service_pb2

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPENED_AT, SETTLED_AT = NOON - timedelta(hours=2), NOON - timedelta(hours=1)
ASHA, BINA = UUID(int=1), UUID(int=2)
APPROVE, REJECT = Decision.APPROVE, Decision.REJECT


def an_open_case(kind=Kind.FLAGGED_PAYMENT):
    return Case(UUID(int=7), kind, UUID(int=8), State.OPEN, b"subject", create_time=OPENED_AT)


def an_unopened_case(kind=Kind.FLAGGED_PAYMENT):
    return Case(UUID(int=7), kind, UUID(int=8), State.UNOPENED, decide_time=SETTLED_AT)


def decided(decision=APPROVE, *, kind=Kind.FLAGGED_PAYMENT):
    return cases.decide(an_open_case(kind), decision, ASHA, "looks fine", now=NOON)


def concluded(outcome, decision=APPROVE, *, kind=Kind.FLAGGED_PAYMENT):
    case = decided(decision, kind=kind)
    return cases.conclude(case, case, outcome, now=NOON)


@pytest.mark.parametrize("kind", [Kind.REGISTRATION, Kind.FLAGGED_PAYMENT])
def test_a_decision_waits_for_its_owner(kind):
    case = decided(kind=kind)

    assert case.state is State.DECIDING
    assert (case.decision, case.decider_id, case.reason) == (APPROVE, ASHA, "looks fine")
    assert case.decide_time is None


@pytest.mark.parametrize(
    ("decision", "state"), [(APPROVE, State.APPROVED), (REJECT, State.REJECTED)]
)
def test_a_decision_of_a_late_assessment_only_goes_on_record(decision, state):
    case = decided(decision, kind=Kind.LATE_ASSESSMENT)

    assert (case.state, case.decide_time) == (state, NOON)


@pytest.mark.parametrize(
    ("decision", "state"), [(APPROVE, State.APPROVED), (REJECT, State.REJECTED)]
)
def test_a_decision_closes_the_case_once_it_is_in_effect(decision, state):
    case = concluded(Outcome.IN_EFFECT, decision)

    assert (case.state, case.decider_id, case.decide_time) == (state, ASHA, NOON)


def test_a_case_settled_elsewhere_names_no_decider():
    case = concluded(Outcome.ELSEWHERE)

    assert case.state is State.SETTLED
    assert (case.decision, case.decider, case.reason) == (None, "", "")


def test_a_refused_decision_leaves_the_case_open_as_it_was():
    assert concluded(Outcome.REFUSED) == an_open_case()


def test_an_unknown_outcome_leaves_the_decision_to_be_taken_up_again():
    assert concluded(Outcome.UNKNOWN) == decided()


@pytest.mark.parametrize("case", [decided(), concluded(Outcome.IN_EFFECT)])
def test_repeating_a_decision_changes_nothing_and_is_not_refused(case):
    assert cases.decide(case, APPROVE, ASHA, "in other words", now=NOON) == case


@pytest.mark.parametrize("case", [decided(), concluded(Outcome.IN_EFFECT)])
@pytest.mark.parametrize(("decision", "decider"), [(REJECT, ASHA), (APPROVE, BINA)])
def test_a_decided_case_is_not_decided_the_other_way_or_by_somebody_else(case, decision, decider):
    with pytest.raises(Refusal) as refused:
        cases.decide(case, decision, decider, "too late", now=NOON)

    assert refused.value.reason == "CASE_DECIDED"
    assert refused.value.metadata == {"state": case.state.name, "decider": f"users/{ASHA}"}


def test_a_settled_case_is_not_decided():
    case = cases.settled(an_open_case(), an_unopened_case())

    with pytest.raises(Refusal) as refused:
        cases.decide(case, APPROVE, ASHA, "fine", now=NOON)

    assert refused.value.metadata == {"state": "SETTLED", "decider": ""}


def test_an_answer_about_a_decision_that_no_longer_stands_is_dropped():
    mine = decided(APPROVE)
    theirs = cases.decide(an_open_case(), REJECT, BINA, "no", now=NOON)

    assert cases.conclude(theirs, mine, Outcome.IN_EFFECT, now=NOON) == theirs


@pytest.mark.parametrize(
    ("kind", "decision", "reason", "state", "outcome"),
    [
        (Kind.REGISTRATION, APPROVE, "USER_STATE_WRONG", "REJECTED", Outcome.ELSEWHERE),
        (Kind.REGISTRATION, APPROVE, "USER_STATE_WRONG", "SUSPENDED", Outcome.IN_EFFECT),
        (Kind.REGISTRATION, REJECT, "USER_STATE_WRONG", "REJECTED", Outcome.IN_EFFECT),
        (Kind.REGISTRATION, REJECT, "USER_STATE_WRONG", "ACTIVE", Outcome.ELSEWHERE),
        (Kind.REGISTRATION, REJECT, "USER_STATE_WRONG", "SUSPENDED", Outcome.ELSEWHERE),
        (Kind.REGISTRATION, APPROVE, "USER_NOT_FOUND", "", Outcome.ELSEWHERE),
        (Kind.FLAGGED_PAYMENT, APPROVE, "PAYMENT_NOT_FLAGGED", "FAILED", Outcome.ELSEWHERE),
        (Kind.FLAGGED_PAYMENT, APPROVE, "PAYMENT_NOT_FOUND", "", Outcome.ELSEWHERE),
        (Kind.FLAGGED_PAYMENT, APPROVE, "REQUEST_ID_REUSED", "", Outcome.ELSEWHERE),
        (Kind.FLAGGED_PAYMENT, APPROVE, "BALANCE_OVER_LIMIT", "", Outcome.REFUSED),
        (Kind.FLAGGED_PAYMENT, APPROVE, "USER_NOT_FOUND", "", Outcome.UNKNOWN),
        (Kind.FLAGGED_PAYMENT, APPROVE, "", "", Outcome.UNKNOWN),
        (Kind.REGISTRATION, APPROVE, "", "", Outcome.UNKNOWN),
    ],
)
def test_what_an_owners_refusal_means(kind, decision, reason, state, outcome):
    assert cases.outcome_of_refusal(decided(decision, kind=kind), reason, state) is outcome


def test_the_owner_is_always_asked_by_the_same_id():
    ids = {an_open_case().request_id, decided().request_id, decided(REJECT).request_id}

    assert len(ids) == 1


@given(st.lists(st.sampled_from(["opening", "settling"]), min_size=1))
def test_news_in_any_order_and_any_number_of_times_comes_to_the_same(deliveries):
    case, told = None, []
    for news in deliveries:
        before = case
        case = (
            cases.opened(case, an_open_case())
            if news == "opening"
            else cases.settled(case, an_unopened_case())
        )
        told += cases.facts(before, case)

    if "settling" not in deliveries:
        assert (case, told) == (an_open_case(), [Fact.OPENED])
    elif "opening" not in deliveries:
        assert (case, told) == (an_unopened_case(), [])
    else:
        assert case == Case(
            UUID(int=7),
            Kind.FLAGGED_PAYMENT,
            UUID(int=8),
            State.SETTLED,
            b"subject",
            create_time=OPENED_AT,
            decide_time=SETTLED_AT,
        )
        assert told == [Fact.OPENED, Fact.CLOSED]


@dataclass
class World:
    """One flagged payment, its case, its owner, and whatever is on its way between them."""

    case: Case | None = None
    told: list = field(default_factory=list)
    answers: list = field(default_factory=list)
    # What the owner did: None (still held), "elsewhere", or the decision and decider it took up.
    resolution: object = None
    vendor_is_full: bool = False
    heard_settled: bool = False
    reopened: int = 0

    def move(self, case):
        self.told += cases.facts(self.case, case)
        if self.case is not None and self.case.state is State.DECIDING:
            self.reopened += case.state is State.OPEN
        self.case = case

    def open(self):
        self.move(cases.opened(self.case, an_open_case()))

    def hear_settled(self):
        if self.resolution is not None:
            self.heard_settled = True
            self.move(cases.settled(self.case, an_unopened_case()))

    def resolve_elsewhere(self):
        self.resolution = self.resolution or "elsewhere"

    def fill(self):
        self.vendor_is_full = True

    def empty(self):
        self.vendor_is_full = False

    def decide(self, decision, decider):
        if self.case is not None and self.case.state is not State.UNOPENED:
            with contextlib.suppress(Refusal):
                self.move(cases.decide(self.case, decision, decider, "why", now=NOON))

    def ask(self):
        if self.case is not None and self.case.state is State.DECIDING:
            self.answers.append((self.case, self.owner_says()))

    def ask_in_vain(self):
        if self.case is not None and self.case.state is State.DECIDING:
            self.owner_says()
            self.answers.append((self.case, Outcome.UNKNOWN))

    def owner_says(self):
        body = (self.case.decision, self.case.decider_id)
        if self.resolution == body:
            return Outcome.IN_EFFECT
        if self.resolution is not None:
            reason = (
                "PAYMENT_NOT_FLAGGED" if self.resolution == "elsewhere" else "REQUEST_ID_REUSED"
            )
            return cases.outcome_of_refusal(self.case, reason, "")
        if self.case.decision is APPROVE and self.vendor_is_full:
            return cases.outcome_of_refusal(self.case, "BALANCE_OVER_LIMIT", "")
        self.resolution = body
        return Outcome.IN_EFFECT

    def hear_answer(self, number):
        if self.answers:
            asked, outcome = self.answers[number % len(self.answers)]
            self.move(cases.conclude(self.case, asked, outcome, now=NOON))


steps = st.one_of(
    st.sampled_from(["open", "hear_settled", "resolve_elsewhere", "fill", "empty"]).map(
        lambda name: (name,)
    ),
    st.sampled_from([("ask",), ("ask_in_vain",)]),
    st.sampled_from([("ask",), ("fill",)]),
    st.tuples(st.just("decide"), st.sampled_from(Decision), st.sampled_from([ASHA, BINA])),
    st.tuples(st.just("hear_answer"), st.integers(0, 9)),
)


# Rare by chance: the owner refuses, is settled elsewhere, and the news overtakes the refusal.
NEWS_OVERTAKES_A_REFUSAL = [
    ("open",),
    ("decide", APPROVE, ASHA),
    ("fill",),
    ("ask",),
    ("resolve_elsewhere",),
    ("hear_settled",),
    ("hear_answer", 0),
]
# And: asked twice, refused, then taken up; the second answer arrives after somebody else decided.
AN_ANSWER_OUTLIVES_ITS_DECISION = [
    ("open",),
    ("decide", APPROVE, ASHA),
    ("fill",),
    ("ask",),
    ("empty",),
    ("ask",),
    ("hear_answer", 0),
    ("decide", REJECT, BINA),
    ("hear_answer", 1),
]


@settings(max_examples=300)
@example(NEWS_OVERTAKES_A_REFUSAL)
@example(AN_ANSWER_OUTLIVES_ITS_DECISION)
@given(st.lists(steps, max_size=40))
def test_whatever_is_lost_repeated_or_reordered_the_case_ends_as_its_owner_did(script):
    world = World()
    for name, *arguments in script:
        getattr(world, name)(*arguments)

    # In the end everything arrives, and the sweeper goes on until nothing is DECIDING.
    world.empty()
    world.open()
    if world.case.state is State.DECIDING:
        world.ask()
        world.hear_answer(len(world.answers) - 1)
    if not world.heard_settled:
        world.hear_settled()

    opened, closed = world.told.count(Fact.OPENED), world.told.count(Fact.CLOSED)
    refused = any(outcome is Outcome.REFUSED for _, outcome in world.answers)
    assert opened == 1 + world.reopened
    if world.resolution is None:
        assert world.case.state is State.OPEN
        assert closed == 0
        return
    assert closed == 1
    if world.resolution == "elsewhere":
        assert world.case.state is State.SETTLED
    elif world.case.state is State.SETTLED:
        # Told that it was refused, the desk opened the case again; it had taken effect after all.
        assert refused
    else:
        decision, decider = world.resolution
        assert world.case.state is (State.APPROVED if decision is APPROVE else State.REJECTED)
        assert world.case.decider_id == decider


@pytest.mark.parametrize(
    ("ours", "contract"),
    [
        (Kind, review_service_pb2.Case.Kind),
        (State, review_service_pb2.Case.State),
        (Decision, review_service_pb2.DecideCaseRequest.Decision),
    ],
)
def test_kinds_states_and_decisions_are_numbered_as_in_the_contract(ours, contract):
    prefix = f"{ours.__name__.upper()}_"
    in_contract = {name.removeprefix(prefix): number for name, number in contract.items() if number}

    assert {each.name: each.value for each in ours if each.value} == in_contract


def test_every_refusal_is_in_the_contract_and_the_other_way_round():
    made = [
        refusals.case_not_found("cases/x"),
        refusals.case_decided("APPROVED", ""),
        refusals.decision_pending("payment"),
        refusals.decision_refused("payment", "BALANCE_OVER_LIMIT"),
    ]
    functions = [name for name in vars(refusals) if name.startswith(("case_", "decision_"))]

    reasons = {f"ERROR_REASON_{refusal.reason}" for refusal in made}
    assert reasons == set(error_reason_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert len(functions) == len(made)


def test_registrations_belong_to_user_and_payments_to_payment():
    owners = {kind: an_open_case(kind).owner for kind in Kind}

    assert owners == {
        Kind.REGISTRATION: Owner.USER,
        Kind.FLAGGED_PAYMENT: Owner.PAYMENT,
        Kind.LATE_ASSESSMENT: None,
    }
