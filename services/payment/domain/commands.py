"""Payments, as commands decided one after the other on a group's book.

A command names what must be locked before it is decided. `decide` is a pure step on the book: it checks everything,
then changes it, and answers; or raises a Refusal and leaves the book as it was. Ids and the time come from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from uuid_utils import UUID

from services import names
from services.money import Money
from services.payment.domain import refusals
from services.payment.domain.book import (
    Book,
    Outcome,
    PaymentAssessed,
    Refunded,
    Request,
    Resolved,
    Task,
)
from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    Account,
    Bucket,
    Purpose,
    Transfer,
    WalletKey,
)
from services.payment.domain.payment import (
    UNASSESSED,
    Channel,
    Decision,
    FailureReason,
    Payment,
    Position,
    Risk,
    State,
)

# Who did what nobody asked for.
PLATFORM = "services/payment"


class Command(Protocol):
    """One thing to do to the ledger."""

    @property
    def request(self) -> Request | None:
        """What makes it happen once; None where its effect says so itself."""

    def wallets(self) -> Sequence[WalletKey]:
        """The wallets to lock."""

    def payments(self) -> Sequence[UUID]:
        """The payments to read once the wallets are locked: a payer's wallet guards the payer's payments."""

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Do it.

        Raises:
            Refusal: as the contract says of the RPC behind it.
        """


class CreatePayment(NamedTuple):
    """Pay a vendor online; or, not waiting, only put the payment on record.

    `risk` is what the fraud check said. Source of the order of checks: design, section 4.
    """

    request: Request
    payment_id: UUID
    transfer_id: UUID
    payer: WalletKey
    vendor_id: UUID
    site_id: UUID | None
    amount: int
    position: Position | None
    reference: str
    wait: bool
    risk: Risk = UNASSESSED

    @property
    def vendor(self) -> WalletKey:
        """The wallet to pay."""
        return WalletKey(self.vendor_id, self.payer.currency_code)

    def wallets(self) -> Sequence[WalletKey]:
        """Both sides."""
        return (self.payer, self.vendor)

    def payments(self) -> Sequence[UUID]:
        """None: a replay's is read with the request."""
        return ()

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Settle, hold, fail, or put on record.

        Raises:
            Refusal: request_id_reused, payer_not_active, vendor_not_found, vendor_not_active, balance_over_limit.
        """
        earlier = book.answered(self.request)
        if earlier is not None:
            assert isinstance(earlier.outcome, Payment)
            return book.payments[earlier.outcome.payment_id]
        wallets = book.ledger.wallets
        payer, vendor = wallets.get(self.payer), wallets.get(self.vendor)
        if payer is None or not payer.active:
            raise refusals.payer_not_active(names.user_name(self.payer.owner_id))
        if vendor is None or not vendor.is_vendor:
            raise refusals.vendor_not_found(names.user_name(self.vendor_id))
        if not vendor.active:
            raise refusals.vendor_not_active(names.user_name(self.vendor_id))
        if book.ledger.room(Account(self.vendor, Bucket.ONLINE)) < self.amount:
            raise refusals.balance_over_limit(balance_max(self.payer))
        actor = names.user_name(self.payer.owner_id)
        payment = Payment(
            payment_id=self.payment_id,
            payer=self.payer,
            vendor_id=self.vendor_id,
            site_id=self.site_id,
            amount=self.amount,
            refunded=0,
            state=State.PENDING,
            failure_reason=FailureReason.NONE,
            risk=UNASSESSED,
            position=self.position,
            reference=self.reference,
            request_id=UUID(self.request.request_id),
            create_time=now,
            update_time=now,
        )
        book.record(payment, actor)
        if self.wait:
            payment = _settle(book, payment, self.risk, self.transfer_id, now=now)
        else:
            book.new_tasks.append((self.payment_id, Task.SETTLE))
        book.answer(self.request, payment)
        return payment


class SettlePending(NamedTuple):
    """Settle a payment that was put on record before. Settling it twice changes nothing."""

    payment_id: UUID
    transfer_id: UUID
    payer: WalletKey
    vendor: WalletKey
    risk: Risk = UNASSESSED
    request: None = None

    def wallets(self) -> Sequence[WalletKey]:
        """Both sides."""
        return (self.payer, self.vendor)

    def payments(self) -> Sequence[UUID]:
        """The payment."""
        return (self.payment_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Settle, hold or fail."""
        payment = book.payments[self.payment_id]
        book.done_tasks.append((self.payment_id, Task.SETTLE))
        if payment.state is not State.PENDING:
            return payment
        return _settle(book, payment, self.risk, self.transfer_id, now=now)


