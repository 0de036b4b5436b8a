"""A terminal as somebody would write it in another language: from docs/offline.md and the generated stubs alone.

It shares no line with `pos` and `protocol`; a test sees to that. So what it can do, the documents say how to do.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from uuid_utils import uuid4, uuid7

from tallystick.offline.v1 import (
    journal_pb2,
    offline_pb2,
    terminal_sync_service_pb2,
    terminal_sync_service_pb2_grpc,
)
from tallystick.type.v1 import money_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_pb2,
)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_WORD = (1 << 64) - 1
_DAY = timedelta(days=1)


class Refused(Exception):
    """A code that is not taken, and why."""


class ForeignTerminal:
    """The steps of docs/offline.md, "A terminal in another language", in their order."""

    def __init__(self, address: str, ca_file: str) -> None:
        credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
        self._channel = grpc.aio.secure_channel(address, credentials)
        self._sync = terminal_sync_service_pb2_grpc.TerminalSyncServiceStub(self._channel)
        self._auth = auth_service_pb2_grpc.AuthServiceStub(self._channel)
        self._key = Ed25519PrivateKey.generate()
        self._bundle = terminal_sync_service_pb2.TrustBundle()
        self._spent: set[str] = set()
        self._wrong_codes = 0
        self._entries: list[journal_pb2.SignedEntry] = []
        self._previous = bytes(32)
        self.name = ""

    async def close(self) -> None:
        await self._channel.close()

    # 1. A key, enrolled by the vendor.
    async def enroll(self, username: str, password: str, site: str) -> None:
        asked = auth_service_pb2.LoginRequest(username=username, password=password)
        token = (await self._auth.Login(asked)).session.access_token
        terminals = terminal_service_pb2_grpc.TerminalServiceStub(self._channel)
        wish = user_pb2.Terminal(
            display_name="Foreign till",
            site=site,
            public_key=self._key.public_key().public_bytes_raw(),
        )
        request = terminal_service_pb2.EnrollTerminalRequest(request_id=str(uuid4()), terminal=wish)
        answer = await terminals.EnrollTerminal(request, metadata=_bearer(token))
        self.name = answer.terminal.name

    # 2. Sign in by an assertion.
    async def _sign_in(self) -> tuple[tuple[str, str], ...]:
        now = int(time.time())
        claims = {
            "iss": self.name,
            "sub": self.name,
            "aud": "tallystick",
            "iat": now,
            "exp": now + 60,
            "jti": str(uuid4()),
        }
        said = ".".join(
            _base64url(json.dumps(part).encode()) for part in ({"alg": "EdDSA"}, claims)
        )
        assertion = f"{said}.{_base64url(self._key.sign(said.encode()))}"
        request = auth_service_pb2.AuthenticateTerminalRequest(assertion=assertion)
        return _bearer((await self._auth.AuthenticateTerminal(request)).access_token)

    # 3. The trust bundle.
    async def fetch(self) -> None:
        request = terminal_sync_service_pb2.GetTrustBundleRequest()
        travelling = (
            await self._sync.GetTrustBundle(request, metadata=await self._sign_in())
        ).bundle
        bundle = terminal_sync_service_pb2.TrustBundle.FromString(travelling.content)
        knows = self._bundle if self._bundle.version else bundle
        _verify(knows, travelling, b"TSB1")
        assert bundle.terminal == self.name
        self._bundle = bundle

    # 4. At the counter.
    def look(self, text: str, minor_units: int, currency: str) -> str:
        """The symbols of a code that is good for an amount.

        Raises:
            Refused: it is not.
        """
        symbols = text.upper().translate(_LOOKALIKES)
        if len(symbols) != 16 or not set(symbols) <= set(ALPHABET):
            raise Refused("CODE_SYMBOL")
        digits = [ALPHABET.index(symbol) for symbol in symbols]
        if _check(digits[:15]) != digits[15]:
            raise Refused("CHECK_SYMBOL")
        bits = int.from_bytes(_pack(digits), "big")
        serial, tag, keyset, tier, day = (
            bits >> 48,
            bits >> 18 & (1 << 30) - 1,
            bits >> 15 & 7,
            bits >> 11 & 15,
            bits >> 5 & 63,
        )
        key = next((each for each in self._bundle.code_keys if each.keyset == keyset), None)
        if key is None:
            self._wrong_codes += 1
            raise Refused("KEYSET_UNKNOWN")
        epoch = key.epoch_time.ToDatetime(UTC)
        if self._now() >= epoch + (day + 1) * _DAY:
            raise Refused("EXPIRED")
        values = {
            (each.number, each.value.currency_code): each.value for each in self._bundle.tiers
        }
        if minor_units > values[tier, currency].minor_units:
            raise Refused("AMOUNT_OVER_VALUE")
        issuer = self._bundle.issuer.encode()
        signed = b"".join(
            (b"TS1", bytes([len(issuer)]), issuer, currency.encode(), serial.to_bytes(4, "big"))
        ) + bytes([keyset, tier, day])
        mac = hmac.digest(key.key, signed, sha256)
        if int.from_bytes(mac[:4], "big") >> 2 != tag:
            self._wrong_codes += 1
            raise Refused("TAG_WRONG")
        if symbols in self._spent:
            raise Refused("SPENT_HERE")
        mark = hmac.digest(key.key, b"TSF1" + symbols.encode(), sha256)[:8]
        number = int.from_bytes(mark, "big")
        if number in self._bundle.denied:
            raise Refused("REVOKED")
        issued = epoch + (day - self._bundle.spend_days) * _DAY
        built = self._bundle.issued.build_time.ToDatetime(UTC)
        if issued + _DAY <= built and not contains(self._bundle.issued.data, number):
            self._wrong_codes += 1
            raise Refused("NOT_ISSUED")
        return symbols

    # 5. The entry. (A real terminal writes it to disk here, before it says approved.)
    def sell(self, text: str, minor_units: int, currency: str) -> str:
        """Take a code; the item's id."""
        symbols = self.look(text, minor_units, currency)
        item_id = str(uuid7())
        entry = journal_pb2.Entry(
            version=1,
            terminal=self.name,
            sequence=len(self._entries) + 1,
            previous_hash=self._previous,
            server_time=self._bundle.server_time,
            bundle_version=self._bundle.version,
            wrong_codes=self._wrong_codes,
            sale=journal_pb2.Sale(
                item_id=item_id,
                code=symbols,
                amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            ),
        )
        entry.record_time.FromDatetime(self._now())
        content = entry.SerializeToString()
        self._entries.append(
            journal_pb2.SignedEntry(content=content, signature=self._key.sign(b"TSJ1" + content))
        )
        self._previous = sha256(b"TSH1" + content).digest()
        self._spent.add(symbols)
        self._wrong_codes = 0
        return item_id

    # 6. Upload what the server does not have, and wait for results.
    async def upload(self) -> dict[str, str]:
        """Reasons, by item id."""
        who = await self._sign_in()
        asked = terminal_sync_service_pb2.GetJournalHeadRequest()
        head = await self._sync.GetJournalHead(asked, metadata=who)
        fresh = self._entries[head.sequence :]
        request = terminal_sync_service_pb2.SubmitBatchRequest(
            request_id=str(uuid4()), entries=fresh
        )
        answer = await self._sync.SubmitBatch(request, metadata=who)
        _verify(self._bundle, answer.receipt, b"TSR1")
        receipt = terminal_sync_service_pb2.Receipt.FromString(answer.receipt.content)
        assert list(receipt.sequences) == list(range(head.sequence + 1, len(self._entries) + 1))
        hashes = (sha256(b"TSH1" + entry.content).digest() for entry in fresh)
        assert receipt.entries_hash == sha256(b"".join(hashes)).digest()
        watch = terminal_sync_service_pb2.WatchBatchRequest(name=answer.batch.name)
        results = {}
        async for message in self._sync.WatchBatch(watch, metadata=who):
            for item in message.items:
                reason = offline_pb2.Reason.Name(item.reason)
                results[item.name.removeprefix("items/")] = reason
        return results

    def _now(self) -> datetime:
        return max(datetime.now(UTC), self._bundle.server_time.ToDatetime(UTC))


