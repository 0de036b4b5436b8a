"""A running offline service over a real payment service, and the people and terminals who call it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import secrets
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from unittest.mock import patch

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp
from uuid_utils import UUID, uuid4, uuid7

from cli import process
from protocol import code as protocol
from protocol import signed, voucher
from services import names, sql
from services.environment import PREFIX
from services.offline import audit, settling
from services.offline.domain.terms import Terms
from services.offline.server import OfflineServer
from services.offline.settings import Settings
from services.offline.store import tables
from services.payment.backings import Backings
from services.rpc import channel
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.offline.v1 import (
    code_service_pb2,
    code_service_pb2_grpc,
    journal_pb2,
    offline_pb2,
    terminal_sync_service_pb2,
    terminal_sync_service_pb2_grpc,
)
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import user_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.fakes.ledger import line_to
from tests.fakes.user import an_account
from tests.payment_stack import Calls, inr, payment_stack, to_offline

RECEIVED = offline_pb2.Item.STATE_RECEIVED
SETTLED = offline_pb2.Item.STATE_SETTLED
HELD = offline_pb2.Item.STATE_HELD
REFUSED = offline_pb2.Item.STATE_REFUSED

NORMAL = offline_pb2.OfflineRight.LEVEL_NORMAL
REDUCED = offline_pb2.OfflineRight.LEVEL_REDUCED
SUSPENDED = offline_pb2.OfflineRight.LEVEL_SUSPENDED

Reason = offline_pb2.Reason
Code = offline_pb2.Code
DONE = offline_pb2.Batch.STATE_DONE
TERMS = Terms(currencies=frozenset({"INR", "KES"}), scopes=frozenset({"main", "island"}))
PLACE = position_pb2.Position(latitude=12.9716, longitude=77.5946, accuracy_meters=20)


def timestamp(value):
    message = Timestamp()
    message.FromDatetime(value)
    return message


def a_token(subject, role):
    """Metadata as the gateway adds it for a verified token."""
    claims = {"sub": subject, "roles": [role], "iat_us": sql.micros(datetime.now(UTC))}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return (("x-jwt-payload", payload),)


def to_issue(*values, **changes):
    """A request for codes, in rupees."""
    fields = {"request_id": str(uuid4()), "currency_code": "INR", "values": values}
    return code_service_pb2.IssueCodesRequest(**fields | changes)


class Caller:
    """Stubs of both services, with somebody's token."""

    def __init__(self, channels, subject, role):
        metadata = a_token(subject, role)
        gateway = channels["gateway"]
        self.name = subject
        self.codes = Calls(code_service_pb2_grpc.CodeServiceStub(gateway), metadata)
        self.sync = Calls(terminal_sync_service_pb2_grpc.TerminalSyncServiceStub(gateway), metadata)


class Payer:
    """Somebody with an offline balance. `ledger` is the same person at the payment service."""

    def __init__(self, replica, ledger):
        self.ledger = ledger
        self.name = ledger.name
        self.user_id = ledger.user_id
        self.device = Ed25519PrivateKey.generate()
        self.codes = Caller(replica.channels, ledger.name, ledger.role).codes

    async def issue(self, *values, **changes):
        """The codes, as shown once."""
        return list((await self.codes.IssueCodes(to_issue(*values, **changes))).codes)

    async def vouchers(self, *values):
        """The same, as vouchers of this payer's device."""
        return await self.issue(
            *values, device_public_key=self.device.public_key().public_bytes_raw()
        )

    async def list(self, **fields):
        request = code_service_pb2.ListCodesRequest(parent=self.name, **fields)
        return list((await self.codes.ListCodes(request)).codes)

    async def state_of(self, issued):
        (found,) = [
            each for each in await self.list(page_size=200) if each.name == issued.code.name
        ]
        return found

    async def revoke(self, *issued):
        request = code_service_pb2.RevokeCodesRequest(
            names=[each.code.name for each in issued], reason="lost"
        )
        return list((await self.codes.RevokeCodes(request)).codes)

    async def right(self):
        request = code_service_pb2.GetOfflineRightRequest(owner=self.name)
        return (await self.codes.GetOfflineRight(request)).right

    async def balances(self):
        """Minor units online, offline, reserved, held."""
        return await self.ledger.balances()


