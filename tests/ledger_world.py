"""One book and the commands on it, with ids and a clock that count up. Pure: no store."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from uuid_utils import UUID

from services.money import Money
from services.payment.domain.book import (
    Book,
    Policy,
    Request,
)
from services.payment.domain.commands import CreatePayment, Refund, ResolveHold, SettlePending
from services.payment.domain.ledger import (
    SYSTEM_NAMES,
    Account,
    Bucket,
    Ledger,
    Purpose,
    WalletKey,
)
from services.payment.domain.offline_commands import (
    ReleaseReservation,
    ReserveFunds,
    SettleOffline,
)
from services.payment.domain.payment import (
    Channel,
    Decision,
    FailureReason,
    Risk,
    State,
)
from services.payment.domain.reservation import ReservationState
from services.payment.domain.wallet_commands import MoveFunds, SetOwner
from services.refusal import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = Policy(frozenset({"INR", "KES"}), degraded_floor=500_00, offline_cap=2_000_00)
INT64_MAX = 2**63 - 1

ASHA, BABU, SHOP, STALL = (UUID(int=number) for number in range(101, 105))
OWNERS = (ASHA, BABU, SHOP, STALL)
ADMIN = "users/admin"
# Of a SettleOffline: the ids it brings for its transfers, and what its payment was judged by. The rest is on record.
NOT_KEPT = frozenset({"transfer_id", "release_id", "hold_reason", "shown", "risk", "request"})


class World:
    """One book, and commands on it with ids made in order.

    Attributes:
        book: What the commands have made of an empty ledger.
        now: A second later with every command.
    """

    def __init__(self):
        self.book = Book(Ledger({}), {}, {}, POLICY)
        self.now = NOW
        self._ids = 1_000

    def new_id(self):
        self._ids += 1
        return UUID(int=self._ids)

    def do(self, command):
        """Decide a command as the group does."""
        self.now += timedelta(seconds=1)
        return command.decide(self.book, self.now)

    def refused(self, command):
        """The reason a command is refused with; it must leave the book as it was."""
        before = copied(self.book)
        with pytest.raises(Refusal) as raised:
            self.do(command)
        assert self.book == before
        return raised.value.reason

    def opened(self, *owners, active=True, version=1):
        for owner in owners:
            vendor = owner in (SHOP, STALL)
            self.do(SetOwner(owner, active, vendor, version, POLICY.currencies))
        return self

    def once(self, body="", key=None):
        key = self.new_id().bytes + bytes(16) if key is None else key
        return Request(key, hashlib.sha256(repr(body).encode()).digest(), str(UUID(int=1)))

    def top_up(self, owner, amount, **changes):
        return self.funds(owner, amount, Purpose.TOP_UP, None, Bucket.ONLINE, **changes)

    def payout(self, owner, amount, **changes):
        return self.funds(owner, amount, Purpose.PAYOUT, Bucket.ONLINE, None, **changes)

    def to_offline(self, owner, amount, **changes):
        return self.funds(
            owner, amount, Purpose.MOVE_BALANCE, Bucket.ONLINE, Bucket.OFFLINE, **changes
        )

    def to_online(self, owner, amount, **changes):
        return self.funds(
            owner, amount, Purpose.MOVE_BALANCE, Bucket.OFFLINE, Bucket.ONLINE, **changes
        )

    def funds(self, owner, amount, purpose, source, target, *, currency="INR", key=None):
        body = (owner, amount, purpose, source, target, currency)
        return MoveFunds(
            request=self.once(body, key),
            transfer_id=self.new_id(),
            wallet=WalletKey(owner, currency),
            purpose=purpose,
            source=source,
            target=target,
            amount=Money(amount, currency),
            reference="",
            actor=ADMIN,
        )

    def payment(
        self, payer, vendor, amount, *, decision=Decision.ALLOW, wait=True, currency="INR", key=None
    ):
        return CreatePayment(
            request=self.once((payer, vendor, amount, currency), key),
            payment_id=self.new_id(),
            transfer_id=self.new_id(),
            payer=WalletKey(payer, currency),
            vendor_id=vendor,
            site_id=None,
            amount=amount,
            position=None,
            reference="",
            wait=wait,
            risk=Risk(decision, 50, ("SIGN",)),
        )

    def settle(self, payment, decision=Decision.ALLOW):
        risk = Risk(decision, 50, ("SIGN",))
        return SettlePending(payment.payment_id, self.new_id(), payment.payer, payment.vendor, risk)

    def resolve(self, payment, *, approve=True, key=None):
        return ResolveHold(
            request=self.once((payment.payment_id, approve), key),
            payment_id=payment.payment_id,
            transfer_id=self.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            approve=approve,
            actor=ADMIN,
            reason="seen",
        )

    def refund(self, payment, amount, *, currency=None, key=None):
        currency = currency or payment.payer.currency_code
        return Refund(
            request=self.once((payment.payment_id, amount, currency), key),
            payment_id=payment.payment_id,
            transfer_id=self.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            amount=Money(amount, currency),
            actor=ADMIN,
            reason="",
        )

    def reserve(self, owner, *amounts, currency="INR", key=None):
        made = tuple((self.new_id(), amount) for amount in amounts)
        return ReserveFunds(
            request=self.once((owner, amounts, currency), key),
            transfer_id=self.new_id(),
            wallet=WalletKey(owner, currency),
            amounts=made,
        )

    def spend(
        self,
        reservation,
        vendor,
        amount,
        *,
        decision=Decision.ALLOW,
        hold_reason="",
        currency="INR",
        payer=None,
        payment_id=None,
    ):
        return SettleOffline(
            payment_id=payment_id or self.new_id(),
            transfer_id=self.new_id(),
            release_id=self.new_id(),
            reservation_id=reservation.reservation_id,
            payer=WalletKey(payer or reservation.wallet.owner_id, currency),
            vendor_id=vendor,
            terminal_id=UUID(int=7),
            site_id=None,
            amount=Money(amount, currency),
            spend_time=NOW - timedelta(days=2),
            position=None,
            reference="",
            hold_reason=hold_reason,
            risk=Risk(decision, 50, ("SIGN",)),
        )

    def release(self, reservation):
        return ReleaseReservation(reservation.reservation_id, self.new_id(), reservation.wallet)

    def reserved(self, owner, *amounts):
        """Reservations of money that is put there for them."""
        self.do(self.top_up(owner, sum(amounts)))
        self.do(self.to_offline(owner, sum(amounts)))
        command = self.reserve(owner, *amounts)
        self.do(command)
        return [self.book.reservations[made] for made in command.reservations()]

    def balances(self, owner):
        return tuple(self.balance(owner, bucket) for bucket in Bucket)

    def balance(self, owner, bucket=Bucket.ONLINE, currency="INR"):
        wallet = self.book.ledger.wallets.get(WalletKey(owner, currency))
        return 0 if wallet is None else wallet.balance(bucket)


def copied(book):
    """As it stands now. What is in it is frozen, but for the wallets."""
    wallets = {
        key: replace(wallet, balances=list(wallet.balances))
        for key, wallet in book.ledger.wallets.items()
    }
    parts = {field.name: copy.copy(getattr(book, field.name)) for field in fields(book)}
    ledger = Ledger(wallets, list(book.ledger.transfers), set(book.ledger.changed))
    return Book(**parts | {"ledger": ledger})


def open_tasks(book):
    return set(book.new_tasks) - set(book.done_tasks)


def laws_hold(book):
    wallets = book.ledger.wallets
    for currency in POLICY.currencies:  # 1
        assert sum(sum(w.balances) for k, w in wallets.items() if k.currency_code == currency) == 0
    folded = Counter()
    for transfer in book.ledger.transfers:
        folded[transfer.debit] -= transfer.amount
        folded[transfer.credit] += transfer.amount
    for key, wallet in wallets.items():
        for bucket in Bucket:
            assert wallet.balance(bucket) == folded[Account(key, bucket)]  # 3
            if key.owner_id not in SYSTEM_NAMES:
                assert wallet.balance(bucket) >= 0  # 2
    purposes = {}
    for transfer in book.ledger.transfers:
        if transfer.payment_id is not None:
            purposes.setdefault(transfer.payment_id, Counter())[transfer.purpose] += 1
    held = Counter()
    for payment in book.payments.values():  # 8
        moved = purposes.get(payment.payment_id, Counter())
        resolved = moved[Purpose.HOLD_CAPTURE] + moved[Purpose.HOLD_RELEASE]
        assert moved[Purpose.HOLD] == resolved + (payment.state is State.FLAGGED)
        paid = moved[Purpose.PAYMENT] + moved[Purpose.HOLD_CAPTURE]
        assert paid == (payment.state is State.SUCCESS)
        held[payment.payer] += payment.amount * (payment.state is State.FLAGGED)
        assert 0 <= payment.refunded <= payment.amount
        if payment.channel is Channel.OFFLINE and payment.state is State.FAILED:  # 9
            assert payment.failure_reason is FailureReason.REVIEW_REJECTED
    live = Counter()
    for reservation in book.reservations.values():
        live[reservation.wallet] += reservation.amount * (
            reservation.state is ReservationState.LIVE
        )
    for key, wallet in wallets.items():
        assert wallet.balance(Bucket.HELD) == held[key]
        assert wallet.balance(Bucket.RESERVED) == live[key]  # 6
    settled = {
        reservation.payment_id: reservation.reservation_id
        for reservation in book.reservations.values()
        if reservation.state is ReservationState.SETTLED
    }
    assert settled == {  # 5
        payment.payment_id: payment.reservation_id
        for payment in book.payments.values()
        if payment.channel is Channel.OFFLINE
    }
