"""A running payment service, its surroundings, the people who call it, and what it answers them."""

from __future__ import annotations

import base64
import functools
import itertools
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import grpc
import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from uuid_utils import UUID, uuid4, uuid7

from services import names, sql, streams
from services.money import Money
from services.payment import audit, events, follow_up, store
from services.payment.domain.book import Policy
from services.payment.domain.commands import Request as Once
from services.payment.domain.ledger import Bucket, Purpose, WalletKey
from services.payment.domain.wallet_commands import MoveFunds
from services.payment.server import PaymentServer
from services.payment.settings import Settings
from services.rpc import channel
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import (
    payment_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
    settlement_service_pb2,
    settlement_service_pb2_grpc,
    wallet_service_pb2,
    wallet_service_pb2_grpc,
)
from tallystick.type.v1 import money_pb2
from tallystick.user.v1 import user_pb2
from tests.fakes.fraud import serving_fraud
from tests.fakes.user import an_account, serving_user

PENDING = payment_pb2.Payment.STATE_PENDING
PROCESSING = payment_pb2.Payment.STATE_PROCESSING
SUCCESS = payment_pb2.Payment.STATE_SUCCESS
FAILED = payment_pb2.Payment.STATE_FAILED
FLAGGED = payment_pb2.Payment.STATE_FLAGGED

CURRENCIES = frozenset({"INR", "KES"})


class Clock:
    """The real time, but for what it was moved by."""

    def __init__(self):
        self._moved = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self._moved

    def advance(self, span):
        self._moved += span


def inr(minor_units):
    return money_pb2.Money(minor_units=minor_units, currency_code="INR")


def a_payment(vendor, minor_units=1_00, /, **changes):
    """A request to pay a vendor, each with an id of its own."""
    fields = {"request_id": str(uuid4()), "vendor": vendor.name, "amount": inr(minor_units)}
    return payment_service_pb2.CreatePaymentRequest(**fields | changes)


def a_refund(payment, minor_units=1_00, /, **changes):
    fields = {"request_id": str(uuid4()), "name": payment.name, "amount": inr(minor_units)}
    return payment_service_pb2.RefundPaymentRequest(**fields | changes)


def a_top_up(person, minor_units=1_00, /, **changes):
    fields = {"request_id": str(uuid4()), "wallet": person.wallet_name, "amount": inr(minor_units)}
    return wallet_service_pb2.TopUpRequest(**{"reference": "receipt 17"} | fields | changes)


def a_payout(person, minor_units=1_00, /, **changes):
    fields = {"request_id": str(uuid4()), "wallet": person.wallet_name, "amount": inr(minor_units)}
    return wallet_service_pb2.PayoutRequest(**{"reference": "IBAN 17"} | fields | changes)


def to_offline(person, minor_units=1_00, /, **changes):
    fields = {"request_id": str(uuid4()), "wallet": person.wallet_name, "amount": inr(minor_units)}
    direction = wallet_service_pb2.MoveBalanceRequest.DIRECTION_TO_OFFLINE
    return wallet_service_pb2.MoveBalanceRequest(**{"direction": direction} | fields | changes)


def to_online(person, minor_units=1_00, /, **changes):
    direction = wallet_service_pb2.MoveBalanceRequest.DIRECTION_TO_ONLINE
    return to_offline(person, minor_units, **{"direction": direction} | changes)


def a_decision(payment, /, *, approve=True, **changes):
    decisions = settlement_service_pb2.ResolveHoldRequest
    fields = {
        "request_id": str(uuid4()),
        "payment": payment.name,
        "decision": decisions.DECISION_APPROVE if approve else decisions.DECISION_REJECT,
        "actor": f"users/{UUID(int=99)}",
        "reason": "spoke to the payer",
    }
    return settlement_service_pb2.ResolveHoldRequest(**fields | changes)


@dataclass(frozen=True)
class Refused:
    """A refusal as it arrives."""

    code: grpc.StatusCode
    domain: str
    reason: str
    message: str
    metadata: dict
    retry_after: timedelta | None
    fields: tuple


def as_refused(error):
    """What a failed call says; it must hold exactly one ErrorInfo."""
    status = rpc_status.from_call(error)
    found = {"ErrorInfo": [], "RetryInfo": [], "BadRequest": []}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        found[type(detail).__name__].append(detail)
    (info,) = found["ErrorInfo"]
    assert status.code == error.code().value[0]
    return Refused(
        code=error.code(),
        domain=info.domain,
        reason=info.reason,
        message=status.message,
        metadata=dict(info.metadata),
        retry_after=next((each.retry_delay.ToTimedelta() for each in found["RetryInfo"]), None),
        fields=tuple(each.field for bad in found["BadRequest"] for each in bad.field_violations),
    )


