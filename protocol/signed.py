"""Messages that are signed as bytes: journal entries by terminals, bundles and receipts by the issuer.

Every kind of message has a prefix of its own in what is signed, so that none can be passed off as another.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from tallystick.offline.v1.journal_pb2 import Entry, SignedEntry
from tallystick.offline.v1.terminal_sync_service_pb2 import (
    Receipt,
    SignedReceipt,
    SignedTrustBundle,
    TrustBundle,
)

# What an entry with no entry before it carries.
GENESIS = bytes(32)

_ENTRY = b"TSJ1"
_ENTRY_HASH = b"TSH1"
_BUNDLE = b"TSB1"
_RECEIPT = b"TSR1"


class SignatureWrong(ValueError):
    """The message is not what its sender signed."""


class Unreadable(ValueError):
    """The bytes are not the message they should be."""


def key_id(public_key: bytes) -> str:
    """How an issuer's key is named: the first 16 hexadecimal digits of its SHA-256."""
    return sha256(public_key).hexdigest()[:16]


def entry_hash(content: bytes) -> bytes:
    """What the next entry of a journal carries of this one."""
    return sha256(_ENTRY_HASH + content).digest()


def sign_entry(entry: Entry, key: Ed25519PrivateKey) -> SignedEntry:
    """An entry as it travels. Keep its bytes: another serialization of the same entry may differ."""
    content = entry.SerializeToString()
    return SignedEntry(content=content, signature=key.sign(_ENTRY + content))


def verify_entry(signed: SignedEntry, public_key: bytes) -> Entry:
    """The entry a terminal signed.

    Raises:
        SignatureWrong: it did not.
        Unreadable: it signed something else than an entry.
    """
    _check(public_key, signed.signature, _ENTRY + signed.content)
    try:
        return Entry.FromString(signed.content)
    except DecodeError as error:
        raise Unreadable("The content is no journal entry.") from error


def sign_bundle(bundle: TrustBundle, key: Ed25519PrivateKey) -> SignedTrustBundle:
    """A trust bundle as it travels."""
    content = bundle.SerializeToString()
    public = key.public_key().public_bytes_raw()
    return SignedTrustBundle(
        content=content, signature=key.sign(_BUNDLE + content), key_id=key_id(public)
    )


def verify_bundle(signed: SignedTrustBundle, issuer_keys: Mapping[str, bytes]) -> TrustBundle:
    """The bundle an issuer's key has signed.

    Raises:
        SignatureWrong: none of these keys did.
        Unreadable: it is no bundle.
    """
    _check(issuer_keys.get(signed.key_id, b""), signed.signature, _BUNDLE + signed.content)
    try:
        return TrustBundle.FromString(signed.content)
    except DecodeError as error:
        raise Unreadable("The content is no trust bundle.") from error


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey) -> SignedReceipt:
    """A receipt as it travels."""
    content = receipt.SerializeToString()
    public = key.public_key().public_bytes_raw()
    return SignedReceipt(
        content=content, signature=key.sign(_RECEIPT + content), key_id=key_id(public)
    )


def verify_receipt(signed: SignedReceipt, issuer_keys: Mapping[str, bytes]) -> Receipt:
    """The receipt an issuer's key has signed.

    Raises:
        SignatureWrong: none of these keys did.
        Unreadable: it is no receipt.
    """
    _check(issuer_keys.get(signed.key_id, b""), signed.signature, _RECEIPT + signed.content)
    try:
        return Receipt.FromString(signed.content)
    except DecodeError as error:
        raise Unreadable("The content is no receipt.") from error


def receipt_hash(entry_hashes: list[bytes]) -> bytes:
    """What a receipt says of the entries it is for: SHA-256 over their hashes, in the order of their numbers."""
    return sha256(b"".join(entry_hashes)).digest()


def _check(public_key: bytes, signature: bytes, message: bytes) -> None:
    # libsodium takes half the time of OpenSSL, and journals arrive by the thousand. Both take every signature that
    # an honest signer can make (RFC 8032); libsodium refuses points of small order besides.
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError) as error:
        raise SignatureWrong("The signature does not fit.") from error
