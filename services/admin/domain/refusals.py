"""Every way the admin service says no: `admin.v1.ErrorReason`, one function each."""

from __future__ import annotations

from datetime import timedelta

from services.refusal import Kind, Refusal

# The sweeper looks again every two seconds.
_PENDING_RETRY = timedelta(seconds=2)


def case_not_found(name: str) -> Refusal:
    return Refusal(Kind.NOT_FOUND, "CASE_NOT_FOUND", f"There is no case {name}.", name=name)


def case_decided(state: str, decider: str) -> Refusal:
    by = f" by {decider}" if decider else ""
    message = f"The case is {state}{by}. Nothing is left to decide; read it again."
    return Refusal(Kind.PRECONDITION, "CASE_DECIDED", message, state=state, decider=decider)


def decision_pending(dependency: str) -> Refusal:
    message = (
        f"The decision is recorded and takes effect as soon as {dependency} answers, by itself. "
        "Ask again later, or repeat it."
    )
    return Refusal(
        Kind.UNAVAILABLE,
        "DECISION_PENDING",
        message,
        retry_after=_PENDING_RETRY,
        dependency=dependency,
    )


def decision_refused(dependency: str, cause: str) -> Refusal:
    message = (
        f"{dependency} refuses it: {cause}. The case is open again. "
        "Remove the cause, or decide the other way."
    )
    return Refusal(
        Kind.PRECONDITION, "DECISION_REFUSED", message, dependency=dependency, cause=cause
    )
