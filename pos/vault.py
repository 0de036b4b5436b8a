"""What a terminal keeps beside its journal: who it is, and the secrets that prove it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from uuid_utils import UUID

from pos.errors import PosError

_NONCE_BYTES = 12
_SECRET_BYTES = 32
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a terminal is.

    Attributes:
        name: `users/{uuid}/terminals/{uuid}`.
        display_name: What its vendor calls it.
        issuer_keys: Public keys (hexadecimal) by id, of the first bundle. A later one must be signed
            by a key that the one before it knew.
    """

    name: str
    display_name: str
    issuer_keys: dict[str, str]

    @property
    def vendor_id(self) -> UUID:
        """Its vendor's id."""
        return UUID(self.name.split("/")[1])

    @property
    def terminal_id(self) -> UUID:
        """Its own id."""
        return UUID(self.name.split("/")[3])


class Cipher:
    """Encrypts what lies on disk; what was written in one place does not open in another."""

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        self._aead = AESGCM(self.derive(secret, purpose))

    @staticmethod
    def derive(secret: bytes, purpose: bytes) -> bytes:
        """A key of its own for each purpose."""
        return HKDF(SHA256(), _SECRET_BYTES, salt=None, info=b"TSPJ1" + purpose).derive(secret)

    def seal(self, plain: bytes, place: str) -> bytes:
        """Encrypt for one place."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes | None:
        """Decrypt; None when it was changed, or comes from another place or terminal."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
        except InvalidTag:
            return None


class Vault:
    """A terminal's directory.

    Files: `secret` (device secret and private key, 64 bytes), `terminal.json` (who it is), `enrolling` (a request id,
    while enrolment is under way), `journal.db`. The directory is its owner's alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def journal_file(self) -> Path:
        """The SQLite database."""
        return self.directory / "journal.db"

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keep other processes out: two writers would fork the journal.

        Raises:
            PosError: IN_USE, when another does not leave within five seconds.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as file:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        message = f"Another program uses {self.directory}. Close it first."
                        raise PosError("IN_USE", message) from None
                    time.sleep(0.05)
            yield

    def secret(self) -> bytes:
        """The 64 secret bytes, made where there are none."""
        file = self.directory / "secret"
        if not file.exists():
            if self.is_enrolled():
                # Another key would open nothing that is here, and the platform would not know it.
                raise PosError("DAMAGED", f"{file} is gone. Import the terminal's last export.")
            key = Ed25519PrivateKey.generate().private_bytes_raw()
            self.write("secret", secrets.token_bytes(_SECRET_BYTES) + key)
        found = file.read_bytes()
        if len(found) != 2 * _SECRET_BYTES:
            raise PosError("DAMAGED", f"{file} is damaged. Import the terminal's last export.")
        return found

    def signing_key(self) -> Ed25519PrivateKey:
        """The key the platform knows the terminal by."""
        return Ed25519PrivateKey.from_private_bytes(self.secret()[_SECRET_BYTES:])

    def device_secret(self) -> bytes:
        """What everything on disk is encrypted with."""
        return self.secret()[:_SECRET_BYTES]

    def identity(self) -> Identity:
        """Who the terminal is.

        Raises:
            PosError: NOT_ENROLLED, DAMAGED.
        """
        file = self.directory / "terminal.json"
        if not file.exists():
            message = f"{self.directory} holds no terminal. Enrol one: `tallystick pos enroll`."
            raise PosError("NOT_ENROLLED", message)
        try:
            return Identity(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            message = f"{file} is damaged. Import the terminal's last export."
            raise PosError("DAMAGED", message) from error

    def is_enrolled(self) -> bool:
        """There is a terminal here."""
        return (self.directory / "terminal.json").exists()

    def save_identity(self, identity: Identity) -> None:
        """Store who the terminal is."""
        self.write("terminal.json", (json.dumps(asdict(identity), indent=2) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, and durably, for its owner's eyes only."""
        part = self.directory / f"{name}.part"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.directory / name)
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
