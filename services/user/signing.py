"""Signing keys at rest and at work: ES256 private keys, sealed with a key that is not in the database."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.sealing import Sealer
from services.user.domain.signing_key import SigningKey

ALGORITHM = "ES256"
_COORDINATE_BYTES = 32  # of P-256


class KeyRing:
    """Makes signing keys and signs with them.

    Args:
        sealer: Seals private keys. To replace its first key, rotate the signing keys before the old one goes.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        # Opening takes 0.1 ms and the same key signs for a month.
        self._private_key = lru_cache(maxsize=8)(self._open)

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read the file of key-encryption keys.

        Raises:
            SettingError: it holds something else.
        """
        return cls(Sealer.read(path))

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
        return SigningKey(
            key_id=key_id,
            number=number,
            public_jwk=json.dumps({**identity, "kid": key_id, "alg": ALGORITHM, "use": "sig"}),
            # The key id is authenticated with it: a private key moved to another row does not open.
            sealed_private_key=self._sealer.seal(pem, _context(key_id)),
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
        private_key = serialization.load_pem_private_key(
            self._sealer.open(sealed, _context(key_id)), None
        )
        assert isinstance(private_key, ec.EllipticCurvePrivateKey)
        return private_key


def _context(key_id: str) -> str:
    return f"signing key {key_id}"


def key_set(keys: Iterable[SigningKey]) -> str:
    """A JSON Web Key Set (RFC 7517) of public keys."""
    return json.dumps({"keys": [json.loads(key.public_jwk) for key in keys]})


def _coordinate(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(_COORDINATE_BYTES, "big")).rstrip(b"=").decode()
