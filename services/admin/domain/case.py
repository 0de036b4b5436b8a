"""A case: something that waits, or waited, for a person, and the ways it moves."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID, uuid5

from services.admin.domain import refusals
from services.names import user_name


class Kind(enum.IntEnum):
    """What a case is about, numbered as in `admin.v1.Case.Kind`."""

    REGISTRATION = 1
    FLAGGED_PAYMENT = 2
    LATE_ASSESSMENT = 3


class State(enum.IntEnum):
    """Where a case stands, numbered as in `admin.v1.Case.State`."""

    # News that it is settled came before news that it opened. Shown to nobody.
    UNOPENED = 0
    OPEN = 1
    DECIDING = 2
    APPROVED = 3
    REJECTED = 4
    SETTLED = 5


class Decision(enum.IntEnum):
    """What a person decides, numbered as in `admin.v1.DecideCaseRequest.Decision`."""

    APPROVE = 1
    REJECT = 2


class Owner(enum.Enum):
    """The service in which a decision takes effect."""

    USER = "user"
    PAYMENT = "payment"


class Outcome(enum.Enum):
    """What the owner said of a decision."""

    # It holds now, and stays.
    IN_EFFECT = "in_effect"
    # It was settled before, without this case.
    ELSEWHERE = "elsewhere"
    # It cannot hold as things stand; nothing changed.
    REFUSED = "refused"
    # No answer, or none that tells. It may or may not hold; asking again is harmless.
    UNKNOWN = "unknown"


class Fact(enum.Enum):
    """What a change of a case tells the world."""

    OPENED = "opened"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Case:
    """Something that waits, or waited, for a person. At most one for each kind and subject.

    Attributes:
        case_id: UUIDv7.
        subject_id: The user or payment it is about.
        subject: That user or payment as it stood when the case opened, serialized as the contract's
            message; empty while UNOPENED.
        decision: What was decided; None unless somebody at this desk did.
        decider_id: Who did.
        reason: In whose words.
        create_time: When it opened; None while UNOPENED.
        decide_time: When it closed: the decision took effect, or it was settled elsewhere. While
            DECIDING: when it was settled, by the news; None without such news.
    """

    case_id: UUID
    kind: Kind
    subject_id: UUID
    state: State
    subject: bytes = b""
    decision: Decision | None = None
    decider_id: UUID | None = None
    reason: str = ""
    create_time: datetime | None = None
    decide_time: datetime | None = None

    @property
    def owner(self) -> Owner | None:
        """Where a decision takes effect; None where recording it is all there is to do."""
        return _OWNERS[self.kind]

    @property
    def decider(self) -> str:
        """`users/{uuid}` of who decided; empty when nobody at this desk did."""
        return "" if self.decider_id is None else user_name(self.decider_id)

    @property
    def request_id(self) -> UUID:
        """The id of the owner's request: always the same, so that asking again moves nothing twice."""
        return uuid5(self.case_id, "decision")


_OWNERS = {
    Kind.REGISTRATION: Owner.USER,
    Kind.FLAGGED_PAYMENT: Owner.PAYMENT,
    Kind.LATE_ASSESSMENT: None,
}
_DECIDED = {Decision.APPROVE: State.APPROVED, Decision.REJECT: State.REJECTED}


def opened(known: Case | None, new: Case) -> Case:
    """News that something waits for a person.

    Args:
        known: The case of this kind and subject, if there is one.
        new: The same, OPEN, as it would be if there is none.

    Returns:
        The case after it: `new`; or `known`, SETTLED and complete when it had been settled before
        it opened, else unchanged.
    """
    if known is None:
        return new
    if known.state is not State.UNOPENED:
        return known
    return replace(known, state=State.SETTLED, subject=new.subject, create_time=new.create_time)


def settled(known: Case | None, new: Case) -> Case:
    """News that what a case is about was settled, here or elsewhere.

    A case that is DECIDING stays so: the news may be of its own decision, and the owner will say. It
    keeps the time of the news, for when the owner refuses: what is settled does not open again.

    Args:
        known: The case of this kind and subject, if there is one.
        new: The same, UNOPENED, with the time it was settled at.
    """
    if known is None:
        return new
    if known.state is State.DECIDING:
        return replace(known, decide_time=new.decide_time)
    if known.state is not State.OPEN:
        return known
    return replace(known, state=State.SETTLED, decide_time=new.decide_time)