class Terminal:
    """A terminal that writes whatever a test wants into its journal, and signs it."""

    def __init__(self, stack, vendor, terminal_id, key, scope):
        self.stack = stack
        self.vendor = vendor
        self.terminal_id = terminal_id
        self.key = key
        self.scope = scope
        self.name = names.terminal_name(vendor.user_id, terminal_id)
        self.site = names.site_name(vendor.user_id, UUID(int=7))
        self.sequence = 0
        self.previous = signed.GENESIS
        self.bundle = None
        self.sync = Caller(stack.first.channels, self.name, "TERMINAL").sync

    def at(self, replica):
        """The stubs of this terminal at another replica."""
        return Caller(replica.channels, self.name, "TERMINAL").sync

    def described(self, *, revoke_time=None, version=1):
        """As the user service describes it."""
        message = user_pb2.Terminal(
            name=self.name,
            display_name="Counter",
            site=self.site,
            scope=self.scope,
            public_key=self.key.public_key().public_bytes_raw(),
            state=user_pb2.Terminal.STATE_ENROLLED,
            version=version,
        )
        if revoke_time is not None:
            message.state = user_pb2.Terminal.STATE_REVOKED
            message.revoke_time.FromDatetime(revoke_time)
        return message

    async def fetch(self):
        """A new trust bundle, in force from now on."""
        request = terminal_sync_service_pb2.GetTrustBundleRequest()
        answer = await self.sync.GetTrustBundle(request)
        self.bundle = terminal_sync_service_pb2.TrustBundle.FromString(answer.bundle.content)
        return answer.bundle

    def entry(self, body, *, at=None, sequence=None, previous=None, **changes):
        """The next entry of the journal, signed; with `sequence` or `previous` given, the journal stays as it is."""
        usual = sequence is None and previous is None
        now = at or self.stack.clock()
        fields = {
            "version": 1,
            "terminal": self.name,
            "sequence": self.sequence + 1 if sequence is None else sequence,
            "previous_hash": self.previous if previous is None else previous,
            "record_time": timestamp(now),
            "server_time": self.bundle.server_time,
            "bundle_version": self.bundle.version,
        }
        made = signed.sign_entry(journal_pb2.Entry(**fields | body | changes), self.key)
        if usual:
            self.sequence += 1
            self.previous = signed.entry_hash(made.content)
        return made

    def sale(self, issued, minor_units=None, /, *, item_id=None, money=None, **place):
        """An entry in which a typed code was spent."""
        symbols = issued if isinstance(issued, str) else protocol.normalize(issued.symbols)
        units = issued.code.value.minor_units if minor_units is None else minor_units
        sale = journal_pb2.Sale(
            item_id=item_id or str(uuid7()),
            code=symbols,
            amount=money or inr(units),
            position=PLACE,
            reference="table 4",
        )
        return self.entry({"sale": sale}, **place)

    def voucher_sale(self, issued, device, minor_units=None, /, *, shown_at=None, **place):
        """An entry in which a voucher was spent; `shown_at` is the terminal the payer's device signed for."""
        units = issued.code.value.minor_units if minor_units is None else minor_units
        there = shown_at or self
        seconds = int(self.stack.clock().timestamp())
        spend = voucher.Spend(there.vendor.user_id, there.terminal_id, units, "INR", seconds)
        sale = journal_pb2.Sale(
            item_id=str(uuid7()),
            spend=journal_pb2.VoucherSpend(
                voucher=issued.voucher,
                sign_seconds=seconds,
                signature=voucher.sign_spend(issued.voucher, spend, device),
            ),
            amount=inr(units),
        )
        return self.entry({"sale": sale}, **place)

    async def submit(self, *entries, sync=None, **changes):
        """Upload entries; the answer."""
        fields = {"request_id": str(uuid4()), "entries": entries}
        request = terminal_sync_service_pb2.SubmitBatchRequest(**fields | changes)
        return await (sync or self.sync).SubmitBatch(request)

    async def get(self, batch):
        """A batch and its items as they stand now."""
        request = terminal_sync_service_pb2.GetBatchRequest(name=batch.name)
        return await self.sync.GetBatch(request)

    async def results(self, batch, *, seconds=20.0):
        """The items of a batch once each has a result, in the journal's order."""

        async def done():
            found = await self.get(batch)
            return found if found.batch.state == DONE else None

        return list((await eventually(done, seconds=seconds)).items)

    async def settle(self, *entries, **changes):
        """Upload entries; their results."""
        return await self.results((await self.submit(*entries, **changes)).batch)

    async def sell(self, issued, minor_units=None, /, **place):
        """Take a code and upload the sale; its result."""
        (item,) = await self.settle(self.sale(issued, minor_units, **place))
        return item