def contains(data: bytes, key: int) -> bool:
    """Whether a filter of issued codes has a key in it."""
    if not data:
        return False
    seed = int.from_bytes(data[:8], "big")
    length, count = int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:16], "big")
    h = (key + seed) & _WORD
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = ((h ^ h >> 33) * factor) & _WORD
    h ^= h >> 33
    first = (h * count * length) >> 64
    second = (first + length) ^ (h >> 18 & length - 1)
    third = (first + 2 * length) ^ (h & length - 1)
    table = data[16:]
    return table[first] ^ table[second] ^ table[third] == (h ^ h >> 32) & 255


def _check(digits: list[int]) -> int:
    """Σ αⁱ·dᵢ over GF(32), i from 1."""
    total, weight = 0, 1
    for digit in digits:
        weight = _times(weight, 2)
        total ^= _times(weight, digit)
    return total


def _times(left: int, right: int) -> int:
    product = 0
    for bit in range(5):
        if right >> bit & 1:
            product ^= left << bit
    for bit in range(8, 4, -1):
        if product >> bit & 1:
            product ^= 0b100101 << bit - 5
    return product


def _pack(digits: list[int]) -> bytes:
    bits = 0
    for digit in digits:
        bits = bits << 5 | digit
    return bits.to_bytes(10, "big")


def _verify(
    bundle: terminal_sync_service_pb2.TrustBundle,
    travelling: terminal_sync_service_pb2.SignedTrustBundle
    | terminal_sync_service_pb2.SignedReceipt,
    kind: bytes,
) -> None:
    keys = {each.key_id: each.public_key for each in bundle.issuer_keys}
    public = Ed25519PublicKey.from_public_bytes(keys[travelling.key_id])
    public.verify(travelling.signature, kind + travelling.content)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
