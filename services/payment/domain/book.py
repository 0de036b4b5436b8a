"""What one group of commands works on: what it has locked and read, and what it has decided so far."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from uuid_utils import UUID

from services.payment.domain import refusals
from services.payment.domain.ledger import Ledger, Transfer, Wallet, WalletKey
from services.payment.domain.payment import (
    MOVES,
    FailureReason,
    Payment,
    Risk,
    Shown,
    State,
)
from services.payment.domain.reservation import Reservation


@dataclass(frozen=True, slots=True)
class Policy:
    """What a deployment decides.

    Attributes:
        currencies: ISO 4217 codes wallets are kept in.
        degraded_floor: Minor units up to which a payment passes while the fraud service is away.
        offline_cap: Minor units a wallet may have offline and behind live codes together.
    """

    currencies: frozenset[str]
    degraded_floor: int = 500_00
    offline_cap: int = 2_000_00


@dataclass(frozen=True, slots=True)
class Request:
    """What makes a command happen once.

    Attributes:
        key: The caller's id and the request's id, 32 bytes.
        body_hash: SHA-256 of what was asked.
        request_id: As the caller wrote it.
    """

    key: bytes
    body_hash: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The answer to a move outside payments: the wallet after it, and the transfer."""

    wallet: Wallet
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Refunded:
    """The answer to a refund: the payment after it, and the transfer."""

    payment: Payment
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Resolved:
    """The answer to the end of a review: the payment after it."""

    payment: Payment


@dataclass(frozen=True, slots=True)
class SettledOffline:
    """The answer to an offline payment: the payment as it stands, and the minor units that went back to the payer."""

    payment: Payment
    returned: int


# A payment that is its own answer is answered as it stands; the others as they were.
Outcome = Payment | Moved | Refunded | Resolved | SettledOffline | Reservation | None


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was carried out, and its answer."""

    body_hash: bytes
    outcome: Outcome


class PaymentMoved(NamedTuple):
    """A payment went from one state to another."""

    payment: Payment
    state: State
    transfers: tuple[Transfer, ...]
    actor: str
    review_reason: str


@dataclass(frozen=True, slots=True)
class PaymentRefunded:
    """Money went back to the payer."""

    payment: Payment
    transfer: Transfer
    actor: str


@dataclass(frozen=True, slots=True)
class PaymentAssessed:
    """The check a payment should have had before it settled."""

    payment: Payment
    risk: Risk


@dataclass(frozen=True, slots=True)
class FundsMoved:
    """A top-up, a payout, a move between balances."""

    wallet: WalletKey
    transfer: Transfer
    actor: str


@dataclass(frozen=True, slots=True)
class WalletChanged:
    """A wallet exists from now on, or its owner became active or inactive."""

    wallet: WalletKey
    active: bool
    time: datetime


Fact = PaymentMoved | PaymentRefunded | PaymentAssessed | FundsMoved | WalletChanged


class Task(enum.IntEnum):
    """What is still to be done for a payment. Stored; never renumbered."""

    SETTLE = 1
    ASSESS = 2


@dataclass(slots=True)
class Book:
    """What a group has locked and read, and what it has decided so far; the store writes the second part.

    A command checks everything before it changes anything, so that a refused one leaves the book as it was.
    """

    ledger: Ledger
    payments: dict[UUID, Payment]
    requests: dict[bytes, Answered]
    policy: Policy
    reservations: dict[UUID, Reservation] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    new_requests: dict[bytes, Answered] = field(default_factory=dict)
    new_payments: dict[UUID, None] = field(default_factory=dict)  # in the order made
    changed_payments: set[UUID] = field(default_factory=set)
    new_wallets: set[WalletKey] = field(default_factory=set)
    new_tasks: list[tuple[UUID, Task]] = field(default_factory=list)
    done_tasks: list[tuple[UUID, Task]] = field(default_factory=list)
    shown: dict[UUID, Shown] = field(default_factory=dict)  # of payments to be assessed later
    new_reservations: set[UUID] = field(default_factory=set)
    changed_reservations: set[UUID] = field(default_factory=set)

    def answered(self, request: Request) -> Answered | None:
        """The answer a request got before, or None for a new one.

        Raises:
            Refusal: request_id_reused.
        """
        earlier = self.requests.get(request.key)
        if earlier is not None and earlier.body_hash != request.body_hash:
            raise refusals.request_id_reused(request.request_id)
        return earlier

    def answer(self, request: Request, outcome: Outcome) -> None:
        """Remember the answer, for the same request later, in this group or another."""
        self.requests[request.key] = self.new_requests[request.key] = Answered(
            request.body_hash, outcome
        )

    def record(self, payment: Payment, actor: str) -> None:
        """Put a new payment on record, PENDING."""
        assert payment.state is State.PENDING
        self.payments[payment.payment_id] = payment
        self.new_payments[payment.payment_id] = None
        self.facts.append(PaymentMoved(payment, State.PENDING, (), actor, ""))

    def move(
        self,
        payment: Payment,
        state: State,
        *,
        actor: str,
        now: datetime,
        transfers: tuple[Transfer, ...] = (),
        failure_reason: FailureReason = FailureReason.NONE,
        risk: Risk | None = None,
        review_reason: str = "",
    ) -> Payment:
        """Take a payment to another state, with the transfers that go with it."""
        assert (payment.state, state) in MOVES
        moved = payment._replace(
            state=state,
            failure_reason=failure_reason,
            risk=payment.risk if risk is None else risk,
            update_time=now,
        )
        self._change(moved)
        for transfer in transfers:
            self.ledger.post(transfer)
        self.facts.append(PaymentMoved(moved, state, transfers, actor, review_reason))
        return moved

    def refund(self, payment: Payment, transfer: Transfer, *, actor: str) -> Payment:
        """Give part of a payment back."""
        refunded = payment._replace(
            refunded=payment.refunded + transfer.amount,
            update_time=transfer.create_time,
        )
        self.ledger.post(transfer)
        self._change(refunded)
        self.facts.append(PaymentRefunded(refunded, transfer, actor))
        return refunded

    def reserve(self, reservation: Reservation) -> None:
        """Put a new reservation on record."""
        self.reservations[reservation.reservation_id] = reservation
        self.new_reservations.add(reservation.reservation_id)

    def end_reservation(self, reservation: Reservation) -> None:
        """Record where the money of a live one went."""
        self.reservations[reservation.reservation_id] = reservation
        if reservation.reservation_id not in self.new_reservations:
            self.changed_reservations.add(reservation.reservation_id)

    def _change(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment
        if payment.payment_id not in self.new_payments:
            self.changed_payments.add(payment.payment_id)