class Replica:
    """One running offline service."""

    def __init__(self, server, port, channels):
        self.server = server
        self.port = port
        self.channels = channels


class OfflineStack:
    """What an offline service needs, and the replicas of it that run.

    Attributes:
        bank: The payment service and its surroundings.
        line: The line to it.
        settings: Of replicas to come.
        engine: For a look at the database from outside.
        first: The first replica.
        admin: An operator, calling it.
        books_agree: Codes and reservations must agree in the end; False where a test makes them differ.
    """

    def __init__(self, bank, line, settings, engine, tls_for):
        self.bank = bank
        self.line = line
        self.settings = settings
        self.engine = engine
        self.clock = bank.clock
        self.redis = bank.redis
        self.user = bank.user
        self.fraud = bank.fraud
        self.first = None
        self.admin = None
        self.books_agree = True
        self.new_serial = lambda: secrets.randbits(32)
        self._tls_for = tls_for
        self._versions = itertools.count(2)

    @asynccontextmanager
    async def replica(self, **changes):
        """A replica, from its start to its stop; `changes` are to its settings."""
        server = OfflineServer(
            replace(self.settings, **changes),
            now=self.clock,
            new_serial=self._serial,
        )
        try:
            port = await server.start()
            async with AsyncExitStack() as stack:
                channels = {
                    caller: await stack.enter_async_context(
                        channel.connect(f"127.0.0.1:{port}", "offline", self._tls_for(caller))
                    )
                    for caller in ("gateway", "admin", "payment")
                }
                yield Replica(server, port, channels)
            # Background work ends only by a defect.
            assert [task for task in server.background if task.done()] == []
        finally:
            await server.stop()

    @asynccontextmanager
    async def process(self, directory):
        """A replica in a process of its own, by the real clock."""
        port, settings = process.free_port(), self.settings
        own = {
            "LISTEN": f"127.0.0.1:{port}",
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "USER_ADDRESS": settings.user_address,
            "PAYMENT_ADDRESS": settings.payment_address,
            "TLS_CERT_FILE": settings.tls.certificate_file,
            "TLS_KEY_FILE": settings.tls.key_file,
            "TLS_CA_FILE": settings.tls.ca_file,
            "KEK_FILE": settings.key_encryption_key_file,
            "CURRENCIES": ",".join(sorted(settings.terms.currencies)),
            "OFFLINE_SCOPES": ",".join(sorted(settings.terms.scopes)),
            "DRAIN_NOTICE_MS": 0,
        }
        variables = {f"{PREFIX}{name}": str(value) for name, value in own.items()}
        log = directory / f"offline-{port}.log"
        command = [sys.executable, "-P", "-m", "services.offline"]
        running = process.start(command, log=log, environment={**os.environ, **variables})
        try:
            async with channel.connect(
                f"127.0.0.1:{port}", "offline", self._tls_for("gateway")
            ) as connected:
                async with asyncio.timeout(30):
                    await connected.channel_ready()
                yield Replica(None, port, {"gateway": connected})
        finally:
            await asyncio.to_thread(process.stop, running, grace_seconds=10)
        assert running.returncode == 0, log.read_text()

    def _serial(self):
        return self.new_serial()

    async def a_payer(self, minor_units=2_000_00, *, role="USER"):
        """Somebody with so much in their offline balance."""
        ledger = await self.bank.an_account(vendor=role == "VENDOR")
        await self.bank.give(ledger, minor_units)
        if minor_units:
            await ledger.wallets.MoveBalance(to_offline(ledger, minor_units))
        return Payer(self.first, ledger)

    async def a_vendor(self, *, active=True):
        """A vendor's account at the payment service, that the user service knows."""
        vendor = await self.bank.a_vendor()
        self.describe(vendor, active=active)
        return vendor

    def describe(self, vendor, *, active=True, version=1):
        state = user_pb2.User.STATE_ACTIVE if active else user_pb2.User.STATE_SUSPENDED
        account = an_account(vendor.name, role=access_pb2.ROLE_VENDOR, state=state, version=version)
        self.user.knows(account)
        return account

    async def set_active(self, vendor, *, active):
        """Suspend or reinstate a vendor, here only: payment is not told."""
        account = self.describe(vendor, active=active, version=next(self._versions))
        changed = event_pb2.UserChanged(change=event_pb2.UserChanged.CHANGE_SUSPENDED, user=account)
        await publish(self.redis, an_event("user", vendor.name, user_changed=changed))
        vendors = tables.vendors
        await self.until(
            sa.select(vendors.c.vendor_id).where(
                vendors.c.vendor_id == vendor.user_id, vendors.c.active == int(active)
            )
        )

    async def a_terminal(self, vendor=None, *, scope="main", fetch=True):
        """A terminal with a trust bundle."""
        vendor = vendor or await self.a_vendor()
        terminal = Terminal(self, vendor, uuid4(), Ed25519PrivateKey.generate(), scope)
        self.user.terminals[terminal.name] = terminal.described()
        if fetch:
            await terminal.fetch()
        return terminal

    async def revoke_terminal(self, terminal, *, at):
        message = terminal.described(revoke_time=at, version=next(self._versions))
        self.user.terminals[terminal.name] = message
        changed = event_pb2.TerminalChanged(
            change=event_pb2.TerminalChanged.CHANGE_REVOKED, terminal=message
        )
        await publish(self.redis, an_event("user", terminal.name, terminal_changed=changed))
        found = tables.terminals
        await self.until(
            sa.select(found.c.terminal_id).where(
                found.c.terminal_id == terminal.terminal_id, found.c.revoke_time.is_not(None)
            )
        )

    async def until(self, query):
        """Wait until a query finds something, and answer the rows."""

        async def found():
            async with sql.reading(self.engine) as connection:
                return (await connection.execute(query)).all()

        return await eventually(found)

    async def rows(self, table):
        async with sql.reading(self.engine) as connection:
            return list(await connection.execute(sa.select(table)))

    async def events(self, *facts):
        """Every event on record with one of some facts, in order."""
        batches = [
            event_pb2.EventBatch.FromString(bytes(row.events))
            for row in sorted(await self.rows(tables.event_log))
        ]
        found = itertools.chain.from_iterable(batch.events for batch in batches)
        return [event for event in found if event.WhichOneof("fact") in facts]

    def caller(self, subject, role, replica=None):
        return Caller((replica or self.first).channels, subject, role)

    async def audited(self):
        """What the audit of both books finds broken."""
        found = await audit.check(
            self.engine, Backings(self.bank.engine), pause=lambda: asyncio.sleep(0.1)
        )
        assert sorted(found) == [5, 6, 9]
        return [finding.first_broken for finding in found.values() if not finding.holds]

    async def release(self):
        """Give back what is due now, as the first replica does by itself."""
        await self.first.server.upkeep.release()