async def refused(call):
    """The refusal a call ends with. That it ends with none fails the test."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return as_refused(raised.value)


class Calls:
    """A stub whose every call carries the same metadata and a deadline."""

    def __init__(self, stub, metadata):
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, rpc):
        return functools.partial(getattr(self._stub, rpc), metadata=self._metadata, timeout=20)


class Person:
    """Somebody who calls through the gateway, with a token that says who they are."""

    def __init__(self, channels, role, user_id=None):
        self.user_id = user_id or uuid4()
        self.role = role
        self.name = names.user_name(self.user_id)
        self.wallet_name = names.wallet_name(self.user_id, "INR")
        claims = {"sub": self.name, "roles": [role], "iat_us": sql.micros(datetime.now(UTC))}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        self.metadata = (("x-jwt-payload", payload),)
        self.channels = channels
        self.payments, self.wallets, self.settlements = _stubs(channels["gateway"], self.metadata)

    def at(self, replica):
        """The same person, calling another replica."""
        return Person(replica.channels, self.role, self.user_id)

    async def pay(self, vendor, minor_units=1_00, /, **changes):
        request = a_payment(vendor, minor_units, **changes)
        return (await self.payments.CreatePayment(request)).payment

    async def get(self, payment):
        request = payment_service_pb2.GetPaymentRequest(name=payment.name)
        return (await self.payments.GetPayment(request)).payment

    async def wallet(self):
        request = wallet_service_pb2.GetWalletRequest(name=self.wallet_name)
        return (await self.wallets.GetWallet(request)).wallet

    async def balances(self):
        """Minor units online, offline, reserved, held."""
        wallet = await self.wallet()
        accounts = (wallet.online, wallet.offline, wallet.reserved, wallet.held)
        return tuple(account.minor_units for account in accounts)

    async def online(self):
        return (await self.balances())[0]


def _stubs(calls, metadata=()):
    return (
        Calls(payment_service_pb2_grpc.PaymentServiceStub(calls), metadata),
        Calls(wallet_service_pb2_grpc.WalletServiceStub(calls), metadata),
        Calls(settlement_service_pb2_grpc.SettlementServiceStub(calls), metadata),
    )


class Service:
    """Another service, calling directly."""

    def __init__(self, calls):
        self.payments, self.wallets, self.settlements = _stubs(calls)


class Replica:
    """One running payment service."""

    def __init__(self, server, port, channels):
        self.server = server
        self.port = port
        self.channels = channels
        self.group = server.group
        self.reviews = self.service("admin")
        self.codes = self.service("offline")

    def service(self, name):
        """A service calling on its own behalf: `admin`, `fraud`, `offline`, or the gateway with no token."""
        return Service(self.channels[name])


class PaymentStack:
    """What a payment service needs, and the replicas of it that run.

    Attributes:
        settings: Of replicas to come.
        clock: Theirs.
        fraud: The fraud service's stand-in.
        user: The user service's stand-in.
        redis: The real one.
        engine: For a look at the database from outside.
        first: The first replica.
        admin: An operator, calling it.
    """

    def __init__(self, settings, *, fraud, user, redis, engine, tls_for):
        self.settings = settings
        self.clock = Clock()
        self.fraud = fraud
        self.user = user
        self.redis = redis
        self.engine = engine
        self.first = None
        self.admin = None
        self._tls_for = tls_for

    @asynccontextmanager
    async def replica(self, *, pace_seconds=0.0, **changes):
        """A replica, from its start to its stop; `changes` are to its settings."""
        settings = replace(self.settings, **changes)
        server = PaymentServer(settings, now=self.clock, pace=lambda: pace_seconds)
        try:
            port = await server.start()
            async with AsyncExitStack() as stack:
                channels = {
                    caller: await stack.enter_async_context(
                        channel.connect(f"127.0.0.1:{port}", "payment", self._tls_for(caller))
                    )
                    for caller in ("gateway", "admin", "fraud", "offline")
                }
                yield Replica(server, port, channels)
            # Background work ends only by a defect.
            assert [task for task in server.background if task.done()] == []
        finally:
            await server.stop()

    async def an_account(self, *, vendor=False, active=True, version=1):
        """Somebody whose wallets exist, empty."""
        person = Person(self.first.channels, "VENDOR" if vendor else "USER")
        await self.knows(person, active=active, version=version)
        return person

    async def knows(self, person, *, active=True, version=1):
        """Tell the ledger of an account, as an event of the user service does."""
        account = an_account(
            person.name,
            role=access_pb2.Role.Value(f"ROLE_{person.role}"),
            state=user_pb2.User.STATE_ACTIVE if active else user_pb2.User.STATE_SUSPENDED,
            version=version,
        )
        await self.first.group.submit(events.set_owner(account, CURRENCIES))

    async def a_payer(self, minor_units=1_000_00):
        person = await self.an_account()
        await self.give(person, minor_units)
        return person

    async def a_vendor(self, minor_units=0):
        person = await self.an_account(vendor=True)
        await self.give(person, minor_units)
        return person

    async def give(self, person, minor_units):
        """Put money into a wallet, more than one top-up may where asked to."""
        if not minor_units:
            return
        key = WalletKey(person.user_id, "INR")
        money = Money(minor_units, "INR")
        once = Once(uuid4().bytes + uuid4().bytes, bytes(32), str(uuid4()))
        await self.first.group.submit(
            MoveFunds(once, uuid7(), key, Purpose.TOP_UP, None, Bucket.ONLINE, money, "", "nobody")
        )

    async def rows(self, table):
        async with sql.reading(self.engine) as connection:
            return [tuple(row) for row in await connection.execute(sa.select(table))]

    async def records(self):
        """Everything on record, but for which events were relayed."""
        found = {
            table.name: Counter(await self.rows(table)) for table in store.metadata.tables.values()
        }
        found["event_log"] = Counter(row[:2] for row in await self.rows(store.event_log))
        return found

    @asynccontextmanager
    async def nothing_changes(self):
        """What happens in the block leaves no trace in the database."""
        before = await self.records()
        yield
        assert await self.records() == before

    async def events(self):
        """Every event on record, in order."""
        batches = [
            event_pb2.EventBatch.FromString(bytes(row[1]))
            for row in sorted(await self.rows(store.event_log))
        ]
        return list(itertools.chain.from_iterable(batch.events for batch in batches))

    async def stumbles_over(self, reference):
        """No transfer with this reference can be written from now on: a defect in the making."""
        wrong = f"NEW.reference = '{reference}'"
        if self.engine.dialect.name == "sqlite":
            body = f"WHEN {wrong} BEGIN SELECT RAISE(ABORT, 'stumbled'); END"
        else:
            body = f"IF {wrong} THEN SIGNAL SQLSTATE '45000'; END IF"
        await self._execute(
            f"CREATE TRIGGER stumble BEFORE INSERT ON transfers FOR EACH ROW {body}"
        )

    async def stumbles_no_more(self):
        await self._execute("DROP TRIGGER stumble")

    async def _execute(self, statement):
        async with self.engine.begin() as connection:
            await connection.execute(sa.text(statement))

    async def relayed(self):
        """Every event on record is on its stream."""
        return all(row[2] for row in await self.rows(store.event_log))

    async def laws_hold(self):
        """The ledger's laws, checked from the rows."""
        findings = await audit.check(self.engine)
        assert [found.first_broken for found in findings.values() if not found.holds] == []


