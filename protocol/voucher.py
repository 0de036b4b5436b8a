"""The signed voucher: a code's record for a QR code, which only the payer's device can spend, and a spend of it.

A terminal checks both with public keys alone. The device signs vendor, terminal, amount and time, so a vendor cannot
raise the amount, and two spends of one voucher are two signatures: proof against the payer.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from uuid_utils import UUID

SIGNATURE_BYTES = 64
DEVICE_KEY_BYTES = 32
_MAGIC = b"TSV1"


class VoucherInvalid(ValueError):
    """It is no voucher of this issuer, or no spend of it. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """What a voucher says.

    Attributes:
        issuer: The issuer's name, at most 64 bytes.
        currency: ISO 4217.
        scope: The area whose terminals take it.
        serial: As in the code it stands for.
        keyset: As in the code.
        tier: As in the code.
        expiry_day: As in the code.
        minor_units: What may be spent, at most.
        device_key: The Ed25519 public key of the device that may spend it.
        key_id: Which key of the issuer signed it: 16 hexadecimal digits.
    """

    issuer: str
    currency: str
    scope: str
    serial: int
    keyset: int
    tier: int
    expiry_day: int
    minor_units: int
    device_key: bytes
    key_id: str

    def unsigned(self) -> bytes:
        """The bytes the issuer signs."""
        issuer, scope = self.issuer.encode(), self.scope.encode()
        return b"".join(
            (
                _MAGIC,
                bytes([len(issuer)]),
                issuer,
                self.currency.encode(),
                bytes([len(scope)]),
                scope,
                self.serial.to_bytes(4, "big"),
                bytes([self.keyset, self.tier, self.expiry_day]),
                self.minor_units.to_bytes(8, "big"),
                self.device_key,
                bytes.fromhex(self.key_id),
            )
        )


@dataclass(frozen=True, slots=True)
class Spend:
    """What a payer's device signs when it spends a voucher.

    Attributes:
        vendor_id: Who is paid.
        terminal_id: At which terminal.
        minor_units: What is spent.
        currency: ISO 4217.
        sign_seconds: When, Unix seconds, on the device's clock.
    """

    vendor_id: UUID
    terminal_id: UUID
    minor_units: int
    currency: str
    sign_seconds: int

    def unsigned(self, voucher: bytes) -> bytes:
        """The bytes the device signs."""
        return b"".join(
            (
                b"TSS1",
                sha256(voucher).digest(),
                self.vendor_id.bytes,
                self.terminal_id.bytes,
                self.minor_units.to_bytes(8, "big"),
                self.currency.encode(),
                self.sign_seconds.to_bytes(8, "big"),
            )
        )


def issue(voucher: Voucher, key: Ed25519PrivateKey) -> bytes:
    """The voucher's bytes, signed by the issuer."""
    unsigned = voucher.unsigned()
    return unsigned + key.sign(unsigned)


def decode(data: bytes) -> Voucher:
    """Read a voucher without believing it.

    Raises:
        VoucherInvalid: these bytes are none.
    """
    reader = _Reader(data)
    if reader.take(4) != _MAGIC:
        raise VoucherInvalid("These bytes are no voucher.")
    try:
        issuer = reader.take(reader.number(1)).decode()
        currency = reader.take(3).decode("ascii")
        scope = reader.take(reader.number(1)).decode()
    except UnicodeDecodeError as error:
        raise VoucherInvalid("The voucher holds text that cannot be read.") from error
    voucher = Voucher(
        issuer=issuer,
        currency=currency,
        scope=scope,
        serial=reader.number(4),
        keyset=reader.number(1),
        tier=reader.number(1),
        expiry_day=reader.number(1),
        minor_units=reader.number(8),
        device_key=reader.take(DEVICE_KEY_BYTES),
        key_id=reader.take(8).hex(),
    )
    reader.take(SIGNATURE_BYTES)
    reader.end()
    return voucher


def verify(data: bytes, issuer_keys: Mapping[str, bytes]) -> Voucher:
    """Read a voucher that an issuer's key has signed.

    Args:
        data: As issued.
        issuer_keys: Ed25519 public keys by their `key_id`.

    Raises:
        VoucherInvalid: it is none, or none of these keys has signed it.
    """
    voucher = decode(data)
    key = issuer_keys.get(voucher.key_id)
    if key is None:
        raise VoucherInvalid("The voucher is signed with a key that is not the issuer's.")
    unsigned, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    _check(key, signature, unsigned, "The issuer did not sign this voucher.")
    return voucher


def sign_spend(data: bytes, spend: Spend, key: Ed25519PrivateKey) -> bytes:
    """The device's signature under a spend."""
    return key.sign(spend.unsigned(data))


def verify_spend(data: bytes, spend: Spend, signature: bytes) -> None:
    """See that the device of a verified voucher has signed a spend.

    Raises:
        VoucherInvalid: it has not, or not this one.
    """
    device_key = decode(data).device_key
    message = "The payer's device did not sign this amount, at this terminal, at this time."
    _check(device_key, signature, spend.unsigned(data), message)


def to_text(kind: str, data: bytes) -> str:
    """Bytes for a QR code in its alphanumeric mode: `TSV1:` and the like, then base 32 (RFC 4648) without padding."""
    return f"{kind}:{base64.b32encode(data).decode().rstrip('=')}"


def from_text(kind: str, text: str) -> bytes:
    """Read what `to_text` wrote.

    Raises:
        VoucherInvalid: it is something else.
    """
    head, _, body = text.strip().upper().partition(":")
    if head != kind:
        raise VoucherInvalid(f"This is no {kind} code.")
    try:
        return base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError as error:  # Also binascii.Error, and what is not ASCII.
        raise VoucherInvalid(f"This {kind} code is damaged.") from error


def _check(key: bytes, signature: bytes, message: bytes, otherwise: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise VoucherInvalid(otherwise) from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise VoucherInvalid("The voucher is cut off.")
        self._at += count
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def end(self) -> None:
        if self._at != len(self._data):
            raise VoucherInvalid("Something follows the voucher.")
