"""What happens to wallets outside payments: money that enters, leaves or changes its balance, and news of owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID

from services import names
from services.money import Money
from services.payment.domain import refusals
from services.payment.domain.book import Book, FundsMoved, Moved, Outcome, Request, WalletChanged
from services.payment.domain.commands import balance_max
from services.payment.domain.ledger import (
    FUNDING_ID,
    PAYOUT_ID,
    SYSTEM_NAMES,
    Account,
    Bucket,
    Purpose,
    Transfer,
    Wallet,
    WalletKey,
    system_wallet,
)


@dataclass(frozen=True, slots=True)
class MoveFunds:
    """A top-up, a payout, or a move between the balances of one wallet."""

    request: Request
    transfer_id: UUID
    wallet: WalletKey
    purpose: Purpose
    source: Bucket | None
    target: Bucket | None
    amount: Money
    reference: str
    actor: str

    def wallets(self) -> Sequence[WalletKey]:
        """The wallet, and the system's where money enters or leaves."""
        return tuple({self._debit.wallet: None, self._credit.wallet: None})

    def payments(self) -> Sequence[UUID]:
        """None."""
        return ()

    @property
    def _debit(self) -> Account:
        if self.source is None:
            return Account(WalletKey(FUNDING_ID, self.wallet.currency_code), Bucket.ONLINE)
        return Account(self.wallet, self.source)

    @property
    def _credit(self) -> Account:
        if self.target is None:
            return Account(WalletKey(PAYOUT_ID, self.wallet.currency_code), Bucket.ONLINE)
        return Account(self.wallet, self.target)

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Move the money.

        Raises:
            Refusal: wallet_not_found (after request_id_reused for a top-up), currency_mismatch, request_id_reused,
                wallet_not_active, insufficient_funds, offline_cap_exceeded, balance_over_limit.
        """
        wallets = book.ledger.wallets
        name = names.wallet_name(*self.wallet)
        # The system's own accounts are nobody's wallet.
        wallet = None if self.wallet.owner_id in SYSTEM_NAMES else wallets.get(self.wallet)
        if wallet is None and self.purpose is not Purpose.TOP_UP:
            raise refusals.wallet_not_found(name)
        if self.amount.currency_code != self.wallet.currency_code:
            raise refusals.currency_mismatch(self.amount.currency_code, self.wallet.currency_code)
        earlier = book.answered(self.request)
        if earlier is not None:
            return earlier.outcome
        if wallet is None:
            raise refusals.wallet_not_found(name)
        if not wallet.active:
            raise refusals.wallet_not_active(name)
        amount = self.amount.minor_units
        if self.source is not None and wallet.balance(self.source) < amount:
            raise refusals.insufficient_funds(self.amount, wallet.balance(self.source))
        if self.target is Bucket.OFFLINE:
            beyond = wallet.balance(Bucket.OFFLINE) + wallet.balance(Bucket.RESERVED) + amount
            if beyond > book.policy.offline_cap:
                cap = Money(book.policy.offline_cap, self.wallet.currency_code)
                raise refusals.offline_cap_exceeded(cap)
        if self.target is not None and book.ledger.room(self._credit) < amount:
            raise refusals.balance_over_limit(balance_max(self.wallet))
        for account in (self._debit, self._credit):
            if account.wallet not in wallets:
                key = account.wallet
                wallets[key] = system_wallet(key.owner_id, key.currency_code, now=now)
                book.new_wallets.add(key)
        transfer = Transfer(
            transfer_id=self.transfer_id,
            debit=self._debit,
            credit=self._credit,
            amount=amount,
            purpose=self.purpose,
            payment_id=None,
            reference=self.reference,
            create_time=now,
        )
        book.ledger.post(transfer)
        book.facts.append(FundsMoved(self.wallet, transfer, self.actor))
        outcome = Moved(replace(wallet, balances=list(wallet.balances)), transfer)
        book.answer(self.request, outcome)
        return outcome


@dataclass(frozen=True, slots=True)
class SetOwner:
    """Take over what the user service says of a wallet's owner. What is older than what is known changes nothing."""

    owner_id: UUID
    active: bool
    is_vendor: bool
    version: int
    currencies: frozenset[str]
    request: None = None

    def wallets(self) -> Sequence[WalletKey]:
        """The owner's wallets, one a currency."""
        return [WalletKey(self.owner_id, code) for code in sorted(self.currencies)]

    def payments(self) -> Sequence[UUID]:
        """None."""
        return ()

    def decide(self, book: Book, now: datetime) -> Outcome:
        """Open wallets that are missing, and let the owner move money or not."""
        for key in self.wallets():
            wallet = book.ledger.wallets.get(key)
            if wallet is None:
                wallet = Wallet(key, [0, 0, 0, 0], self.active, self.is_vendor, self.version, now)
                book.ledger.wallets[key] = wallet
                book.new_wallets.add(key)
                book.facts.append(WalletChanged(key, self.active, now))
            elif wallet.owner_version >= self.version:
                continue
            elif wallet.active != self.active:
                wallet.active = self.active
                wallet.update_time = now
                book.facts.append(WalletChanged(key, self.active, now))
            wallet.is_vendor = self.is_vendor
            wallet.owner_version = self.version
            book.ledger.changed.add(key)
        return None