def _settle(
    book: Book, payment: Payment, risk: Risk, transfer_id: UUID, *, now: datetime
) -> Payment:
    wallets = book.ledger.wallets
    processing = book.move(payment, State.PROCESSING, actor=PLATFORM, now=now, risk=risk)

    def fail(reason: FailureReason) -> Payment:
        return book.move(processing, State.FAILED, actor=PLATFORM, now=now, failure_reason=reason)

    if not wallets[payment.payer].active:
        return fail(FailureReason.PAYER_NOT_ACTIVE)
    if not wallets[payment.vendor].active:
        return fail(FailureReason.VENDOR_NOT_ACTIVE)
    if risk.decision is Decision.DECLINE:
        return fail(FailureReason.RISK_DECLINED)
    if wallets[payment.payer].balance(Bucket.ONLINE) < payment.amount:
        return fail(FailureReason.INSUFFICIENT_FUNDS)
    degraded = risk.decision is Decision.DEGRADED
    hold = risk.decision is not Decision.ALLOW and not (
        degraded and payment.amount <= book.policy.degraded_floor
    )
    if degraded and not hold:
        book.new_tasks.append((payment.payment_id, Task.ASSESS))
    transfer = Transfer(
        transfer_id=transfer_id,
        debit=Account(payment.payer, Bucket.ONLINE),
        credit=Account(payment.payer, Bucket.HELD)
        if hold
        else Account(payment.vendor, Bucket.ONLINE),
        amount=payment.amount,
        purpose=Purpose.HOLD if hold else Purpose.PAYMENT,
        payment_id=payment.payment_id,
        reference=payment.reference,
        create_time=now,
    )
    state = State.FLAGGED if hold else State.SUCCESS
    return book.move(processing, state, actor=PLATFORM, now=now, transfers=(transfer,))


