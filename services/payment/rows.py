"""Rows of the ledger's tables as domain values, and domain values as rows."""

from __future__ import annotations

import struct
from datetime import timedelta
from functools import lru_cache
from typing import Any

from uuid_utils import UUID

from services import sql
from services.payment.domain.book import Answered, Moved, Outcome, Refunded, Resolved
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

# online, offline, reserved, held, update time in microseconds.
_MOVED = struct.Struct(">5q")
# What had been refunded once this refund, or this end of a review, was done; update time in microseconds.
_REFUNDED = struct.Struct(">2q")
_MICROSECOND = timedelta(microseconds=1)
# Wallets of a few groups: each is in its own row, and in those of its reservations and payments.
_RECENT = 2_048


def wallet_id(key: WalletKey) -> bytes:
    """The 19 bytes a wallet is stored under."""
    return key.owner_id.bytes + key.currency_code.encode()


@lru_cache(_RECENT)
def wallet_key(stored: bytes) -> WalletKey:
    """Whose wallet 19 bytes are."""
    return WalletKey(UUID(bytes=stored[:16]), stored[16:].decode())


def outcome_of(row: Any, found: dict[UUID, Payment], moved: dict[UUID, Transfer]) -> Outcome:
    """What a request was answered, out of its row and what that points at."""
    if row.snapshot is None:
        return found[row.payment_id]
    if row.payment_id is None:
        transfer = moved[row.transfer_id]
        *balances, update_micros = _MOVED.unpack(row.snapshot)
        system = transfer.debit.wallet.owner_id in SYSTEM_NAMES
        key = transfer.credit.wallet if system else transfer.debit.wallet
        wallet = Wallet(
            key,
            list(balances),
            active=True,
            is_vendor=False,
            owner_version=0,
            update_time=sql.instant(update_micros),
        )
        return Moved(wallet, transfer)
    refunded, update_micros = _REFUNDED.unpack(row.snapshot)
    updated = sql.instant(update_micros)
    payment = found[row.payment_id]._replace(refunded=refunded, update_time=updated)
    return (
        Resolved(payment) if row.transfer_id is None else Refunded(payment, moved[row.transfer_id])
    )


def request_row(key: bytes, answered: Answered) -> dict[str, Any]:
    """A request and its answer."""
    row: dict[str, Any] = {
        "request_key": key,
        "body_hash": answered.body_hash,
        "payment_id": None,
        "transfer_id": None,
        "snapshot": None,
    }
    outcome = answered.outcome
    if isinstance(outcome, Payment):
        row["payment_id"] = outcome.payment_id
    elif isinstance(outcome, Moved):
        row["transfer_id"] = outcome.transfer.transfer_id
        updated = sql.micros(outcome.wallet.update_time)
        row["snapshot"] = _MOVED.pack(*outcome.wallet.balances, updated)
    elif isinstance(outcome, Refunded | Resolved):
        row["payment_id"] = outcome.payment.payment_id
        if isinstance(outcome, Refunded):
            row["transfer_id"] = outcome.transfer.transfer_id
        updated = sql.micros(outcome.payment.update_time)
        row["snapshot"] = _REFUNDED.pack(outcome.payment.refunded, updated)
    return row


def wallet_row(wallet: Wallet) -> dict[str, Any]:
    """A wallet."""
    online, offline, reserved, held = wallet.balances
    return {
        "wallet_id": wallet_id(wallet.key),
        "online": online,
        "offline": offline,
        "reserved": reserved,
        "held": held,
        "is_system": int(wallet.key.owner_id in SYSTEM_NAMES),
        "active": int(wallet.active),
        "is_vendor": int(wallet.is_vendor),
        "owner_version": wallet.owner_version,
        "update_time": wallet.update_time,
    }


def wallet_of(row: Any) -> Wallet:
    """Out of a row."""
    return Wallet(
        wallet_key(row.wallet_id),
        [row.online, row.offline, row.reserved, row.held],
        bool(row.active),
        bool(row.is_vendor),
        row.owner_version,
        row.update_time,
    )


