"""Moving a terminal to another installation: everything it is, in one file, encrypted with a passphrase."""

from __future__ import annotations

import asyncio
import io
import secrets
import tempfile
import zipfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pos.errors import PosError
from pos.terminal import Terminal, open_journal
from pos.vault import Vault

_MAGIC = b"TSX1"
_SALT_BYTES = 16
_NONCE_BYTES = 12
# 64 MB and a quarter of a second: OWASP's recommendation for scrypt.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**16, 8, 1
_FILES = ("secret", "terminal.json")
PASSPHRASE_MIN = 8


async def export(terminal: Terminal, directory: Path, file: Path, passphrase: str) -> None:
    """Write the terminal's whole directory to a file.

    From then on this installation takes no code: two that did would fork the journal.

    Raises:
        PosError: PASSPHRASE_SHORT, FILE_EXISTS.
    """
    if len(passphrase) < PASSPHRASE_MIN:
        message = f"The passphrase needs {PASSPHRASE_MIN} characters: it guards the key."
        raise PosError("PASSPHRASE_SHORT", message)
    await asyncio.to_thread(_reserve, file)
    await terminal.mark_moved()
    await asyncio.to_thread(_write, terminal, directory, file, passphrase)


def _reserve(file: Path) -> None:
    try:
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise PosError("FILE_EXISTS", f"{file} exists. Name another.") from None


def _write(terminal: Terminal, directory: Path, file: Path, passphrase: str) -> None:
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(packed, "w") as archive:
        copy = Path(scratch) / "journal.db"
        terminal.backup(copy)
        archive.write(copy, "journal.db")
        for name in _FILES:
            archive.write(directory / name, name)
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, packed.getvalue(), _MAGIC)
    Vault(file.parent).write(file.name, _MAGIC + salt + nonce + sealed)


def restore(directory: Path, file: Path, passphrase: str) -> None:
    """Make a terminal's directory from an export.

    Raises:
        PosError: ALREADY_ENROLLED, NOT_AN_EXPORT, PASSPHRASE_WRONG.
    """
    vault = Vault(directory)
    if vault.is_enrolled():
        message = f"{directory} holds a terminal already. Name another directory."
        raise PosError("ALREADY_ENROLLED", message)
    content = file.read_bytes() if file.exists() else b""
    start = len(_MAGIC) + _SALT_BYTES + _NONCE_BYTES
    if not content.startswith(_MAGIC) or len(content) < start:
        raise PosError("NOT_AN_EXPORT", f"{file} is no export of a terminal.")
    salt = content[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES]
    nonce = content[len(_MAGIC) + _SALT_BYTES : start]
    try:
        packed = AESGCM(_key(passphrase, salt)).decrypt(nonce, content[start:], _MAGIC)
    except InvalidTag as error:
        message = "The passphrase is wrong, or the file was changed."
        raise PosError("PASSPHRASE_WRONG", message) from error
    with vault.claim(), zipfile.ZipFile(io.BytesIO(packed)) as archive:
        # Of an enrolment that was broken off: SQLite would play them into the journal.
        for rest in ("journal.db-wal", "journal.db-shm"):
            (directory / rest).unlink(missing_ok=True)
        # The identity last: without it there is no terminal here, and the import can be repeated.
        for name in ("journal.db", *_FILES):
            vault.write(name, archive.read(name))
        journal = open_journal(vault, vault.identity())
        try:
            journal.forget("moved")
        finally:
            journal.close()


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt, 32, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P).derive(passphrase.encode())
