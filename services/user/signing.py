"""Signing keys at rest and at work: ES256 private keys, sealed with a key that is not in the database."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.environment import SettingError
from services.user.domain.signing_key import SigningKey

_NONCE_BYTES = 12
_KEY_BYTES = 32
ALGORITHM = "ES256"


class KeyRing:
    """Makes signing keys and signs with them.

    Args:
        key_encryption_keys: 32 random bytes each. The first seals; every one opens, so that the first can be
            replaced: put a new one before it, rotate the signing keys, remove the old one a day later.
    """

    def __init__(self, key_encryption_keys: Sequence[bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in key_encryption_keys]
        # Opening takes 0.1 ms and the same key signs for a month.
        self._private_key = lru_cache(maxsize=8)(self._open)

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a file with one key a line, base64.

        Raises:
            SettingError: a line is not 32 bytes in base64, or there is none.
        """
        keys: list[bytes] = []
        for line in path.read_text("ascii", "replace").split():
            try:
                key = base64.b64decode(line, validate=True)
            except binascii.Error:
                key = b""
            if len(key) != _KEY_BYTES:
                raise SettingError(
                    f"{path} must hold {_KEY_BYTES} random bytes in base64 on each line: "
                    f"`head -c {_KEY_BYTES} /dev/urandom | base64`."
                )
            keys.append(key)
        if not keys:
            raise SettingError(
                f"{path} is empty. Fill it: `head -c {_KEY_BYTES} /dev/urandom | base64`."
            )
        return cls(keys)

    def create(self, number: int, *, create_time: datetime, sign_time: datetime) -> SigningKey:
        """A new key pair."""
        private_key = ec.generate_private_key(ec.SECP256R1())
        point = private_key.public_key().public_numbers()
        # RFC 7638: the members it names, sorted, without spaces.
        identity = {
            "crv": "P-256",
            "kty": "EC",
            "x": _coordinate(point.x),
            "y": _coordinate(point.y),
        }
        digest = hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).digest()
        key_id = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        pem = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return SigningKey(
            key_id=key_id,
            number=number,
            public_jwk=json.dumps({**identity, "kid": key_id, "alg": ALGORITHM, "use": "sig"}),
            # The key id is authenticated with it: a private key moved to another row does not open.
            sealed_private_key=nonce + self._ciphers[0].encrypt(nonce, pem, key_id.encode()),
            create_time=create_time,
            sign_time=sign_time,
        )

    def sign(self, key: SigningKey, claims: dict[str, Any]) -> str:
        """A signed token."""
        private_key = self._private_key(key.key_id, key.sealed_private_key)
        return jwt.encode(claims, private_key, ALGORITHM, headers={"kid": key.key_id})

    def check_opens(self, key: SigningKey) -> None:
        """See that a stored key can be used, before the first sign-in finds that it cannot.

        Raises:
            SettingError: it was sealed with a key that is not in the file.
        """
        self._private_key(key.key_id, key.sealed_private_key)

    def _open(self, key_id: str, sealed: bytes) -> ec.EllipticCurvePrivateKey:
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                pem = cipher.decrypt(nonce, ciphertext, key_id.encode())
            except InvalidTag:
                continue
            private_key = serialization.load_pem_private_key(pem, None)
            assert isinstance(private_key, ec.EllipticCurvePrivateKey)
            return private_key
        raise SettingError(
            f"TALLYSTICK_KEK_FILE does not open signing key {key_id}. "
            "Give the file this database's signing keys were made with."
        )


def key_set(keys: Iterable[SigningKey]) -> str:
    """A JSON Web Key Set (RFC 7517) of public keys."""
    return json.dumps({"keys": [json.loads(key.public_jwk) for key in keys]})


def _coordinate(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(_KEY_BYTES, "big")).rstrip(b"=").decode()