def transfer_row(transfer: Transfer) -> dict[str, Any]:
    """A transfer."""
    return {
        "transfer_id": transfer.transfer_id,
        "debit_wallet": wallet_id(transfer.debit.wallet),
        "debit_bucket": int(transfer.debit.bucket),
        "credit_wallet": wallet_id(transfer.credit.wallet),
        "credit_bucket": int(transfer.credit.bucket),
        "amount": transfer.amount,
        "purpose": int(transfer.purpose),
        "payment_id": transfer.payment_id,
        "reference": transfer.reference,
        "create_time": transfer.create_time,
    }


def transfer_of(row: Any) -> Transfer:
    """Out of a row."""
    return Transfer(
        row.transfer_id,
        Account(wallet_key(row.debit_wallet), Bucket(row.debit_bucket)),
        Account(wallet_key(row.credit_wallet), Bucket(row.credit_bucket)),
        row.amount,
        Purpose(row.purpose),
        row.payment_id,
        row.reference,
        row.create_time,
    )


def payment_row(payment: Payment) -> dict[str, Any]:
    """A payment."""
    position = payment.position
    return {
        "payment_id": payment.payment_id,
        "payer_wallet": wallet_id(payment.payer),
        "vendor_wallet": wallet_id(payment.vendor),
        "site_id": payment.site_id,
        "amount": payment.amount,
        "refunded": payment.refunded,
        "state": int(payment.state),
        "failure_reason": int(payment.failure_reason),
        "risk_decision": int(payment.risk.decision),
        "risk_score": payment.risk.score,
        "risk_reasons": ",".join(payment.risk.reasons),
        "latitude": None if position is None else position.latitude,
        "longitude": None if position is None else position.longitude,
        "accuracy_meters": None if position is None else position.accuracy_meters,
        "mocked": None if position is None else int(position.mocked),
        "reference": payment.reference,
        "request_id": payment.request_id,
        "create_time": payment.create_time,
        "update_time": payment.update_time,
        "channel": int(payment.channel),
        "terminal_id": payment.terminal_id,
        "reservation_id": payment.reservation_id,
        "spend_time": payment.spend_time,
    }


def payment_of(row: Any) -> Payment:
    """Out of a row."""
    position = None
    if row.latitude is not None:
        position = Position(row.latitude, row.longitude, row.accuracy_meters, bool(row.mocked))
    reasons = tuple(row.risk_reasons.split(",")) if row.risk_reasons else ()
    return Payment(
        payment_id=row.payment_id,
        payer=wallet_key(row.payer_wallet),
        vendor_id=wallet_key(row.vendor_wallet).owner_id,
        site_id=row.site_id,
        amount=row.amount,
        refunded=row.refunded,
        state=State(row.state),
        failure_reason=FailureReason(row.failure_reason),
        risk=Risk(Decision(row.risk_decision), row.risk_score, reasons),
        position=position,
        reference=row.reference,
        request_id=row.request_id,
        create_time=row.create_time,
        update_time=row.update_time,
        channel=Channel(row.channel),
        terminal_id=row.terminal_id,
        reservation_id=row.reservation_id,
        spend_time=row.spend_time,
    )


def reservation_of(row: Any) -> Reservation:
    """Out of a row."""
    return Reservation(
        row.reservation_id,
        wallet_key(row.wallet_id),
        row.amount,
        ReservationState(row.state),
        row.payment_id,
        row.create_time,
        row.update_time,
    )


def reservation_row(reservation: Reservation) -> dict[str, Any]:
    """A reservation."""
    return {
        "reservation_id": reservation.reservation_id,
        "wallet_id": wallet_id(reservation.wallet),
        "amount": reservation.amount,
        "state": int(reservation.state),
        "payment_id": reservation.payment_id,
        "create_time": reservation.create_time,
        "update_time": reservation.update_time,
    }


def shown_row(shown: Shown | None) -> dict[str, Any]:
    """What an offline payment was paid with; None for an online one."""
    age = None if shown is None else shown.code_age
    return {
        "code_age_micros": None if age is None else age // _MICROSECOND,
        "device": None if shown is None else shown.device,
    }


def shown_of(row: Any) -> Shown | None:
    """Out of a row."""
    if row.device is None:
        return None
    age = row.code_age_micros
    return Shown(None if age is None else age * _MICROSECOND, row.device)
