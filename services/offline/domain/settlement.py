"""What becomes of an item: one function decides, another takes up what payment says."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.offline.domain.code import Code
from services.offline.domain.code import State as CodeState
from services.offline.domain.item import Entry, Reason, State, Verdict
from services.offline.domain.liability import liability

# What a reason for the hold is called in the ledger is the reason's own name. The ledger's word for a vendor that is
# not active any more, which it may learn before we do.
_VENDOR_NOT_ACTIVE = "VENDOR_NOT_ACTIVE"
DETAIL_CHARACTERS_MAX = 200


def decide(
    entry: Entry,
    code: Code | None,
    *,
    scope: str,
    terminal_revoke_time: datetime | None,
    vendor_active: bool,
    spent_by_same_vendor: bool,
) -> Verdict:
    """Decide an item, in the order of `offline.v1.Reason`; the first reason that applies counts.

    Args:
        entry: RECEIVED. That it is the terminal's and can be read was checked on arrival.
        code: What its proof stands for, as it is now; None when there is no such code.
        scope: The terminal's area.
        terminal_revoke_time: When the terminal was revoked; None when it was not.
        vendor_active: The vendor may be paid now.
        spent_by_same_vendor: The item that spent the code is of the same vendor; False when none did.

    Returns:
        REFUSED with who bears it; or RECEIVED, with the reason its money is to be held for, if any: the code is to be
        spent for it, and payment to be told.
    """
    refusal = _refusal(entry, code, scope, terminal_revoke_time)
    if refusal is not None:
        reason, detail = refusal
        same = reason is Reason.DUPLICATE_CODE and spent_by_same_vendor
        return Verdict(State.REFUSED, reason, detail, liability(reason, same_vendor=same))
    if not vendor_active:
        return Verdict(
            State.RECEIVED, Reason.VENDOR_NOT_APPROVED, "The vendor's account is not active."
        )
    return Verdict(State.RECEIVED, entry.doubt, entry.doubt_detail)


def _refusal(
    entry: Entry, code: Code | None, scope: str, terminal_revoke_time: datetime | None
) -> tuple[Reason, str] | None:
    at = entry.record_time
    if terminal_revoke_time is not None and at >= terminal_revoke_time:
        return (
            Reason.TERMINAL_REVOKED,
            f"The terminal was revoked at {_text(terminal_revoke_time)}.",
        )
    if code is None or code.state in {CodeState.ABANDONED, CodeState.RESERVING}:
        return Reason.UNKNOWN_CODE, entry.flaw or "No code like this was ever issued."
    if code.value.currency_code != entry.money.currency_code:
        return Reason.UNKNOWN_CODE, f"No code like this was issued in {entry.money.currency_code}."
    if code.scope != scope:
        return Reason.UNKNOWN_CODE, f"No code like this was issued for the area {scope}."
    if entry.flaw:
        return Reason.VOUCHER_INVALID, entry.flaw
    if entry.money.minor_units > code.value.minor_units:
        return Reason.AMOUNT_OVER_VALUE, f"The code is worth {code.value}; {entry.money} was taken."
    if at >= code.expire_time:
        return Reason.EXPIRED_AT_SPEND, f"The code expired at {_text(code.expire_time)}."
    if code.revoke_time is not None and at >= code.revoke_time:
        return Reason.REVOKED_BEFORE_SPEND, f"The code was revoked at {_text(code.revoke_time)}."
    if code.state is CodeState.SPENT:
        return Reason.DUPLICATE_CODE, "Another item spent the code."
    if entry.receive_time >= code.release_time or not code.can_be_spent:
        return Reason.LATE_UPLOAD, f"Its upload window ended at {_text(code.release_time)}."
    return None


class Paid(enum.Enum):
    """What payment says of an item."""

    SUCCESS = "success"
    FLAGGED = "flagged"
    FAILED = "failed"


def conclude(entry: Entry, paid: Paid, risk_reasons: Sequence[str] = ()) -> Verdict:
    """The result of an item whose code is spent, by what its payment is now.

    Args:
        entry: With what it spent, and the reason its money was to be held for, if any.
        paid: What its payment is.
        risk_reasons: Why it was held, as the ledger has it; strongest first.
    """
    assert entry.spend is not None
    if paid is Paid.SUCCESS:
        whole = entry.money.minor_units == entry.spend.value
        reason = Reason.SETTLED if whole else Reason.PARTIALLY_SETTLED
        return Verdict(State.SETTLED, reason, "", liability(reason))
    if paid is Paid.FAILED:
        reason = Reason.REVIEW_REJECTED
        return Verdict(State.REFUSED, reason, "A person rejected it.", liability(reason))
    reason, detail = entry.reason, entry.detail
    if reason is Reason.NONE and _VENDOR_NOT_ACTIVE in risk_reasons:
        reason, detail = Reason.VENDOR_NOT_APPROVED, "The vendor's account is not active."
    elif reason is Reason.NONE:
        reason, detail = Reason.HELD_FOR_REVIEW, f"Held for {', '.join(risk_reasons)}."
    return Verdict(State.HELD, reason, _short(detail), liability(reason))


def refused_by_payment(reason: str, message: str) -> Verdict:
    """The result of an item that the ledger will never take."""
    detail = _short(f"{reason}: {message}")
    return Verdict(State.REFUSED, Reason.PAYMENT_REFUSED, detail, liability(Reason.PAYMENT_REFUSED))


def decided(entry: Entry, verdict: Verdict, *, now: datetime) -> Entry:
    """An item with its result."""
    return replace(
        entry,
        state=verdict.state,
        reason=verdict.reason,
        detail=verdict.detail,
        liability=verdict.liability,
        decide_time=now,
    )


def _short(detail: str) -> str:
    return detail[:DETAIL_CHARACTERS_MAX]


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
