"""Who bears the loss of an item that is not paid, by reason: one table, in the API and in docs/offline.md."""

from __future__ import annotations

from dataclasses import dataclass

from services.offline.domain.item import Liability, Reason


@dataclass(frozen=True, slots=True)
class Rule:
    """Who bears the loss of items with a reason, and why that is fair."""

    reason: Reason
    liability: Liability
    explanation: str


RULES = (
    Rule(Reason.SETTLED, Liability.NONE, "The vendor was paid."),
    Rule(Reason.PARTIALLY_SETTLED, Liability.NONE, "The vendor was paid; the payer has the rest."),
    Rule(
        Reason.ENTRY_MALFORMED,
        Liability.VENDOR,
        "The vendor's terminal wrote what nobody can read.",
    ),
    Rule(
        Reason.SIGNATURE_INVALID,
        Liability.VENDOR,
        "Nothing shows that the vendor's terminal wrote it.",
    ),
    Rule(
        Reason.TERMINAL_REVOKED,
        Liability.VENDOR,
        "The vendor, or the platform on its behalf, had stopped the terminal before the sale.",
    ),
    Rule(
        Reason.UNKNOWN_CODE,
        Liability.VENDOR,
        "The terminal could tell: neither the tag nor the filter of issued codes lets it pass.",
    ),
    Rule(
        Reason.VOUCHER_INVALID,
        Liability.VENDOR,
        "The terminal could tell: it has the public keys to check with.",
    ),
    Rule(
        Reason.AMOUNT_OVER_VALUE,
        Liability.VENDOR,
        "The terminal could tell: the code says its value.",
    ),
    Rule(
        Reason.EXPIRED_AT_SPEND,
        Liability.VENDOR,
        "The terminal could tell: the code says its last day.",
    ),
    Rule(
        Reason.REVOKED_BEFORE_SPEND,
        Liability.VENDOR,
        "Who reports a code as lost is free of it; a terminal that syncs often learns it early.",
    ),
    Rule(
        Reason.DUPLICATE_CODE,
        Liability.PAYER,
        "Who shows one code to two vendors owes the second one. A code taken twice by one vendor is that vendor's "
        "loss: its own terminals could tell.",
    ),
    Rule(
        Reason.LATE_UPLOAD,
        Liability.VENDOR,
        "The vendor had the whole upload window; the money had to go back to the payer at its end.",
    ),
    Rule(Reason.VENDOR_NOT_APPROVED, Liability.UNDER_REVIEW, "A person decides."),
    Rule(Reason.CLOCK_IMPLAUSIBLE, Liability.UNDER_REVIEW, "A person decides."),
    Rule(Reason.SEQUENCE_GAP, Liability.UNDER_REVIEW, "A person decides."),
    Rule(Reason.SEQUENCE_REUSED, Liability.UNDER_REVIEW, "A person decides."),
    Rule(Reason.HELD_FOR_REVIEW, Liability.UNDER_REVIEW, "A person decides."),
    Rule(
        Reason.REVIEW_REJECTED,
        Liability.VENDOR,
        "A person found that the sale should not be paid.",
    ),
    Rule(
        Reason.PAYMENT_REFUSED,
        Liability.UNDER_REVIEW,
        "The ledger would not take it, and says why; a person looks into it.",
    ),
)

_BY_REASON = {rule.reason: rule.liability for rule in RULES}


def liability(reason: Reason, *, same_vendor: bool = False) -> Liability:
    """Who bears the loss.

    Args:
        reason: Why the item stands where it stands.
        same_vendor: For DUPLICATE_CODE: the item that was paid is of the same vendor.
    """
    if reason is Reason.DUPLICATE_CODE and same_vendor:
        return Liability.VENDOR
    return _BY_REASON[reason]
