"""How the demo writes amounts, states and outcomes."""

from __future__ import annotations

from decimal import Decimal

from services.money import decimal_text
from tallystick.payment.v1 import payment_pb2, wallet_pb2
from tallystick.type.v1 import money_pb2
from tallystick.user.v1 import user_pb2

CURRENCY = "INR"


def amount_text(money: money_pb2.Money) -> str:
    """`1,000.00`, with the decimals of its currency."""
    return f"{Decimal(decimal_text(money.minor_units, money.currency_code)):,}"


def inr(minor_units: int) -> money_pb2.Money:
    """Paise, as an amount."""
    return money_pb2.Money(minor_units=minor_units, currency_code=CURRENCY)


def outcome_text(payment: payment_pb2.Payment) -> str:
    """Its state, and why."""
    outcome = payment_pb2.Payment.State.Name(payment.state).removeprefix("STATE_")
    if payment.failure_reason:
        name = payment_pb2.Payment.FailureReason.Name(payment.failure_reason)
        return f"{outcome} ({name.removeprefix('FAILURE_REASON_')})"
    if payment.state == payment_pb2.Payment.STATE_FLAGGED:
        return f"{outcome} ({', '.join(payment.risk.reasons)}, score {payment.risk.score})"
    return outcome


def change(transfer: wallet_pb2.Transfer, account: str) -> int:
    """What a transfer did to one account, in minor units."""
    sign = (transfer.credit_account == account) - (transfer.debit_account == account)
    return sign * transfer.amount.minor_units


def state_text(user: user_pb2.User) -> str:
    """Where an account stands."""
    return user_pb2.User.State.Name(user.state).removeprefix("STATE_")