@asynccontextmanager
async def payment_stack(tls_for, redis_url, database_url, **changes):
    """A payment service and its surroundings. At the end the laws must hold, whatever happened.

    `changes` are to its settings.
    """
    async with AsyncExitStack() as stack:
        fraud, fraud_address = await stack.enter_async_context(serving_fraud(tls_for("fraud")))
        user, user_address = await stack.enter_async_context(serving_user(tls_for("user")))
        redis = streams.connect(redis_url)
        stack.push_async_callback(redis.aclose)
        engine = sql.create_engine(database_url)
        stack.push_async_callback(engine.dispose)
        # What is left behind is looked for every second; tests that do one thing after the other would spend most of
        # their time waiting.
        stack.enter_context(patch.object(follow_up, "_TURN_SECONDS", 0.05))
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=database_url,
            redis_url=redis_url,
            user_address=user_address,
            fraud_address=fraud_address,
            tls=tls_for("payment"),
            policy=Policy(CURRENCIES),
            group_size_max=256,
            queue_size_max=2_000,
            # Wide, so that a busy machine does not put payments into degraded mode by accident.
            fraud_budget_ms=5_000,
            drain_notice_ms=0,
            log_level="INFO",
        )
        running = PaymentStack(
            replace(settings, **changes),
            fraud=fraud,
            user=user,
            redis=redis,
            engine=engine,
            tls_for=tls_for,
        )
        running.first = await stack.enter_async_context(running.replica())
        running.admin = Person(running.first.channels, "ADMIN")
        yield running
        await running.laws_hold()
