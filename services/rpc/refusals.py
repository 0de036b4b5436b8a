"""Every way the platform itself says no, whatever the service: `access.v1.ErrorReason`, one function each."""

from __future__ import annotations

from datetime import timedelta

from services.refusal import Kind, Refusal

# ErrorInfo's domain for these; a service's own refusals carry `{service}.tallystick`.
DOMAIN = "access.tallystick"


class AccessRefusal(Refusal):
    """A refusal of the platform, not of the service it happened in."""


class FieldsInvalid(AccessRefusal):
    """Fields that break the contract's rules.

    Args:
        violations: (field path, what is wrong with it), at least one.
    """

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        first, rest = violations[0], len(violations) - 1
        more = f" ({rest} more in BadRequest)" if rest else ""
        super().__init__(
            Kind.INVALID,
            "FIELDS_INVALID",
            f"{first[0] or 'request'}: {first[1]}{more}",
            field=first[0],
        )
        self.violations = violations


def fields_invalid(violations: list[tuple[str, str]]) -> FieldsInvalid:
    return FieldsInvalid(violations)


def unauthenticated() -> Refusal:
    return AccessRefusal(
        Kind.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        "No verified identity came with the call. Sign in.",
    )


def token_revoked() -> Refusal:
    message = "This token was revoked after it was issued. Sign in again."
    return AccessRefusal(Kind.UNAUTHENTICATED, "TOKEN_REVOKED", message)


def caller_not_allowed(method: str) -> Refusal:
    message = f"You may not call {method}."
    return AccessRefusal(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED", message, method=method)


def dependency_unavailable(
    dependency: str, retry_after: timedelta = timedelta(seconds=1)
) -> Refusal:
    message = f"{dependency} does not answer. Repeat the call with the same request_id."
    return AccessRefusal(
        Kind.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        message,
        retry_after=retry_after,
        dependency=dependency,
    )


def overloaded(retry_after: timedelta) -> Refusal:
    message = "Too much is waiting already. Repeat the call later, with the same request_id."
    return AccessRefusal(Kind.EXHAUSTED, "OVERLOADED", message, retry_after=retry_after)


def internal(trace_id: str) -> Refusal:
    message = "A defect on our side. Report the trace id; repeating the call with the same request_id is safe."
    return AccessRefusal(Kind.INTERNAL, "INTERNAL", message, traceId=trace_id)


def page_token_invalid() -> Refusal:
    message = "page_token is not one this list gave for the same request. Start again without it."
    return AccessRefusal(Kind.INVALID, "PAGE_TOKEN_INVALID", message)


def cursor_expired() -> Refusal:
    message = "cursor is malformed or older than the events still kept. List, then watch without a cursor."
    return AccessRefusal(Kind.OUT_OF_RANGE, "CURSOR_EXPIRED", message)
