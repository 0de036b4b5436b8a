"""The offline code: sixteen symbols a person can read aloud and type, `XXXX-XXXX-XXXX-XXXX`.

80 bits, most significant first: serial 32, tag 30, keyset 3, tier 4, expiry day 6, check 5. In Crockford's base 32
(https://www.crockford.com/base32.html) that is fifteen symbols of data and one check symbol.
"""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SYMBOLS = 16
SERIAL_BITS = 32
TAG_BITS = 30
KEYSETS = 8
TIERS = 16
EXPIRY_DAYS = 64
KEY_BYTES = 32
DEFAULT_SCOPE = "main"

_FIELD_POLYNOMIAL = 0b100101  # x⁵ + x² + 1, primitive: x has order 31
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
_VALUES = {symbol: value for value, symbol in enumerate(ALPHABET)}
_DAY = timedelta(days=1)


def _multiply_by_powers() -> list[list[int]]:
    """`[i][d]` = αⁱ · d, for i from 0 to 15."""
    rows = [list(range(32))]
    for _ in range(SYMBOLS - 1):
        doubled = [value << 1 for value in rows[-1]]
        rows.append([value ^ _FIELD_POLYNOMIAL if value & 32 else value for value in doubled])
    return rows


_TIMES_ALPHA = _multiply_by_powers()


class Flaw(enum.Enum):
    """What is wrong with sixteen symbols."""

    LENGTH = "length"
    SYMBOL = "symbol"
    CHECK = "check"


class CodeInvalid(ValueError):
    """What was typed is no code.

    Attributes:
        flaw: What is wrong.
        position: Which symbol, from 1; 0 where no single one is.
    """

    def __init__(self, flaw: Flaw, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.flaw = flaw
        self.position = position


@dataclass(frozen=True, slots=True)
class Code:
    """What a code says.

    Attributes:
        serial: 0 to 2³² - 1, random; unique for the issuer.
        tag: The first 30 bits of a MAC over the rest: only who has the key can make it.
        keyset: 0 to 7: which key.
        tier: 0 to 15: which value.
        expiry_day: 0 to 63: the last day it may be spent, counted from the keyset's epoch.
    """

    serial: int
    tag: int
    keyset: int
    tier: int
    expiry_day: int

    def symbols(self) -> str:
        """The sixteen symbols, without dashes."""
        data = self.serial
        for value, bits in (
            (self.tag, TAG_BITS),
            (self.keyset, 3),
            (self.tier, 4),
            (self.expiry_day, 6),
        ):
            data = data << bits | value
        digits = [data >> 5 * place & 31 for place in range(SYMBOLS - 2, -1, -1)]
        return "".join(ALPHABET[digit] for digit in (*digits, check_digit(digits)))


def check_digit(digits: list[int]) -> int:
    """The check symbol's value: Σ αⁱ·dᵢ over GF(32), i from 1 for the first of fifteen.

    It catches every single wrong symbol and every swap of two symbols, the check symbol among them: all factors, and
    the 1 of the check symbol itself, differ.
    """
    total = 0
    for place, digit in enumerate(digits, 1):
        total ^= _TIMES_ALPHA[place][digit]
    return total


def normalize(text: str) -> str:
    """What was typed or read aloud, as sixteen symbols: dashes, blanks and case aside, O read as 0, I and L as 1.

    Raises:
        CodeInvalid: another length, or a symbol that is in no code.
    """
    typed = text.replace("-", "").replace(" ", "")
    for position, symbol in enumerate(typed, 1):
        # Letter case is a matter of ASCII: outside of it, one letter may have two capitals (ß).
        if not symbol.isascii() or symbol.upper().translate(_READ_AS) not in _VALUES:
            raise CodeInvalid(
                Flaw.SYMBOL, f"Symbol {position}, {symbol!r}, is in no code.", position
            )
    symbols = typed.upper().translate(_READ_AS)
    if len(symbols) != SYMBOLS:
        raise CodeInvalid(Flaw.LENGTH, f"A code has {SYMBOLS} symbols; these are {len(symbols)}.")
    return symbols


def parse(text: str) -> Code:
    """Read a code as typed.

    Raises:
        CodeInvalid: another length, a symbol that is in no code, or symbols that do not belong together.
    """
    digits = [_VALUES[symbol] for symbol in normalize(text)]
    if check_digit(digits[:-1]) != digits[-1]:
        raise CodeInvalid(Flaw.CHECK, "A symbol is wrong, or two are swapped. Read it again.")
    data = 0
    for digit in digits[:-1]:
        data = data << 5 | digit
    return Code(
        serial=data >> 43,
        tag=data >> 13 & (1 << TAG_BITS) - 1,
        keyset=data >> 10 & 7,
        tier=data >> 6 & 15,
        expiry_day=data & 63,
    )


def pretty(symbols: str) -> str:
    """`XXXX-XXXX-XXXX-XXXX`."""
    return "-".join(symbols[start : start + 4] for start in range(0, SYMBOLS, 4))


def make(
    serial: int, keyset: int, tier: int, expiry_day: int, *, key: bytes, issuer: str, currency: str
) -> Code:
    """A code with its tag.

    Args:
        serial: 0 to 2³² - 1.
        keyset: 0 to 7.
        tier: 0 to 15.
        expiry_day: 0 to 63.
        key: `scope_key` of the keyset and the area it is for.
        issuer: The issuer's name, at most 255 bytes.
        currency: ISO 4217.
    """
    assert 0 <= serial < 1 << SERIAL_BITS
    assert 0 <= keyset < KEYSETS
    assert 0 <= tier < TIERS
    assert 0 <= expiry_day < EXPIRY_DAYS
    name = issuer.encode()
    said = (
        b"TS1"
        + bytes([len(name)])
        + name
        + currency.encode()
        + serial.to_bytes(4, "big")
        + bytes([keyset, tier, expiry_day])
    )
    digest = hmac.digest(key, said, sha256)
    tag = int.from_bytes(digest[:4], "big") >> 32 - TAG_BITS
    return Code(serial, tag, keyset, tier, expiry_day)


def verify(code: Code, *, key: bytes, issuer: str, currency: str) -> bool:
    """Whether a code's tag is the one the key makes. Takes the same time for any wrong tag."""
    right = make(
        code.serial,
        code.keyset,
        code.tier,
        code.expiry_day,
        key=key,
        issuer=issuer,
        currency=currency,
    )
    return hmac.compare_digest(right.tag.to_bytes(4, "big"), code.tag.to_bytes(4, "big"))


def scope_key(master: bytes, keyset: int, scope: str) -> bytes:
    """The key of one area under one keyset's master key: what terminals of that area are given (HKDF, RFC 5869)."""
    info = b"TSK1" + bytes([keyset]) + scope.encode()
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(master)


def filter_key(key: bytes, symbols: str) -> int:
    """64 bits that stand for a code in the filter of issued codes and the list of denied ones; tells nothing of it."""
    return int.from_bytes(hmac.digest(key, b"TSF1" + symbols.encode(), sha256)[:8], "big")


def expiry_day(issue_time: datetime, epoch_time: datetime, spend_days: int) -> int:
    """The last day a code issued at an instant may be spent, counted from the keyset's epoch."""
    return (issue_time - epoch_time) // _DAY + spend_days


def expire_time(epoch_time: datetime, day: int) -> datetime:
    """The instant a code expires: the end of its last day."""
    return epoch_time + (day + 1) * _DAY


def issue_day_time(epoch_time: datetime, day: int, spend_days: int) -> datetime:
    """The midnight that began the day a code was issued on."""
    return epoch_time + (day - spend_days) * _DAY
