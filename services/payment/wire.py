"""Domain values as the contract's messages, and requests as domain values."""

from __future__ import annotations

from uuid_utils import UUID

from services import names
from services.payment.domain.ledger import (
    SYSTEM_NAMES,
    Account,
    Bucket,
    Transfer,
    Wallet,
    WalletKey,
)
from services.payment.domain.payment import Channel, Decision, Payment, Position, Risk, Shown
from services.times import timestamp
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import payment_pb2, wallet_pb2
from tallystick.type.v1 import money_pb2, position_pb2

_BUCKET_NAMES = {
    Bucket.ONLINE: "online",
    Bucket.OFFLINE: "offline",
    Bucket.RESERVED: "reserved",
    Bucket.HELD: "held",
}
_BUCKETS = {name: bucket for bucket, name in _BUCKET_NAMES.items()}
_SYSTEM_IDS = {name: owner_id for owner_id, name in SYSTEM_NAMES.items()}
_DECISIONS = {
    fraud_service_pb2.Assessment.DECISION_ALLOW: Decision.ALLOW,
    fraud_service_pb2.Assessment.DECISION_REVIEW: Decision.REVIEW,
    fraud_service_pb2.Assessment.DECISION_DECLINE: Decision.DECLINE,
}
# What a payment's record has room for, whatever a fraud service to come may answer.
_SCORE_MAX = 100
_REASONS_MAX = 10
_REASON_CHARACTERS_MAX = 40


def wallet_key(name: str) -> WalletKey:
    """The key behind `users/{uuid}/wallets/{currency}`, a name the contract has checked."""
    _, user, _, currency_code = name.split("/")
    return WalletKey(UUID(user), currency_code)


def position(message: position_pb2.Position) -> Position:
    """Where the device says it is."""
    return Position(message.latitude, message.longitude, message.accuracy_meters, message.mocked)


def money(minor_units: int, currency_code: str) -> money_pb2.Money:
    """An amount."""
    return money_pb2.Money(minor_units=minor_units, currency_code=currency_code)


def risk_message(risk: Risk) -> payment_pb2.Risk:
    """What the fraud check said."""
    return payment_pb2.Risk(
        decision=int(risk.decision),  # type: ignore[arg-type]
        score=risk.score,
        reasons=risk.reasons,
    )


def risk(assessment: fraud_service_pb2.Assessment) -> Risk:
    """What the fraud service answered."""
    reasons = dict.fromkeys(_reason(signal) for signal in assessment.signals)
    # A decision this version does not know, or none, is a person's to make.
    decision = _DECISIONS.get(assessment.decision, Decision.REVIEW)
    score = min(max(assessment.score, 0), _SCORE_MAX)
    return Risk(decision, score, tuple(reasons)[:_REASONS_MAX])


def _reason(signal: fraud_service_pb2.Signal) -> str:
    """Of a rule, its name; of anything else, its code."""
    if signal.reason:
        return signal.reason[:_REASON_CHARACTERS_MAX]
    codes = fraud_service_pb2.Signal.Code
    if signal.code not in codes.values():
        return "UNKNOWN_SIGNAL"
    return codes.Name(signal.code).removeprefix("CODE_")


def payment_message(payment: Payment) -> payment_pb2.Payment:
    """A payment as it stands."""
    currency_code = payment.payer.currency_code
    vendor = names.user_name(payment.vendor_id)
    message = payment_pb2.Payment(
        name=names.payment_name(payment.payment_id),
        payer=names.user_name(payment.payer.owner_id),
        vendor=vendor,
        site="" if payment.site_id is None else f"{vendor}/sites/{payment.site_id}",
        amount=money(payment.amount, currency_code),
        refunded=money(payment.refunded, currency_code),
        state=int(payment.state),  # type: ignore[arg-type]
        failure_reason=int(payment.failure_reason),  # type: ignore[arg-type]
        risk=risk_message(payment.risk),
        reference=payment.reference,
        request_id=str(payment.request_id),
        create_time=timestamp(payment.create_time),
        update_time=timestamp(payment.update_time),
        channel=int(payment.channel),  # type: ignore[arg-type]
        occur_time=timestamp(payment.occur_time),
    )
    if payment.terminal_id is not None:
        message.terminal = names.terminal_name(payment.vendor_id, payment.terminal_id)
    if payment.position is not None:
        message.position.latitude = payment.position.latitude
        message.position.longitude = payment.position.longitude
        message.position.accuracy_meters = payment.position.accuracy_meters
        message.position.mocked = payment.position.mocked
    return message


def wallet_message(wallet: Wallet) -> wallet_pb2.Wallet:
    """A wallet as it stands."""
    currency_code = wallet.key.currency_code
    online, offline, reserved, held = wallet.balances
    return wallet_pb2.Wallet(
        name=names.wallet_name(*wallet.key),
        online=money(online, currency_code),
        offline=money(offline, currency_code),
        reserved=money(reserved, currency_code),
        held=money(held, currency_code),
        active=wallet.active,
        update_time=timestamp(wallet.update_time),
    )


def account_name(account: Account) -> str:
    """`{wallet}/{bucket}`, or `system/{account}/{currency}`."""
    owner_id, currency_code = account.wallet
    if owner_id in SYSTEM_NAMES:
        return f"system/{SYSTEM_NAMES[owner_id]}/{currency_code}"
    return f"{names.wallet_name(*account.wallet)}/{_BUCKET_NAMES[account.bucket]}"


def account(name: str) -> Account:
    """The account behind a name `account_name` wrote."""
    parts = name.split("/")
    if parts[0] == "system":
        return Account(WalletKey(_SYSTEM_IDS[parts[1]], parts[2]), Bucket.ONLINE)
    return Account(WalletKey(UUID(parts[1]), parts[3]), _BUCKETS[parts[4]])


def transfer_message(transfer: Transfer) -> wallet_pb2.Transfer:
    """A transfer."""
    return wallet_pb2.Transfer(
        name=f"transfers/{transfer.transfer_id}",
        debit_account=account_name(transfer.debit),
        credit_account=account_name(transfer.credit),
        amount=money(transfer.amount, transfer.currency_code),
        purpose=int(transfer.purpose),  # type: ignore[arg-type]
        payment="" if transfer.payment_id is None else names.payment_name(transfer.payment_id),
        reference=transfer.reference,
        create_time=timestamp(transfer.create_time),
    )


def facts(payment: Payment, shown: Shown | None = None) -> fraud_service_pb2.PaymentFacts:
    """What the fraud service is told of a payment; `shown` is what an offline one was paid with."""
    message = payment_message(payment)
    asked = fraud_service_pb2.PaymentFacts(
        payment=message.name,
        payer=message.payer,
        vendor=message.vendor,
        site=message.site,
        amount=message.amount,
        position=message.position if payment.position is not None else None,
        occur_time=message.occur_time,
        offline=payment.channel is Channel.OFFLINE,
    )
    if shown is not None:
        asked.device = shown.device
        if shown.code_age is not None:
            asked.code_age.FromTimedelta(shown.code_age)
    return asked
