"""Events of users and payments as news about cases, and changes of cases as events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services import names, times
from services.admin.domain.case import Case, Fact, Kind, State
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.user.v1 import user_pb2

SOURCE = "admin"
PLATFORM = "services/admin"


@dataclass(frozen=True, slots=True)
class Opening:
    """Something waits for a person. `subject` is the serialized user or payment."""

    kind: Kind
    subject_id: UUID
    subject: bytes
    time: datetime


@dataclass(frozen=True, slots=True)
class Settling:
    """What a case is about was settled, by this desk or elsewhere."""

    kind: Kind
    subject_id: UUID
    time: datetime


_RISKY = {payment_pb2.Risk.DECISION_REVIEW, payment_pb2.Risk.DECISION_DECLINE}
_SETTLED_REGISTRATION = {
    event_pb2.UserChanged.CHANGE_APPROVED,
    event_pb2.UserChanged.CHANGE_REJECTED,
}


def news(event: event_pb2.Event) -> Opening | Settling | None:
    """What an event says about cases; None for most."""
    fact = event.WhichOneof("fact")
    if fact == "user_changed":
        return _of_user(event, event.user_changed)
    if fact == "payment_flagged":
        return _opening(Kind.FLAGGED_PAYMENT, event, event.payment_flagged.payment)
    if fact == "payment_succeeded":
        succeeded = event.payment_succeeded
        return _of_settlement(event, succeeded.risk, succeeded.review_reason)
    if fact == "payment_failed":
        failed = event.payment_failed
        return _of_settlement(event, failed.risk, failed.review_reason)
    if fact == "payment_assessed":
        payment = event.payment_assessed.payment
        if payment.risk.decision in _RISKY:
            return _opening(Kind.LATE_ASSESSMENT, event, payment)
    return None


def _of_user(event: event_pb2.Event, changed: event_pb2.UserChanged) -> Opening | Settling | None:
    if changed.change in _SETTLED_REGISTRATION:
        return _settling(Kind.REGISTRATION, event)
    # An admin made by an admin is registered and active at once.
    waits = changed.user.state == user_pb2.User.STATE_PENDING_APPROVAL
    if changed.change == event_pb2.UserChanged.CHANGE_REGISTERED and waits:
        return _opening(Kind.REGISTRATION, event, changed.user)
    return None


def _of_settlement(
    event: event_pb2.Event, risk: payment_pb2.Risk, review_reason: str
) -> Settling | None:
    # Every payment ends with such an event, a thousand a second; there can be a case only of one
    # that was held, and that one ends with the reviewer's words. Looking up the others would cost
    # a transaction each.
    if review_reason or risk.decision == payment_pb2.Risk.DECISION_REVIEW:
        return _settling(Kind.FLAGGED_PAYMENT, event)
    return None


def _opening(
    kind: Kind, event: event_pb2.Event, subject: user_pb2.User | payment_pb2.Payment
) -> Opening:
    return Opening(kind, names.last_id(subject.name), subject.SerializeToString(), _time(event))


def _settling(kind: Kind, event: event_pb2.Event) -> Settling:
    return Settling(kind, names.last_id(event.subject), _time(event))


def _time(event: event_pb2.Event) -> datetime:
    return times.instant(event.occur_time)


_OUTCOMES = {State.APPROVED: "approved", State.REJECTED: "rejected", State.SETTLED: "settled"}


def event_of(
    fact: Fact, case: Case, *, new_id: Callable[[], UUID], now: datetime, trace_id: str
) -> event_pb2.Event:
    """The event that tells of a change of a case."""
    event = event_pb2.Event(
        event_id=str(new_id()),
        source=SOURCE,
        subject=names.case_name(case.case_id),
        actor=PLATFORM,
        trace_id=trace_id,
    )
    event.occur_time.CopyFrom(times.timestamp(now))
    if fact is Fact.OPENED:
        event.case_opened.kind = case.kind.name.lower()
        event.case_opened.case_subject = subject_name(case)
    else:
        event.actor = case.decider or PLATFORM
        event.case_closed.outcome = _OUTCOMES[case.state]
        event.case_closed.reason = case.reason
    return event


def subject_name(case: Case) -> str:
    """`users/{uuid}` or `payments/{uuid}`."""
    if case.kind is Kind.REGISTRATION:
        return names.user_name(case.subject_id)
    return names.payment_name(case.subject_id)
