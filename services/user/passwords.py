"""Argon2id, off the event loop, and the list of the commonest passwords."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.rpc import refusals
from services.user.domain.password import canonical

T = TypeVar("T")

# OWASP Password Storage Cheat Sheet, Argon2id: 19 MiB, 2 passes, 1 lane. A hash made with other values is made
# anew when its owner signs in.
MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
# How many may wait for a thread: at some 20 ms each, the last one still gets its answer within a second or two.
WAITING_MAX = 64


def common_passwords() -> frozenset[str]:
    """The commonest passwords, in lower case."""
    lines = Path(__file__).with_name("common_passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


class Passwords:
    """Hashes and verifies passwords. The caller closes it.

    Args:
        threads: How many at once. Each takes a core and 19 MiB for some 20 ms, and the rest of the service needs a
            core too, so a flood of sign-ins must not have them all.
    """

    def __init__(self, *, threads: int) -> None:
        self._hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._waiting = 0
        # Verified when nobody has the username, so that the answer takes as long. Nobody knows its password.
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))

    async def hash(self, password: str) -> str:
        """A new hash in PHC form.

        Raises:
            Refusal: overloaded.
        """
        return await self._run(lambda: self._hasher.hash(canonical(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether a password is the one of a hash. Of no hash it never is, at the same cost.

        Raises:
            Refusal: overloaded.
        """

        def verify() -> bool:
            try:
                return self._hasher.verify(password_hash or self._nobody, canonical(password))
            except VerificationError:
                return False

        return await self._run(verify) and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """The hash was made with other parameters than are used now."""
        try:
            return self._hasher.check_needs_rehash(password_hash)
        except InvalidHashError:
            return True

    def close(self) -> None:
        """Let the threads go; nothing must be waiting."""
        self._executor.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise refusals.overloaded(timedelta(seconds=1))
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._waiting -= 1
