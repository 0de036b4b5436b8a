"""Double entry: accounts, transfers between them, and the wallets a group of commands has locked."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from uuid_utils import UUID

# What one transfer may move: 100 billion with two decimals. Far above any payment, far below int64.
TRANSFER_MINOR_UNITS_MAX = 10**13
# What one account may hold. A thousandth of int64, so that sums over accounts stay inside it as well.
BALANCE_MINOR_UNITS_MAX = 9 * 10**15


class Bucket(enum.IntEnum):
    """The four accounts of a wallet. Stored; never renumbered."""

    ONLINE = 1
    OFFLINE = 2
    RESERVED = 3
    HELD = 4


class Purpose(enum.IntEnum):
    """Why money moved. The numbers of `payment.v1.Transfer.Purpose`; stored; never renumbered."""

    TOP_UP = 1
    MOVE_BALANCE = 2
    PAYMENT = 3
    HOLD = 4
    HOLD_CAPTURE = 5
    HOLD_RELEASE = 6
    REFUND = 7
    PAYOUT = 8
    RESERVE = 9
    RELEASE = 10


class WalletKey(NamedTuple):
    """Whose money in which currency."""

    owner_id: UUID
    currency_code: str


# The accounts of the system itself: wallets of these owners, in their ONLINE bucket. They may be negative: money that
# came from outside is owed to outside.
FUNDING_ID = UUID(int=1)
PAYOUT_ID = UUID(int=2)
FEES_ID = UUID(int=3)
LOSS_ID = UUID(int=4)
SYSTEM_NAMES: dict[UUID, str] = {
    FUNDING_ID: "funding",
    PAYOUT_ID: "payout",
    FEES_ID: "fees",
    LOSS_ID: "loss",
}


@dataclass(slots=True)
class Wallet:
    """One owner's money in one currency.

    Attributes:
        key: Whose, in what.
        balances: Minor units by bucket, indexed by `Bucket - 1`.
        active: The owner may move money.
        is_vendor: The owner may be paid.
        owner_version: The version of the owner's record that said so; an older one changes nothing.
        update_time: When a balance or the owner last changed.
    """

    key: WalletKey
    balances: list[int]
    active: bool
    is_vendor: bool
    owner_version: int
    update_time: datetime

    def balance(self, bucket: Bucket) -> int:
        """Minor units in one account."""
        return self.balances[bucket - 1]


class Account(NamedTuple):
    """One bucket of one wallet."""

    wallet: WalletKey
    bucket: Bucket


class Transfer(NamedTuple):
    """Money from one account to another, in one currency. Never changed, never deleted."""

    transfer_id: UUID
    debit: Account
    credit: Account
    amount: int
    purpose: Purpose
    payment_id: UUID | None
    reference: str
    create_time: datetime

    @property
    def currency_code(self) -> str:
        """The currency of both accounts."""
        return self.debit.wallet.currency_code


@dataclass(slots=True)
class Ledger:
    """The wallets a group has locked, and the transfers it has decided on.

    `post` is the only way a balance changes.
    """

    wallets: dict[WalletKey, Wallet]
    transfers: list[Transfer] = field(default_factory=list)
    changed: set[WalletKey] = field(default_factory=set)

    def room(self, account: Account) -> int:
        """How much more an account may receive."""
        return BALANCE_MINOR_UNITS_MAX - self.wallets[account.wallet].balance(account.bucket)

    def post(self, transfer: Transfer) -> None:
        """Move the money. The caller has checked that both sides allow it; here it is only asserted."""
        debit, credit = transfer.debit, transfer.credit
        assert transfer.amount > 0
        assert debit != credit
        assert debit.wallet.currency_code == credit.wallet.currency_code
        payer, payee = self.wallets[debit.wallet], self.wallets[credit.wallet]
        if debit.wallet.owner_id not in SYSTEM_NAMES:
            assert payer.balance(debit.bucket) >= transfer.amount
        payer.balances[debit.bucket - 1] -= transfer.amount
        payee.balances[credit.bucket - 1] += transfer.amount
        payer.update_time = payee.update_time = transfer.create_time
        self.changed.add(debit.wallet)
        self.changed.add(credit.wallet)
        self.transfers.append(transfer)


def system_wallet(owner_id: UUID, currency_code: str, *, now: datetime) -> Wallet:
    """An empty wallet of the system."""
    assert owner_id in SYSTEM_NAMES
    return Wallet(
        WalletKey(owner_id, currency_code),
        [0, 0, 0, 0],
        active=True,
        is_vendor=False,
        owner_version=0,
        update_time=now,
    )
