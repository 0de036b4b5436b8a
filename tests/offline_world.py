"""A whole running stack with people who pay and sell offline, and terminals that may lie."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.engine import make_url
from uuid_utils import UUID, uuid4, uuid7

from cli.demo.client import ApiError, Gateway, Operator
from pos.platform import Platform
from protocol import signed
from tallystick.offline.v1 import journal_pb2, offline_pb2, terminal_sync_service_pb2
from tallystick.payment.v1 import wallet_pb2
from tallystick.type.v1 import money_pb2, position_pb2
from tallystick.user.v1 import user_pb2
from tests import stacks
from tests.eventually import eventually

PLACE = position_pb2.Position(latitude=12.9716, longitude=77.5946, accuracy_meters=20)
# Limits are not what these tests are about.
WIDE = {
    f"TALLYSTICK_RATE_{name}": "100000/100000/1000"
    for name in ("PUBLIC", "WRITE", "READ", "TERMINAL", "OPERATOR", "PAYMENT")
}
_serials = itertools.count(1)


def inr(minor_units):
    return money_pb2.Money(minor_units=minor_units, currency_code="INR")


class Person:
    """Somebody with an approved account, signed in."""

    def __init__(self, username, password, client):
        self.username = username
        self.password = password
        self.client = client
        self.name = client.name

    @property
    def wallet_name(self):
        return self.client.wallet_name("INR")


class Lying:
    """A terminal with a real key, whose journal says whatever a test wants."""

    def __init__(self, world, vendor, key, name, site):
        self.world = world
        self.vendor = vendor
        self.key = key
        self.name = name
        self.site = site
        self.sequence = 0
        self.previous = signed.GENESIS
        self.bundle = None

    @property
    def vendor_id(self):
        return UUID(self.name.split("/")[1])

    @property
    def terminal_id(self):
        return UUID(self.name.split("/")[3])

    async def sign_in(self):
        return await self.world.platform.sign_in(self.name, self.key, datetime.now(UTC))

    async def fetch(self):
        """The trust bundle as it is now."""
        travelling = await self.world.platform.trust_bundle(await self.sign_in())
        self.bundle = terminal_sync_service_pb2.TrustBundle.FromString(travelling.content)
        return self.bundle

    def sale(
        self,
        code,
        minor_units=100_00,
        *,
        at=None,
        sequence=None,
        key=None,
        place=None,
        spend=None,
        item=None,
        wrong_codes=0,
    ):
        """A signed entry; the chain goes on behind it unless its number was given."""
        at = datetime.now(UTC) if at is None else at
        entry = journal_pb2.Entry(
            version=1,
            terminal=self.name,
            sequence=self.sequence + 1 if sequence is None else sequence,
            previous_hash=self.previous,
            bundle_version=self.bundle.version,
            wrong_codes=wrong_codes,
        )
        entry.record_time.FromDatetime(at)
        entry.server_time.CopyFrom(self.bundle.server_time)
        entry.sale.item_id = str(item or uuid7())
        if spend is None:
            entry.sale.code = code.replace("-", "")
        else:
            entry.sale.spend.CopyFrom(spend)
        entry.sale.amount.CopyFrom(inr(minor_units))
        if place is not None:
            entry.sale.position.CopyFrom(place)
        travelling = signed.sign_entry(entry, key or self.key)
        if sequence is None or sequence > self.sequence:
            self.sequence = entry.sequence
            self.previous = signed.entry_hash(travelling.content)
        return travelling

    async def submit(self, *entries, who=None, request_id=None):
        request = terminal_sync_service_pb2.SubmitBatchRequest(
            request_id=request_id or str(uuid4()), terminal=self.name, entries=entries
        )
        return await self.world.platform.submit(who or await self.sign_in(), request)

    async def upload(self, *entries, who=None):
        """What becomes of each sale: `REASON` without its prefix, in the journal's order."""
        who = who or await self.sign_in()
        answer = await self.submit(*entries, who=who)
        return [reason_of(item) for item in await self.results(answer.batch.name, who=who)]

    async def results(self, batch, *, who=None):
        who = who or await self.sign_in()

        async def decided():
            found = await self.world.platform.batch(who, batch)
            is_done = found.batch.state == offline_pb2.Batch.STATE_DONE
            return (list(found.items),) if is_done else None

        (items,) = await eventually(decided, seconds=20)
        return items


def reason_of(item):
    return offline_pb2.Reason.Name(item.reason).removeprefix("REASON_")


class World:
    """The stack, an operator, and a connection of this test's own."""

    def __init__(self, stack, gateway, operator, platform):
        self.stack = stack
        self.gateway = gateway
        self.operator = operator
        self.platform = platform

    async def person(self, *, vendor=False):
        number = next(_serials)
        username = f"p{number}.{secrets.token_hex(4)}"
        password = secrets.token_urlsafe(12)
        if vendor:
            await self.gateway.register_vendor(username, password, f"Shop {number}", PLACE)
        else:
            await self.gateway.register_payer(username, password, f"Payer {number}")
        client = await self.gateway.sign_in(username, password)
        case = await self.operator.open_case(client.name)
        await self.operator.decide(case.name, approve=True, reason="Known.")
        return Person(username, password, await self.gateway.sign_in(username, password))

    async def payer(self, offline=2_000_00):
        person = await self.person()

        async def has_wallet():
            with contextlib.suppress(ApiError):
                return await self.operator.top_up(person.wallet_name, inr(5_000_00), "counter")

        await eventually(has_wallet)
        await person.client.move_offline(inr(offline))
        return person

    async def codes(self, payer, *values, device=None):
        issued = await payer.client.issue_codes(values or (100_00,), "INR", device=device)
        return [each.symbols for each in issued]

    async def terminal(self, vendor):
        """A terminal that may lie, with a trust bundle."""
        (site,) = await vendor.client.sites()
        key = Ed25519PrivateKey.generate()
        signed_in = await self.platform.sign_in_vendor(vendor.username, vendor.password)
        enrolled = await self.platform.enroll(
            signed_in,
            user_pb2.Terminal(
                display_name="Counter",
                site=site.name,
                public_key=key.public_key().public_bytes_raw(),
            ),
            str(uuid4()),
        )
        terminal = Lying(self, vendor, key, enrolled.name, site.name)
        await terminal.fetch()
        return terminal

    async def balances(self, person):
        """Minor units online, offline, reserved, held."""
        wallet: wallet_pb2.Wallet = await self.operator.wallet(person.wallet_name)
        accounts = (wallet.online, wallet.offline, wallet.reserved, wallet.held)
        return tuple(account.minor_units for account in accounts)

    def edit(self, service, statement, *values):
        """Change a row behind the service's back: what only days of waiting would."""
        url = make_url(self.stack.endpoints.services[service].database_url)
        with contextlib.closing(sqlite3.connect(url.database, timeout=10)) as database:
            database.execute(statement, values)
            database.commit()


@contextlib.asynccontextmanager
async def visiting(stack):
    """People of a running stack, for one test's event loop."""
    at = stack.endpoints
    ca_file = Path(at.ca_file)
    async with Gateway(at.grpc, ca_file) as gateway, Platform(at.grpc, ca_file) as platform:
        admin = await gateway.sign_in(at.admin_user, at.admin_password)
        yield World(stack, gateway, Operator.of(admin), platform)


def running(directory, *options, **variables):
    """A stack with wide limits."""
    return stacks.running(directory, *options, environment={**WIDE, **variables})


def ago(**span):
    return datetime.now(UTC) - timedelta(**span)
