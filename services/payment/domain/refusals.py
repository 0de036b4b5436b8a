"""Every way this service says no: `payment.v1.ErrorReason`, one function each."""

from __future__ import annotations

from collections.abc import Iterable

from services.money import Money
from services.refusal import Kind, Refusal


def self_payment() -> Refusal:
    message = "Payer and vendor are the same account. Name another vendor."
    return Refusal(Kind.INVALID, "SELF_PAYMENT", message)


def currency_unsupported(currency_code: str, supported: Iterable[str]) -> Refusal:
    known = ", ".join(sorted(supported))
    message = f"No wallets are kept in {currency_code}. Use one of: {known}."
    return Refusal(
        Kind.INVALID,
        "CURRENCY_UNSUPPORTED",
        message,
        currencyCode=currency_code,
        supported=known,
    )


def amount_over_limit(asked: Money, limit: int) -> Refusal:
    message = f"{asked} is more than one transfer may move. Ask for at most {Money(limit, asked.currency_code)}."
    return Refusal(
        Kind.INVALID,
        "AMOUNT_OVER_LIMIT",
        message,
        askedMinorUnits=str(asked.minor_units),
        limitMinorUnits=str(limit),
        currencyCode=asked.currency_code,
    )


def request_id_reused(request_id: str) -> Refusal:
    message = (
        f"request_id {request_id} came before with another body. Make a new id for a new request."
    )
    return Refusal(Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED", message, requestId=request_id)


def payer_not_active(payer: str) -> Refusal:
    message = "Your account is not approved, or suspended. Ask the operator."
    return Refusal(Kind.PRECONDITION, "PAYER_NOT_ACTIVE", message, payer=payer)


def vendor_not_found(vendor: str) -> Refusal:
    message = f"There is no vendor {vendor}. Check the name."
    return Refusal(Kind.NOT_FOUND, "VENDOR_NOT_FOUND", message, vendor=vendor)


def vendor_not_active(vendor: str) -> Refusal:
    message = f"Vendor {vendor} is not approved, or suspended, and cannot be paid."
    return Refusal(Kind.PRECONDITION, "VENDOR_NOT_ACTIVE", message, vendor=vendor)


def balance_over_limit(limit: Money) -> Refusal:
    message = f"The receiving account would exceed {limit}. Move money out of it first."
    return Refusal(
        Kind.PRECONDITION,
        "BALANCE_OVER_LIMIT",
        message,
        limitMinorUnits=str(limit.minor_units),
        currencyCode=limit.currency_code,
    )


def payment_not_found(payment: str) -> Refusal:
    message = f"There is no payment {payment}, or it is not yours to see."
    return Refusal(Kind.NOT_FOUND, "PAYMENT_NOT_FOUND", message, payment=payment)


def wallet_not_found(wallet: str) -> Refusal:
    message = f"There is no wallet {wallet}, or it is not yours to see."
    return Refusal(Kind.NOT_FOUND, "WALLET_NOT_FOUND", message, wallet=wallet)


def wallet_not_active(wallet: str) -> Refusal:
    message = f"The owner of {wallet} is not approved, or suspended."
    return Refusal(Kind.PRECONDITION, "WALLET_NOT_ACTIVE", message, wallet=wallet)


def currency_mismatch(asked: str, expected: str) -> Refusal:
    message = f"The amount is in {asked}, the money in {expected}. Ask in {expected}."
    return Refusal(
        Kind.INVALID, "CURRENCY_MISMATCH", message, askedCurrencyCode=asked, currencyCode=expected
    )


def insufficient_funds(asked: Money, available: int) -> Refusal:
    message = f"{asked} was asked for and {Money(available, asked.currency_code)} is there. Ask for less, or top up."
    return Refusal(
        Kind.PRECONDITION,
        "INSUFFICIENT_FUNDS",
        message,
        askedMinorUnits=str(asked.minor_units),
        availableMinorUnits=str(available),
        currencyCode=asked.currency_code,
    )


def offline_cap_exceeded(cap: Money) -> Refusal:
    message = f"Offline balance and live codes together may be at most {cap}. Move less."
    return Refusal(
        Kind.PRECONDITION,
        "OFFLINE_CAP_EXCEEDED",
        message,
        capMinorUnits=str(cap.minor_units),
        currencyCode=cap.currency_code,
    )


def payment_not_settled(state: str) -> Refusal:
    message = f"The payment is {state}; only one in SUCCESS can be refunded."
    return Refusal(Kind.PRECONDITION, "PAYMENT_NOT_SETTLED", message, state=state)


def refund_exceeds_payment(asked: Money, refundable: int) -> Refusal:
    message = f"{asked} is more than the {Money(refundable, asked.currency_code)} left to refund. Ask for less."
    return Refusal(
        Kind.PRECONDITION,
        "REFUND_EXCEEDS_PAYMENT",
        message,
        askedMinorUnits=str(asked.minor_units),
        refundableMinorUnits=str(refundable),
        currencyCode=asked.currency_code,
    )


def vendor_funds_insufficient(asked: Money) -> Refusal:
    message = f"The vendor's online balance does not cover {asked}. Refund less, or when more has come in."
    return Refusal(
        Kind.PRECONDITION,
        "VENDOR_FUNDS_INSUFFICIENT",
        message,
        askedMinorUnits=str(asked.minor_units),
        currencyCode=asked.currency_code,
    )


def payment_not_flagged(state: str) -> Refusal:
    message = f"The payment is {state}, not under review."
    return Refusal(Kind.PRECONDITION, "PAYMENT_NOT_FLAGGED", message, state=state)


def reservation_not_found(reservation: str) -> Refusal:
    message = f"There is no reservation {reservation}. Check the name."
    return Refusal(Kind.NOT_FOUND, "RESERVATION_NOT_FOUND", message, reservation=reservation)


def reservation_exists(reservation: str) -> Refusal:
    message = f"{reservation} was made by another request. Make a new id."
    return Refusal(Kind.ALREADY_EXISTS, "RESERVATION_EXISTS", message, reservation=reservation)


def reservation_settled(reservation: str, payment: str) -> Refusal:
    message = f"{reservation} was settled by {payment}. It is spent."
    return Refusal(
        Kind.PRECONDITION,
        "RESERVATION_SETTLED",
        message,
        reservation=reservation,
        payment=payment,
    )


def reservation_released(reservation: str) -> Refusal:
    message = f"The money of {reservation} went back to the payer. It came too late."
    return Refusal(Kind.PRECONDITION, "RESERVATION_RELEASED", message, reservation=reservation)


def amount_over_reservation(asked: Money, reserved: int) -> Refusal:
    message = f"{asked} is more than the {Money(reserved, asked.currency_code)} that are reserved."
    return Refusal(
        Kind.PRECONDITION,
        "AMOUNT_OVER_RESERVATION",
        message,
        askedMinorUnits=str(asked.minor_units),
        reservedMinorUnits=str(reserved),
        currencyCode=asked.currency_code,
    )


def payment_exists(payment: str) -> Refusal:
    message = f"{payment} exists and is another payment. Make a new id."
    return Refusal(Kind.ALREADY_EXISTS, "PAYMENT_EXISTS", message, payment=payment)
