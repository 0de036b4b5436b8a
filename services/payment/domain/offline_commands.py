"""Money behind offline codes: set aside, settled as a payment, or given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from uuid_utils import UUID

from services import names
from services.money import Money
from services.payment.domain import refusals
from services.payment.domain.book import (
    Book,
    FundsMoved,
    Moved,
    Outcome,
    Request,
    SettledOffline,
    Task,
)
from services.payment.domain.commands import PLATFORM, balance_max
from services.payment.domain.ledger import (
    SYSTEM_NAMES,
    Account,
    Bucket,
    Purpose,
    Transfer,
    Wallet,
    WalletKey,
)
from services.payment.domain.payment import (
    NOTHING_SHOWN,
    UNASSESSED,
    Channel,
    Decision,
    FailureReason,
    Payment,
    Position,
    Risk,
    Shown,
    State,
)
from services.payment.domain.reservation import Reservation, ReservationState

# Who decides on codes.
ACTOR = "services/offline"


@dataclass(frozen=True, slots=True)
class ReserveFunds:
    """Set money of the offline balance aside, a reservation for each of some codes: all of them or none."""

    request: Request
    transfer_id: UUID
    wallet: WalletKey
    amounts: tuple[tuple[UUID, int], ...]

    def wallets(self) -> Sequence[WalletKey]:
        """The payer's."""
        return (self.wallet,)

    def payments(self) -> Sequence[UUID]:
        """None."""
        return ()

    def reservations(self) -> Sequence[UUID]:
        """Those to be made, to see that they are new."""
        return [reservation_id for reservation_id, _ in self.amounts]

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Set it aside.

        Raises:
            Refusal: wallet_not_found, request_id_reused, wallet_not_active, reservation_exists, insufficient_funds.
        """
        name = names.wallet_name(*self.wallet)
        wallet = book.ledger.wallets.get(self.wallet)
        if wallet is None or self.wallet.owner_id in SYSTEM_NAMES:
            raise refusals.wallet_not_found(name)
        earlier = book.answered(self.request)
        if earlier is not None:
            return earlier.outcome
        if not wallet.active:
            raise refusals.wallet_not_active(name)
        for reservation_id, _ in self.amounts:
            if reservation_id in book.reservations:
                raise refusals.reservation_exists(names.reservation_name(reservation_id))
        total = sum(amount for _, amount in self.amounts)
        if wallet.balance(Bucket.OFFLINE) < total:
            asked = Money(total, self.wallet.currency_code)
            raise refusals.insufficient_funds(asked, wallet.balance(Bucket.OFFLINE))
        transfer = Transfer(
            transfer_id=self.transfer_id,
            debit=Account(self.wallet, Bucket.OFFLINE),
            credit=Account(self.wallet, Bucket.RESERVED),
            amount=total,
            purpose=Purpose.RESERVE,
            payment_id=None,
            reference="",
            create_time=now,
        )
        book.ledger.post(transfer)
        book.facts.append(FundsMoved(self.wallet, transfer, ACTOR))
        for reservation_id, amount in self.amounts:
            book.reserve(
                Reservation(
                    reservation_id, self.wallet, amount, ReservationState.LIVE, None, now, now
                )
            )
        outcome = Moved(replace(wallet, balances=list(wallet.balances)), transfer)
        book.answer(self.request, outcome)
        return outcome


class SettleOffline(NamedTuple):
    """Turn a reservation into a payment. `risk` is what the fraud check said, in event time.

    The payer has the goods already, so no verdict refuses it: the money goes to the vendor, or is held for a person.

    The caller has made and stored the payment's id, and the payment is all there is to remember of the request: asked
    again, the item is compared with it. `payer` is the payer's wallet in the currency of `amount`; a reservation of
    another wallet is refused.
    """

    payment_id: UUID
    transfer_id: UUID
    release_id: UUID
    reservation_id: UUID
    payer: WalletKey
    vendor_id: UUID
    terminal_id: UUID
    site_id: UUID | None
    amount: Money
    spend_time: datetime
    position: Position | None
    reference: str
    hold_reason: str
    shown: Shown = NOTHING_SHOWN
    risk: Risk = UNASSESSED
    request: None = None

    @property
    def vendor(self) -> WalletKey:
        """The wallet to pay."""
        return WalletKey(self.vendor_id, self.payer.currency_code)

    def wallets(self) -> Sequence[WalletKey]:
        """Both sides. The payer's guards the reservation."""
        return (self.payer, self.vendor)

    def payments(self) -> Sequence[UUID]:
        """The one to be made, to see that it is new."""
        return (self.payment_id,)

    def reservations(self) -> Sequence[UUID]:
        """The one behind the code."""
        return (self.reservation_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Pay, or hold.

        Raises:
            Refusal: reservation_not_found, payment_exists, reservation_settled, reservation_released,
                currency_mismatch, amount_over_reservation, self_payment, vendor_not_found, balance_over_limit.
        """
        reservation = book.reservations.get(self.reservation_id)
        if reservation is None or reservation.wallet.owner_id != self.payer.owner_id:
            name = names.reservation_name(self.reservation_id)
            raise refusals.reservation_not_found(name)
        made = book.payments.get(self.payment_id)
        if made is not None:
            if not self._asks_for(made):
                raise refusals.payment_exists(names.payment_name(self.payment_id))
            return SettledOffline(made, reservation.amount - made.amount)
        vendor = self._check(book, reservation)
        risk = self._judged(vendor_active=vendor.active)
        payment = Payment(
            payment_id=self.payment_id,
            payer=self.payer,
            vendor_id=self.vendor_id,
            site_id=self.site_id,
            amount=self.amount.minor_units,
            refunded=0,
            state=State.PENDING,
            failure_reason=FailureReason.NONE,
            risk=UNASSESSED,
            position=self.position,
            reference=self.reference,
            request_id=self.payment_id,
            create_time=now,
            update_time=now,
            channel=Channel.OFFLINE,
            terminal_id=self.terminal_id,
            reservation_id=self.reservation_id,
            spend_time=self.spend_time,
        )
        book.record(payment, ACTOR)
        payment = book.move(payment, State.PROCESSING, actor=PLATFORM, now=now, risk=risk)
        hold = not self._passes(book, risk)
        if risk.decision is Decision.DEGRADED and not hold:
            book.new_tasks.append((self.payment_id, Task.ASSESS))
            book.shown[self.payment_id] = self.shown
        payment = book.move(
            payment,
            State.FLAGGED if hold else State.SUCCESS,
            actor=PLATFORM,
            now=now,
            transfers=self._transfers(reservation, None if hold else vendor.key, now),
        )
        book.end_reservation(
            reservation._replace(
                state=ReservationState.SETTLED,
                payment_id=self.payment_id,
                update_time=now,
            )
        )
        return SettledOffline(payment, reservation.amount - payment.amount)

    def _asks_for(self, payment: Payment) -> bool:
        """Whether a payment is what this asks for, by what it keeps of what was asked, which nothing changes later.

        What it was judged by (`hold_reason`, `shown`) is not kept, and a payment is judged once.
        """
        return (
            payment.channel is Channel.OFFLINE
            and payment.reservation_id == self.reservation_id
            and payment.payer == self.payer
            and payment.vendor_id == self.vendor_id
            and payment.terminal_id == self.terminal_id
            and payment.site_id == self.site_id
            and payment.amount == self.amount.minor_units
            and payment.spend_time == self.spend_time
            and payment.position == self.position
            and payment.reference == self.reference
        )

    def _check(self, book: Book, reservation: Reservation) -> Wallet:
        """Whom to pay."""
        name = names.reservation_name(self.reservation_id)
        if reservation.state is ReservationState.SETTLED:
            assert reservation.payment_id is not None
            raise refusals.reservation_settled(name, names.payment_name(reservation.payment_id))
        if reservation.state is ReservationState.RELEASED:
            raise refusals.reservation_released(name)
        currency_code = reservation.wallet.currency_code
        if self.amount.currency_code != currency_code:
            raise refusals.currency_mismatch(self.amount.currency_code, currency_code)
        if self.amount.minor_units > reservation.amount:
            raise refusals.amount_over_reservation(self.amount, reservation.amount)
        if self.vendor_id == self.payer.owner_id:
            raise refusals.self_payment()
        vendor = book.ledger.wallets.get(self.vendor)
        if vendor is None or not vendor.is_vendor:
            raise refusals.vendor_not_found(names.user_name(self.vendor_id))
        if book.ledger.room(Account(vendor.key, Bucket.ONLINE)) < self.amount.minor_units:
            raise refusals.balance_over_limit(balance_max(self.payer))
        return vendor

    def _judged(self, *, vendor_active: bool) -> Risk:
        # What the fraud check said, and before it what else holds the money.
        reasons = [self.hold_reason] if self.hold_reason else []
        if not vendor_active:
            reasons.append("VENDOR_NOT_ACTIVE")
        if not reasons:
            return self.risk
        declined = self.risk.decision is Decision.DECLINE
        return Risk(
            Decision.DECLINE if declined else Decision.REVIEW,
            self.risk.score,
            tuple(dict.fromkeys((*reasons, *self.risk.reasons))),
        )

    def _passes(self, book: Book, risk: Risk) -> bool:
        if risk.decision is Decision.DEGRADED:
            return self.amount.minor_units <= book.policy.degraded_floor
        return risk.decision is Decision.ALLOW

    def _transfers(
        self, reservation: Reservation, vendor: WalletKey | None, now: datetime
    ) -> tuple[Transfer, ...]:
        """To the vendor, or held where there is none; and what is left, back."""
        reserved = Account(self.payer, Bucket.RESERVED)
        spent = Transfer(
            transfer_id=self.transfer_id,
            debit=reserved,
            credit=Account(vendor, Bucket.ONLINE) if vendor else Account(self.payer, Bucket.HELD),
            amount=self.amount.minor_units,
            purpose=Purpose.PAYMENT if vendor else Purpose.HOLD,
            payment_id=self.payment_id,
            reference=self.reference,
            create_time=now,
        )
        rest = reservation.amount - self.amount.minor_units
        if not rest:
            return (spent,)
        returned = Transfer(
            transfer_id=self.release_id,
            debit=reserved,
            credit=Account(self.payer, Bucket.OFFLINE),
            amount=rest,
            purpose=Purpose.RELEASE,
            payment_id=self.payment_id,
            reference="",
            create_time=now,
        )
        return (spent, returned)


@dataclass(frozen=True, slots=True)
class ReleaseReservation:
    """Give the money behind an unspent code back. A released or settled one stays as it is."""

    reservation_id: UUID
    transfer_id: UUID
    payer: WalletKey
    request: None = None

    def wallets(self) -> Sequence[WalletKey]:
        """The payer's."""
        return (self.payer,)

    def payments(self) -> Sequence[UUID]:
        """None."""
        return ()

    def reservations(self) -> Sequence[UUID]:
        """The one behind the code."""
        return (self.reservation_id,)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Give it back; answers what the reservation is then."""
        reservation = book.reservations[self.reservation_id]
        if reservation.state is not ReservationState.LIVE:
            return reservation
        transfer = Transfer(
            transfer_id=self.transfer_id,
            debit=Account(self.payer, Bucket.RESERVED),
            credit=Account(self.payer, Bucket.OFFLINE),
            amount=reservation.amount,
            purpose=Purpose.RELEASE,
            payment_id=None,
            reference="",
            create_time=now,
        )
        book.ledger.post(transfer)
        book.facts.append(FundsMoved(self.payer, transfer, ACTOR))
        released = reservation._replace(state=ReservationState.RELEASED, update_time=now)
        book.end_reservation(released)
        return released


RESERVING = (ReserveFunds, SettleOffline, ReleaseReservation)
