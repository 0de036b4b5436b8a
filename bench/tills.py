"""Terminals with journals to upload, and codes to have filled them with: made through the gateway, as real ones are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID, uuid4, uuid7

from bench.measured import Measured
from bench.seed import CURRENCY, sign_in
from cli.stack.endpoints import Endpoints
from pos.platform import Platform, SignedIn
from protocol import signed
from protocol.code import normalize
from services import names
from services.user.domain.user import Role
from tallystick.offline.v1 import (
    code_service_pb2,
    code_service_pb2_grpc,
    journal_pb2,
    offline_pb2,
    terminal_sync_service_pb2,
)
from tallystick.type.v1 import money_pb2
from tallystick.user.v1 import site_service_pb2, site_service_pb2_grpc, user_pb2

# Minor units. A wallet may have ten codes alive, five to a request.
CODE_VALUE = 100_00
CODES_EACH = 10
_CODES_PER_REQUEST = 5
_ISSUING_AT_ONCE = 64
_CALL_SECONDS = 30.0


@dataclass(frozen=True)
class Code:
    """A code that somebody may spend.

    Attributes:
        owner: Whose.
        symbols: The sixteen of it.
    """

    owner: UUID
    symbols: str


@dataclass
class Till:
    """A terminal, its journal, and what it was told.

    Attributes:
        name: `users/{uuid}/terminals/{uuid}`.
        key: What it signs with.
        who: It, signed in.
        bundle: What it knows of the platform.
        entries: What it will upload.
        codes: What each sale was paid with, by item.
        items: What it was told of each, by name; the last word counts.
    """

    name: str
    key: Ed25519PrivateKey
    who: SignedIn
    bundle: terminal_sync_service_pb2.TrustBundle
    entries: list[journal_pb2.SignedEntry] = field(default_factory=list)
    codes: dict[str, Code] = field(default_factory=dict)
    items: dict[str, offline_pb2.Item] = field(default_factory=dict)

    @property
    def vendor_id(self) -> UUID:
        """Whose it is."""
        return names.owner_id(self.name)

    def sell(self, codes: Sequence[Code]) -> None:
        """Take codes at their whole value, one sale each, and sign them into the journal."""
        previous = signed.GENESIS
        for sequence, code in enumerate(codes, 1):
            entry = journal_pb2.Entry(
                version=1,
                terminal=self.name,
                sequence=sequence,
                previous_hash=previous,
                bundle_version=self.bundle.version,
                sale=journal_pb2.Sale(
                    item_id=str(uuid7()),
                    code=code.symbols,
                    amount=money_pb2.Money(minor_units=CODE_VALUE, currency_code=CURRENCY),
                ),
            )
            entry.record_time.FromDatetime(datetime.now(UTC))
            entry.server_time.CopyFrom(self.bundle.server_time)
            travelling = signed.sign_entry(entry, self.key)
            previous = signed.entry_hash(travelling.content)
            self.entries.append(travelling)
            self.codes[f"items/{entry.sale.item_id}"] = code


async def issue(measured: Measured) -> list[Code]:
    """As many codes as a wallet may have, for every payer of a world."""
    world = measured.world
    async with _channel(measured.endpoints) as channel:
        stub = code_service_pb2_grpc.CodeServiceStub(channel)
        gate = asyncio.Semaphore(_ISSUING_AT_ONCE)

        async def ask(owner: UUID, token: str) -> list[Code]:
            request = code_service_pb2.IssueCodesRequest(
                request_id=str(uuid4()),
                currency_code=CURRENCY,
                values=[CODE_VALUE] * _CODES_PER_REQUEST,
            )
            async with gate:
                answer = await stub.IssueCodes(
                    request, metadata=_bearer(token), timeout=_CALL_SECONDS
                )
            return [Code(owner, normalize(code.symbols)) for code in answer.codes]

        asking = [
            ask(owner, token)
            # Everybody once, then everybody again: a wallet's own requests wait for each other.
            for _ in range(CODES_EACH // _CODES_PER_REQUEST)
            for owner, token in zip(world.payers, world.tokens, strict=True)
        ]
        return [code for codes in await asyncio.gather(*asking) for code in codes]


async def enrol(measured: Measured, platform: Platform, count: int) -> list[Till]:
    """A terminal for each of the first vendors of a world, signed in and with a trust bundle."""
    vendors = measured.world.vendor_ids[:count]
    tokens = await sign_in(measured.endpoints, measured.key_file, vendors, Role.VENDOR)
    async with _channel(measured.endpoints) as channel:
        sites = site_service_pb2_grpc.SiteServiceStub(channel)
        return [
            await _enrol(platform, sites, vendor, token)
            for vendor, token in zip(vendors, tokens, strict=True)
        ]


async def _enrol(platform: Platform, sites: Any, vendor: UUID, token: str) -> Till:
    who = SignedIn(_bearer(token), None)
    request = site_service_pb2.ListSitesRequest(parent=names.user_name(vendor))
    answer = await sites.ListSites(request, metadata=who.metadata, timeout=_CALL_SECONDS)
    (site,) = answer.sites
    key = Ed25519PrivateKey.generate()
    wanted = user_pb2.Terminal(
        display_name="Counter", site=site.name, public_key=key.public_key().public_bytes_raw()
    )
    name = (await platform.enroll(who, wanted, str(uuid4()))).name
    signed_in = await platform.sign_in(name, key, datetime.now(UTC))
    travelling = await platform.trust_bundle(signed_in)
    bundle = terminal_sync_service_pb2.TrustBundle.FromString(travelling.content)
    return Till(name, key, signed_in, bundle)


@contextlib.asynccontextmanager
async def _channel(endpoints: Endpoints) -> AsyncIterator[grpc.aio.Channel]:
    ca_file = await asyncio.to_thread(Path(endpoints.ca_file).read_bytes)
    roots = grpc.ssl_channel_credentials(ca_file)
    async with grpc.aio.secure_channel(endpoints.grpc, roots) as channel:
        yield channel


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
