"""The issuer's secrets at work: keysets, the issuer's signing key, and the pepper codes are hashed with."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol import code as codes
from protocol import signed
from services.offline.domain import keyset as rules
from services.offline.domain.keyset import Keyset
from services.offline.domain.terms import Terms
from services.offline.recorder import Recorder
from services.offline.store import keys as store
from services.sealing import Sealer

_ISSUER_KEY = "issuer_key"
_PEPPER = "pepper"
_SECRET_BYTES = 32


class KeyRing:
    """Makes and keeps the secrets, sealed in the database, and uses them.

    Args:
        recorder: Transactions.
        sealer: Seals and opens.
        terms: How long codes live.
    """

    def __init__(self, recorder: Recorder, sealer: Sealer, terms: Terms) -> None:
        self._recorder = recorder
        self._sealer = sealer
        self._terms = terms
        self._keysets: list[Keyset] = []
        self._issuer_key: Ed25519PrivateKey | None = None
        self._pepper = b""
        # Deriving takes 20 µs, and a bundle names every keyset.
        self._scope_key = lru_cache(maxsize=256)(self._derive)

    async def load(self) -> None:
        """Read every secret, and make those that are missing; call it before anything else.

        Raises:
            SettingError: one was sealed with a key that is not in the file.
        """
        found = await self._recorder.transact(self._secrets)
        self._issuer_key = Ed25519PrivateKey.from_private_bytes(
            self._sealer.open(found[_ISSUER_KEY], _context(_ISSUER_KEY))
        )
        self._pepper = self._sealer.open(found[_PEPPER], _context(_PEPPER))
        await self.rotate_old()
        for keyset in self._keysets:  # that one does not open is found now, not at the first code
            self.scope_key(keyset, codes.DEFAULT_SCOPE)

    async def _secrets(self, connection: AsyncConnection) -> dict[str, bytes]:
        found = await store.read_secrets(connection)
        # A random 32 bytes are an Ed25519 private key (RFC 8032).
        for name in {_ISSUER_KEY, _PEPPER} - found.keys():
            plain = secrets.token_bytes(_SECRET_BYTES)
            found[name] = self._sealer.seal(plain, _context(name))
            await store.insert_secret(connection, name, found[name])
        return found

    async def rotate_old(self) -> None:
        """Learn of keysets that other replicas made, and start a new one where it is time."""

        def due(keysets: list[Keyset], now: datetime) -> bool:
            return not keysets or rules.is_old(keysets[-1], self._terms, now=now)

        await self._rotate(due)

    async def rotate(self) -> Keyset:
        """Start a new keyset.

        Raises:
            Refusal: keysets_in_use.
        """
        await self._rotate(lambda _, __: True)
        return self.newest

    async def _rotate(self, due: Callable[[list[Keyset], datetime], bool]) -> None:
        async def work(connection: AsyncConnection) -> list[Keyset]:
            keysets = await store.read_keysets(connection)
            now = self._recorder.now()
            if due(keysets, now):
                keyset = self._new_keyset(rules.next_generation(keysets, self._terms, now=now), now)
                await store.insert_keyset(connection, keyset)
                keysets.append(keyset)
            return keysets

        self._keysets = await self._recorder.transact(work)

    def _new_keyset(self, generation: int, now: datetime) -> Keyset:
        master = secrets.token_bytes(codes.KEY_BYTES)
        return Keyset(
            generation=generation,
            epoch_time=now.replace(hour=0, minute=0, second=0, microsecond=0),
            sealed_key=self._sealer.seal(master, _context(f"keyset/{generation}")),
            create_time=now,
        )

    @property
    def newest(self) -> Keyset:
        """What codes are issued under."""
        return self._keysets[-1]

    def spendable(self, now: datetime) -> list[Keyset]:
        """Those whose codes a terminal may take."""
        return rules.spendable(self._keysets, self._terms, now=now)

    def scope_key(self, keyset: Keyset, scope: str) -> bytes:
        """The key of an area under a keyset."""
        return self._scope_key(keyset, scope)

    def _derive(self, keyset: Keyset, scope: str) -> bytes:
        master = self._sealer.open(keyset.sealed_key, _context(f"keyset/{keyset.generation}"))
        return codes.scope_key(master, keyset.number, scope)

    @property
    def issuer_key(self) -> Ed25519PrivateKey:
        """What vouchers, bundles and receipts are signed with."""
        assert self._issuer_key is not None
        return self._issuer_key

    @property
    def issuer_keys(self) -> Mapping[str, bytes]:
        """The issuer's public keys by their id."""
        public = self.issuer_key.public_key().public_bytes_raw()
        return {signed.key_id(public): public}

    def code_hash(self, symbols: str) -> bytes:
        """What a code is looked up by when its symbols were typed."""
        return hmac.digest(self._pepper, symbols.encode(), sha256)

    def voucher_hash(self, keyset: int, serial: int) -> bytes:
        """What it is looked up by when its voucher was shown."""
        said = b"V" + bytes([keyset]) + serial.to_bytes(4, "big")
        return hmac.digest(self._pepper, said, sha256)

    def seal(self, plain: bytes, context: str) -> bytes:
        """Seal what holds symbols."""
        return self._sealer.seal(plain, _context(context))

    def open(self, sealed: bytes, context: str) -> bytes:
        """Open what was sealed under the same context."""
        return self._sealer.open(sealed, _context(context))


def _context(what: str) -> str:
    return f"offline/{what}"
