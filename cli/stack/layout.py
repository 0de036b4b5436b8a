"""The directories of a stack, and the claim that keeps two stacks out of one."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.process import StartError

# Logs of the start before are kept as NAME.log.1.
_PREVIOUS = ".1"


@dataclass(frozen=True)
class Layout:
    """Where a stack keeps what.

    Attributes:
        run: What one run needs: certificates, logs, endpoints. May be deleted when nothing runs.
        data: What outlives it: databases, the key that signing keys are encrypted with, the first
            admin's password. These belong together, so they lie together.
    """

    run: Path
    data: Path

    @property
    def endpoints_file(self) -> Path:
        """Where the stack can be reached; there while it is ready."""
        return self.run / "endpoints.json"

    @property
    def pki(self) -> Path:
        """Certificates and their keys."""
        return self.run / "pki"

    def log(self, name: str) -> Path:
        """One process's log."""
        return self.run / "logs" / f"{name}.log"

    @property
    def admin_user_file(self) -> Path:
        """The first admin's username. Missing where the databases had an admin already."""
        return self.data / "admin-user"

    @property
    def admin_password_file(self) -> Path:
        """The first admin's password."""
        return self.data / "admin-password"

    @property
    def mariadb(self) -> Path:
        """The data directory of the stack's own MariaDB."""
        return self.data / "mariadb"

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold both directories for this process and put them in order.

        The kernel gives them free when the process ends, however it ends, and the processes it
        started end with it; so what a killed stack leaves behind needs no looking after.

        Raises:
            StartError: another stack holds one of them, or they cannot be written.
        """
        with contextlib.ExitStack() as locks:
            for directory in (self.run, self.data):
                try:
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    directory.chmod(0o700)
                except OSError as error:
                    raise StartError(f"{directory} cannot be used: {error.strerror}.") from error
                locks.enter_context(_lock(directory))
            self.endpoints_file.unlink(missing_ok=True)
            _rotate(self.run / "logs")
            try:
                yield
            finally:
                self.endpoints_file.unlink(missing_ok=True)

    def make_key_encryption_key(self) -> Path:
        """The key, made where there is none; a new one would make signing keys unreadable."""
        file = self.data / "key-encryption-key"
        if not file.exists():
            write_secret(file, base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
        return file

    def admin_user(self) -> str:
        """The first admin's username; empty where the databases had an admin already."""
        return self.admin_user_file.read_text().strip() if self.admin_user_file.exists() else ""


def write_secret(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner's eyes only."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StartError(
                f"A stack is running in {directory} (process {holder}). "
                f"Stop it with Ctrl-C where it runs or `kill {holder}`, or name other directories "
                "with --run-dir."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _rotate(logs: Path) -> None:
    logs.mkdir(mode=0o700, exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_name(log.name + _PREVIOUS))
