"""Every way this service says no to a call: `offline.v1.ErrorReason`, one function each."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from services.money import Money
from services.refusal import Kind, Refusal


def currency_unsupported(currency_code: str, supported: Iterable[str]) -> Refusal:
    known = ", ".join(sorted(supported))
    message = f"No codes are issued in {currency_code}. Use one of: {known}."
    return Refusal(
        Kind.INVALID,
        "CURRENCY_UNSUPPORTED",
        message,
        currencyCode=currency_code,
        supported=known,
    )


def scope_unknown(scope: str, supported: Iterable[str]) -> Refusal:
    known = ", ".join(sorted(supported))
    message = f"There is no area {scope}. Use one of: {known}."
    return Refusal(Kind.INVALID, "SCOPE_UNKNOWN", message, scope=scope, supported=known)


def value_not_offered(asked: Money, offered: Iterable[int]) -> Refusal:
    known = ", ".join(str(value) for value in offered)
    message = f"No code can be worth {asked}. Ask for one of these, in minor units: {known}."
    return Refusal(
        Kind.INVALID,
        "VALUE_NOT_OFFERED",
        message,
        minorUnits=str(asked.minor_units),
        currencyCode=asked.currency_code,
        offered=known,
    )


def request_id_reused(request_id: str) -> Refusal:
    message = (
        f"request_id {request_id} came before with another body. Make a new id for a new request."
    )
    return Refusal(Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED", message, requestId=request_id)


def codes_already_shown(codes: Iterable[str]) -> Refusal:
    names = ", ".join(codes)
    message = (
        "These codes were issued, and their symbols are not kept. Revoke them if they are lost."
    )
    return Refusal(Kind.PRECONDITION, "CODES_ALREADY_SHOWN", message, codes=names)


def offline_suspended(reason: str) -> Refusal:
    message = f"You may not spend offline: {reason.rstrip('.')}. Ask the operator."
    return Refusal(Kind.PRECONDITION, "OFFLINE_SUSPENDED", message, reason=reason)


def too_many_codes(limit: int, live: int) -> Refusal:
    message = f"You have {live} live codes; {limit} are the most. Spend or revoke some."
    return Refusal(Kind.PRECONDITION, "TOO_MANY_CODES", message, limit=str(limit), live=str(live))


def offline_cap_exceeded(cap: int, live: int, currency_code: str) -> Refusal:
    message = (
        f"Live codes may be worth {Money(cap, currency_code)} together; yours are worth "
        f"{Money(live, currency_code)}. Ask for less, or when some have ended."
    )
    return Refusal(
        Kind.PRECONDITION,
        "OFFLINE_CAP_EXCEEDED",
        message,
        capMinorUnits=str(cap),
        liveMinorUnits=str(live),
        currencyCode=currency_code,
    )


def wallet_not_active(wallet: str) -> Refusal:
    message = "Your wallet may not move money, or there is none. Ask the operator."
    return Refusal(Kind.PRECONDITION, "WALLET_NOT_ACTIVE", message, wallet=wallet)


def insufficient_funds(asked: Money, available: int) -> Refusal:
    message = (
        f"The offline balance is {Money(available, asked.currency_code)}, below {asked}. "
        "Move money there first."
    )
    return Refusal(
        Kind.PRECONDITION,
        "INSUFFICIENT_FUNDS",
        message,
        askedMinorUnits=str(asked.minor_units),
        availableMinorUnits=str(available),
        currencyCode=asked.currency_code,
    )


def owner_not_found(owner: str) -> Refusal:
    message = f"There is no account {owner}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "OWNER_NOT_FOUND", message, owner=owner)


def code_not_found(code: str) -> Refusal:
    message = f"There is no code {code}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "CODE_NOT_FOUND", message, code=code)


def code_ended(code: str, state: str) -> Refusal:
    message = f"{code} is {state}: there is nothing left to stop."
    return Refusal(Kind.PRECONDITION, "CODE_ENDED", message, code=code, state=state)


def keysets_in_use(free_time: datetime) -> Refusal:
    at = free_time.isoformat()
    message = f"Codes of every keyset may still be uploaded. Rotate again after {at}."
    return Refusal(Kind.PRECONDITION, "KEYSETS_IN_USE", message, freeTime=at)


def terminal_not_found(terminal: str) -> Refusal:
    message = f"There is no terminal {terminal}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "TERMINAL_NOT_FOUND", message, terminal=terminal)


def terminal_revoked(terminal: str) -> Refusal:
    message = "The terminal was revoked. Its vendor uploads what it took before."
    return Refusal(Kind.FORBIDDEN, "TERMINAL_REVOKED", message, terminal=terminal)


def queue_full(retry_after: timedelta) -> Refusal:
    message = "Too much waits to be settled. Nothing was recorded; upload again later."
    return Refusal(Kind.EXHAUSTED, "QUEUE_FULL", message, retry_after=retry_after)


def batch_not_found(batch: str) -> Refusal:
    message = f"There is no batch {batch}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "BATCH_NOT_FOUND", message, batch=batch)
