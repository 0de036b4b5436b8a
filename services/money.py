"""Amounts of money and the currencies they can be in."""

from __future__ import annotations

from dataclasses import dataclass

# Decimals per ISO 4217 code (SIX Group, list one, 2026-01): the currencies a deployment may choose from.
# Codes are added here, never guessed: a wrong exponent prints amounts a hundred times too large.
MINOR_UNIT_DIGITS: dict[str, int] = {
    "AED": 2, "BDT": 2, "BHD": 3, "BRL": 2, "CHF": 2, "CLP": 0, "CNY": 2, "EGP": 2, "ETB": 2, "EUR": 2,
    "GBP": 2, "GHS": 2, "IDR": 2, "INR": 2, "JPY": 0, "KES": 2, "KRW": 0, "KWD": 3, "LKR": 2, "MMK": 2,
    "MXN": 2, "NGN": 2, "NPR": 2, "PHP": 2, "PKR": 2, "RWF": 0, "TND": 3, "TZS": 2, "UGX": 0, "USD": 2,
    "VND": 0, "XAF": 0, "XOF": 0, "ZAR": 2, "ZMW": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Money:
    """Minor units in one currency; 1050 INR is 10.50 rupees.

    The sign is free: whether an amount may be zero or negative is the rule of the place it is used in.
    """

    minor_units: int
    currency_code: str

    def __str__(self) -> str:
        """The amount as people write it, `10.50 INR`, for messages and screens only."""
        if self.currency_code not in MINOR_UNIT_DIGITS:  # quoted from a request, not one of ours
            return f"{self.minor_units} minor units of {self.currency_code}"
        return f"{decimal_text(self.minor_units, self.currency_code)} {self.currency_code}"


def decimal_text(minor_units: int, currency_code: str) -> str:
    """Write minor units with the currency's decimals: `decimal_text(1050, "INR")` is `10.50`.

    Raises:
        KeyError: the currency is not in MINOR_UNIT_DIGITS.
    """
    digits = MINOR_UNIT_DIGITS[currency_code]
    sign = "-" if minor_units < 0 else ""
    whole, fraction = divmod(abs(minor_units), 10**digits)
    return f"{sign}{whole}.{fraction:0{digits}d}" if digits else f"{sign}{whole}"