def decide(case: Case, decision: Decision, decider_id: UUID, reason: str, *, now: datetime) -> Case:
    """A person decides.

    Args:
        case: Not changed.
        decision: What.
        decider_id: Who.
        reason: Why, in their words. Repeating a decision keeps the first words.
        now: UTC.

    Returns:
        The case, DECIDING where an owner must bring the decision into effect, else APPROVED or
        REJECTED; unchanged when the same person had decided the same before.

    Raises:
        Refusal: case_decided.
    """
    if case.state is not State.OPEN:
        if case.state is not State.SETTLED and is_decision_of(case, decision, decider_id):
            return case
        raise refusals.case_decided(case.state.name, case.decider)
    decided = replace(
        case, state=State.DECIDING, decision=decision, decider_id=decider_id, reason=reason
    )
    if decided.owner is None:
        return conclude(decided, decided, Outcome.IN_EFFECT, now=now)
    return decided


def is_decision_of(case: Case, decision: Decision, decider_id: UUID) -> bool:
    """Whether this person decided a case this way."""
    return (case.decision, case.decider_id) == (decision, decider_id)


def conclude(case: Case, asked: Case, outcome: Outcome, *, now: datetime) -> Case:
    """Take up what the owner said.

    Several may ask the owner of one decision at once (its decider, the sweepers of every replica);
    the first answer that is taken up counts.

    Args:
        case: As it stands. Not changed.
        asked: As it stood when the owner was asked.
        outcome: The answer.
        now: UTC.

    Returns:
        The case: APPROVED or REJECTED, SETTLED, or OPEN again; unchanged when the answer is unknown,
        or is about a decision that no longer stands.
    """
    same = (asked.decision, asked.decider_id, asked.reason)
    if case.state is not State.DECIDING or (case.decision, case.decider_id, case.reason) != same:
        return case
    assert case.decision is not None
    if outcome is Outcome.IN_EFFECT:
        return replace(case, state=_DECIDED[case.decision], decide_time=now)
    undecided = replace(case, decision=None, decider_id=None, reason="")
    if outcome is Outcome.ELSEWHERE or (
        outcome is Outcome.REFUSED and case.decide_time is not None
    ):
        return replace(undecided, state=State.SETTLED, decide_time=case.decide_time or now)
    if outcome is Outcome.REFUSED:
        return replace(undecided, state=State.OPEN)
    return case


# What the owners' reasons say of a decision. USER_STATE_WRONG depends on the state.
_OUTCOMES = {
    (Owner.USER, "USER_NOT_FOUND"): Outcome.ELSEWHERE,
    (Owner.PAYMENT, "PAYMENT_NOT_FOUND"): Outcome.ELSEWHERE,
    (Owner.PAYMENT, "PAYMENT_NOT_FLAGGED"): Outcome.ELSEWHERE,
    # An earlier decision of this case, taken for refused, took effect after all.
    (Owner.PAYMENT, "REQUEST_ID_REUSED"): Outcome.ELSEWHERE,
    (Owner.PAYMENT, "BALANCE_OVER_LIMIT"): Outcome.REFUSED,
}
# States of an account in which a decision holds. Nobody is suspended who was not approved first.
_HOLDS_IN = {
    Decision.APPROVE: {"ACTIVE", "SUSPENDED"},
    Decision.REJECT: {"REJECTED"},
}


def outcome_of_refusal(case: Case, reason: str, state: str) -> Outcome:
    """What it means for a decision that its owner refused.

    An answer can be lost on the way, so a refusal may come of the decision having taken effect.

    Args:
        case: With its decision.
        reason: The owner's reason; empty when it gave none.
        state: What the owner says the subject's state is, where its reason quotes one.
    """
    if case.owner is None or case.decision is None:
        return Outcome.UNKNOWN
    if (case.owner, reason) == (Owner.USER, "USER_STATE_WRONG"):
        return Outcome.IN_EFFECT if state in _HOLDS_IN[case.decision] else Outcome.ELSEWHERE
    return _OUTCOMES.get((case.owner, reason), Outcome.UNKNOWN)


def facts(before: Case | None, after: Case) -> list[Fact]:
    """What a change tells the world, in order. Nobody hears of an UNOPENED case."""
    told: list[Fact] = []
    waited = before is not None and before.state in {State.OPEN, State.DECIDING}
    unknown = before is None or before.state is State.UNOPENED
    reopened = before is not None and before.state is State.DECIDING and after.state is State.OPEN
    if (unknown and after.state is not State.UNOPENED) or reopened:
        told.append(Fact.OPENED)
        waited = True
    if waited and after.state in {State.APPROVED, State.REJECTED, State.SETTLED}:
        told.append(Fact.CLOSED)
    return told
