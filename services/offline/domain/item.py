"""An item: one sale of a terminal's journal, as the platform sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services.money import Money


class State(enum.IntEnum):
    """Where an item stands, numbered as in `offline.v1.Item.State`."""

    # An entry of the journal that is no sale.
    NO_SALE = 0
    RECEIVED = 1
    SETTLED = 2
    HELD = 3
    REFUSED = 4


class Reason(enum.IntEnum):
    """Why an item stands there, numbered as in `offline.v1.Reason`."""

    NONE = 0
    SETTLED = 1
    PARTIALLY_SETTLED = 2
    ENTRY_MALFORMED = 10
    SIGNATURE_INVALID = 11
    TERMINAL_REVOKED = 12
    UNKNOWN_CODE = 13
    VOUCHER_INVALID = 14
    AMOUNT_OVER_VALUE = 15
    EXPIRED_AT_SPEND = 16
    REVOKED_BEFORE_SPEND = 17
    DUPLICATE_CODE = 18
    LATE_UPLOAD = 19
    VENDOR_NOT_APPROVED = 20
    CLOCK_IMPLAUSIBLE = 21
    SEQUENCE_GAP = 22
    SEQUENCE_REUSED = 23
    HELD_FOR_REVIEW = 24
    REVIEW_REJECTED = 25
    PAYMENT_REFUSED = 26


class Liability(enum.IntEnum):
    """Who bears the loss, numbered as in `offline.v1.Liability`."""

    UNKNOWN = 0
    NONE = 1
    VENDOR = 2
    PAYER = 3
    UNDER_REVIEW = 4


class Work(enum.IntEnum):
    """What is left to do for an item."""

    NOTHING = 0
    # Look its code up and decide.
    DECIDE = 1
    # Its code is spent; payment has yet to say what became of the money.
    SETTLE = 2
    # Its money is held; should the news of the review be lost, payment is asked.
    WATCH = 3


class Proof(enum.IntEnum):
    """What the payer showed."""

    NONE = 0
    CODE = 1
    VOUCHER = 2


@dataclass(frozen=True, slots=True)
class Spend:
    """What an item spent.

    Attributes:
        code_id: The code; also the reservation behind it.
        owner_id: The payer.
        value: What the code was worth, minor units.
        issue_time: When the code was issued.
    """

    code_id: UUID
    owner_id: UUID
    value: int
    issue_time: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a terminal's journal, and for a sale what became of it.

    Attributes:
        entry_id: UUIDv7, made when it arrived; the payment's id, should there be one.
        vendor_id: Whose terminal.
        terminal_id: Which.
        sequence: Its number in the journal.
        content_hash: What the next entry carries of it.
        record_time: When it was written, by the terminal's trusted time.
        bundle_version: Of the trust bundle it names.
        receive_time: When it arrived.
        batch_id: The batch it first arrived in.
        place: Where in that batch.
        item_id: The id the terminal gave the sale; None for what is no sale.
        amount: What the terminal took; None for what is no sale.
        proof: What the payer showed.
        proof_hash: What the code is looked up by; empty where the proof cannot be read.
        spend_hash: Of what the payer's device signed; empty for a typed code.
        flaw: What is wrong with a voucher, in words; empty for nothing.
        doubt: A reason to hold the money that was seen on arrival: CLOCK_IMPLAUSIBLE and on.
        doubt_detail: That, in words.
        facts: What payment is told of it: a serialized `payment.v1.OfflinePayment`, as far as it is known on arrival.
        state: Where it stands.
        hold: Why payment was told to hold the money; NONE for no reason.
        reason: Why it stands there; while its money is being settled, why that will be held.
        detail: That, in words.
        liability: Who bears the loss.
        decide_time: When it got its present result.
        work: What is left to do.
        attempts: How often payment could not say.
        spend: What it spent; None for what spent nothing.
    """

    entry_id: UUID
    vendor_id: UUID
    terminal_id: UUID
    sequence: int
    content_hash: bytes
    record_time: datetime
    bundle_version: int
    receive_time: datetime
    batch_id: UUID
    place: int
    item_id: UUID | None = None
    amount: Money | None = None
    proof: Proof = Proof.NONE
    proof_hash: bytes = b""
    spend_hash: bytes = b""
    flaw: str = ""
    doubt: Reason = Reason.NONE
    doubt_detail: str = ""
    facts: bytes = b""
    state: State = State.NO_SALE
    hold: Reason = Reason.NONE
    reason: Reason = Reason.NONE
    detail: str = ""
    liability: Liability = Liability.UNKNOWN
    decide_time: datetime | None = None
    work: Work = Work.NOTHING
    attempts: int = 0
    spend: Spend | None = None

    @property
    def money(self) -> Money:
        """What the terminal took. Only for a sale."""
        assert self.amount is not None
        return self.amount

    @property
    def verdict(self) -> Verdict:
        """Where it stands, and why."""
        return Verdict(self.state, self.reason, self.detail, self.liability)

    def returned(self, verdict: Verdict) -> int | None:
        """Minor units that went back to the payer, with a verdict; None where there is no payment."""
        if self.spend is None or not verdict.is_of_payment:
            return None
        if verdict.state is State.REFUSED:
            return self.spend.value
        return self.spend.value - self.money.minor_units


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result, or a step on the way to one.

    Attributes:
        state: RECEIVED while payment has yet to say.
        reason: Why.
        detail: That, in words with the figures.
        liability: Who bears the loss.
    """

    state: State
    reason: Reason
    detail: str = ""
    liability: Liability = Liability.UNKNOWN

    @property
    def is_of_payment(self) -> bool:
        """Of an item that spent a code: there is a payment."""
        decided = self.state not in {State.RECEIVED, State.NO_SALE}
        return decided and self.reason is not Reason.PAYMENT_REFUSED