@dataclass(frozen=True, slots=True)
class ResolveHold:
    """End the review of a flagged payment, exactly once."""

    request: Request
    payment_id: UUID
    transfer_id: UUID
    payer: WalletKey
    vendor: WalletKey
    approve: bool
    actor: str
    reason: str

    def wallets(self) -> Sequence[WalletKey]:
        """Both sides."""
        return (self.payer, self.vendor)

    def payments(self) -> Sequence[UUID]:
        """The payment."""
        return (self.payment_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Pay the vendor, or give the money back to the balance it came from.

        Raises:
            Refusal: request_id_reused, payment_not_flagged, balance_over_limit.
        """
        earlier = book.answered(self.request)
        if earlier is not None:
            return earlier.outcome
        payment = book.payments[self.payment_id]
        if payment.state is not State.FLAGGED:
            raise refusals.payment_not_flagged(payment.state.name)
        vendor = Account(payment.vendor, Bucket.ONLINE)
        if self.approve and book.ledger.room(vendor) < payment.amount:
            raise refusals.balance_over_limit(balance_max(payment.payer))
        transfer = Transfer(
            transfer_id=self.transfer_id,
            debit=Account(payment.payer, Bucket.HELD),
            credit=vendor if self.approve else Account(payment.payer, _paid_from(payment)),
            amount=payment.amount,
            purpose=Purpose.HOLD_CAPTURE if self.approve else Purpose.HOLD_RELEASE,
            payment_id=payment.payment_id,
            reference=payment.reference,
            create_time=now,
        )
        payment = book.move(
            payment,
            State.SUCCESS if self.approve else State.FAILED,
            actor=self.actor,
            now=now,
            transfers=(transfer,),
            failure_reason=FailureReason.NONE if self.approve else FailureReason.REVIEW_REJECTED,
            review_reason=self.reason,
        )
        outcome = Resolved(payment)
        book.answer(self.request, outcome)
        return outcome


@dataclass(frozen=True, slots=True)
class Refund:
    """Give all or part of a settled payment back."""

    request: Request
    payment_id: UUID
    transfer_id: UUID
    payer: WalletKey
    vendor: WalletKey
    amount: Money
    actor: str
    reason: str

    def wallets(self) -> Sequence[WalletKey]:
        """Both sides."""
        return (self.payer, self.vendor)

    def payments(self) -> Sequence[UUID]:
        """The payment."""
        return (self.payment_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Move the money back.

        Raises:
            Refusal: request_id_reused, currency_mismatch, payment_not_settled, refund_exceeds_payment,
                vendor_funds_insufficient, balance_over_limit.

        Source: how card schemes refund: a new credit up to what was captured, never an edit of the sale.
        """
        earlier = book.answered(self.request)
        if earlier is not None:
            return earlier.outcome
        payment = book.payments[self.payment_id]
        currency_code = payment.payer.currency_code
        if self.amount.currency_code != currency_code:
            raise refusals.currency_mismatch(self.amount.currency_code, currency_code)
        if payment.state is not State.SUCCESS:
            raise refusals.payment_not_settled(payment.state.name)
        if self.amount.minor_units > payment.amount - payment.refunded:
            raise refusals.refund_exceeds_payment(self.amount, payment.amount - payment.refunded)
        if book.ledger.wallets[payment.vendor].balance(Bucket.ONLINE) < self.amount.minor_units:
            raise refusals.vendor_funds_insufficient(self.amount)
        payer = Account(payment.payer, Bucket.ONLINE)
        if book.ledger.room(payer) < self.amount.minor_units:
            raise refusals.balance_over_limit(balance_max(payment.payer))
        transfer = Transfer(
            transfer_id=self.transfer_id,
            debit=Account(payment.vendor, Bucket.ONLINE),
            credit=payer,
            amount=self.amount.minor_units,
            purpose=Purpose.REFUND,
            payment_id=payment.payment_id,
            reference=self.reason,
            create_time=now,
        )
        outcome = Refunded(book.refund(payment, transfer, actor=self.actor), transfer)
        book.answer(self.request, outcome)
        return outcome


@dataclass(frozen=True, slots=True)
class RecordAssessment:
    """Record the check that a payment settled in degraded mode has had since."""

    payment_id: UUID
    payer: WalletKey
    risk: Risk

    @property
    def request(self) -> Request:
        """One for each payment, whatever the check says: two replicas may find the same payment unassessed."""
        return Request(bytes(16) + self.payment_id.bytes, bytes(32), str(self.payment_id))

    def wallets(self) -> Sequence[WalletKey]:
        """The payer's, which guards the payment."""
        return (self.payer,)

    def payments(self) -> Sequence[UUID]:
        """The payment."""
        return (self.payment_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Keep the assessment, once; what the payment was settled by stays on it."""
        payment = book.payments[self.payment_id]
        if book.answered(self.request) is None:
            book.done_tasks.append((self.payment_id, Task.ASSESS))
            book.facts.append(PaymentAssessed(payment, self.risk))
            book.answer(self.request, payment)
        return payment


def _paid_from(payment: Payment) -> Bucket:
    return Bucket.OFFLINE if payment.channel is Channel.OFFLINE else Bucket.ONLINE


def balance_max(wallet: WalletKey) -> Money:
    """What an account may hold."""
    return Money(BALANCE_MINOR_UNITS_MAX, wallet.currency_code)
