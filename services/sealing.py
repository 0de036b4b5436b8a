"""Secrets at rest: sealed with a key that is not in the database."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.environment import SettingError

_NONCE_BYTES = 12
_KEY_BYTES = 32


class Sealer:
    """Seals and opens with AES-256-GCM.

    Args:
        key_encryption_keys: 32 random bytes each. The first seals; every one opens, so that the first can be
            replaced: put a new one before it, renew what is sealed, remove the old one then.
    """

    def __init__(self, key_encryption_keys: Sequence[bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in key_encryption_keys]

    @classmethod
    def read(cls, path: Path) -> Self:
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

    def seal(self, plain: bytes, context: str) -> bytes:
        """Seal a secret. `context` says what it is: sealed as one thing it does not open as another."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Open what was sealed under the same context.

        Raises:
            SettingError: it was sealed with a key that is not in the file.
        """
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, ciphertext, context.encode())
            except InvalidTag:
                continue
        raise SettingError(
            f"TALLYSTICK_KEK_FILE does not open {context}. Give the file this database was made with."
        )