@asynccontextmanager
async def offline_stack(tls_for, redis_url, database_url, directory, **changes):
    """An offline service and a real payment service. At the end the laws must hold, whatever happened.

    `changes` are to the offline service's settings.
    """
    async with AsyncExitStack() as stack:
        kek_file = directory / "kek"
        kek_file.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
        bank = await stack.enter_async_context(
            payment_stack(tls_for, redis_url, database_url("payment"))
        )
        line, address = await stack.enter_async_context(
            line_to(f"127.0.0.1:{bank.first.port}", tls_for)
        )
        engine = sql.create_engine(database_url("offline"))
        stack.push_async_callback(engine.dispose)
        # Tests wait for nothing that they did not ask for.
        stack.enter_context(patch.object(settling, "_POLL_SECONDS", 0.05))
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=engine.url.render_as_string(hide_password=False),
            redis_url=redis_url,
            user_address=bank.settings.user_address,
            payment_address=address,
            tls=tls_for("offline"),
            key_encryption_key_file=kek_file,
            terms=TERMS,
            sweep_ms=50,
            drain_notice_ms=0,
        )
        running = OfflineStack(bank, line, replace(settings, **changes), engine, tls_for)
        running.first = await stack.enter_async_context(running.replica())
        running.admin = running.caller(names.user_name(UUID(int=99)), "ADMIN")
        yield running
        assert bool(await running.audited()) is not running.books_agree
