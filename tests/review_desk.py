"""A running review desk: its surroundings, what happens around it, and the people who use it."""

from __future__ import annotations

import base64
import json
from contextlib import AsyncExitStack, asynccontextmanager

from uuid_utils import uuid4

from services import event_log, sql, streams
from services.admin import store
from services.admin.server import AdminServer
from services.admin.settings import Settings
from services.rpc import channel
from tallystick.access.v1 import access_pb2
from tallystick.admin.v1 import review_service_pb2 as pb
from tallystick.admin.v1 import review_service_pb2_grpc
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.user.v1 import user_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.fakes.backends import Backend
from tests.fakes.owners import Accounts, Holds
from tests.tokens import claims_of

APPROVE = pb.DecideCaseRequest.DECISION_APPROVE
REJECT = pb.DecideCaseRequest.DECISION_REJECT


def a_user(role=access_pb2.ROLE_USER):
    name = f"users/{uuid4()}"
    state = user_pb2.User.STATE_PENDING_APPROVAL
    return user_pb2.User(
        name=name, username="asha", display_name="Asha", role=role, state=state, version=1
    )


def a_flagged_payment(minor_units=7_500_00):
    payment = payment_pb2.Payment(
        name=f"payments/{uuid4()}",
        payer=f"users/{uuid4()}",
        vendor=f"users/{uuid4()}",
        state=payment_pb2.Payment.STATE_FLAGGED,
    )
    payment.amount.minor_units, payment.amount.currency_code = minor_units, "INR"
    payment.risk.decision = payment_pb2.Risk.DECISION_REVIEW
    payment.risk.reasons.append("AMOUNT_OVER_REVIEW_LIMIT")
    return payment


def registered(user):
    change = event_pb2.UserChanged.CHANGE_REGISTERED
    fact = event_pb2.UserChanged(change=change, user=user)
    return an_event("user", user.name, user_changed=fact)


def account_changed(user, change, state):
    after = user_pb2.User()
    after.CopyFrom(user)
    after.state, after.version = state, user.version + 1
    fact = event_pb2.UserChanged(change=change, user=after)
    return an_event("user", user.name, user_changed=fact)


def approved(user):
    changed = event_pb2.UserChanged
    return account_changed(user, changed.CHANGE_APPROVED, user_pb2.User.STATE_ACTIVE)


def flagged(payment):
    fact = event_pb2.PaymentFlagged(payment=payment)
    return an_event("payment", payment.name, payment_flagged=fact)


def succeeded(payment, *, review_reason=""):
    fact = event_pb2.PaymentSucceeded(risk=payment.risk, review_reason=review_reason)
    return an_event("payment", payment.name, payment_succeeded=fact)


def failed(payment, *, review_reason=""):
    reason = payment_pb2.Payment.FAILURE_REASON_REVIEW_REJECTED
    fact = event_pb2.PaymentFailed(reason=reason, risk=payment.risk, review_reason=review_reason)
    return an_event("payment", payment.name, payment_failed=fact)


def assessed(payment, decision):
    after = payment_pb2.Payment()
    after.CopyFrom(payment)
    after.state, after.risk.decision = payment_pb2.Payment.STATE_SUCCESS, decision
    fact = event_pb2.PaymentAssessed(payment=after)
    return an_event("payment", payment.name, payment_assessed=fact)


class Person:
    """Somebody whose calls come through the gateway."""

    def __init__(self, *roles):
        self.name = f"users/{uuid4()}"
        claims = claims_of(*roles, subject=self.name)
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        self.metadata = (("x-jwt-payload", payload),)


class ReviewDesk:
    """An admin service's surroundings; `running` starts a replica of it.

    Attributes:
        holds: What the payment service does.
        accounts: What the user service does.
    """

    def __init__(self, settings, payment, user, redis, tls_for):
        self.settings = settings
        self.payment = payment
        self.user = user
        self.redis = redis
        self.tls_for = tls_for
        self.holds, self.accounts = Holds(), Accounts()
        payment.behaviour[Holds.PATH] = self.holds.resolve
        user.behaviour[Accounts.APPROVE_PATH] = self.accounts.approve
        user.behaviour[Accounts.REJECT_PATH] = self.accounts.reject
        self.asha, self.bina = Person("ADMIN"), Person("ADMIN")
        self.port = 0
        self.stub = None

    @asynccontextmanager
    async def running(self):
        """A replica of the service, from its start to its stop."""
        server = AdminServer(self.settings)
        self.port = await server.start()
        try:
            async with self.calling("gateway") as stub:
                self.stub = stub
                yield self
        finally:
            await server.stop()

    @asynccontextmanager
    async def calling(self, service):
        address = f"127.0.0.1:{self.port}"
        async with channel.connect(address, "admin", self.tls_for(service)) as calls:
            yield review_service_pb2_grpc.ReviewServiceStub(calls)

    async def happen(self, *events):
        """Let events happen, and the world with them: what waits is known to its owner."""
        for event in events:
            fact = event.WhichOneof("fact")
            if fact == "payment_flagged":
                state = payment_pb2.Payment.STATE_FLAGGED
                self.holds.states.setdefault(event.subject, state)
            if fact == "user_changed":
                self.accounts.states.setdefault(event.subject, event.user_changed.user.state)
        await publish(self.redis, *events)

    async def list(self, **fields):
        request = pb.ListCasesRequest(**fields)
        return list((await self.stub.ListCases(request, metadata=self.asha.metadata)).cases)

    async def case_about(self, subject, *states):
        """The case about a user or payment, once it is there and in one of some states."""

        async def found():
            for case in await self.list(page_size=200):
                about = case.user.name or case.payment.name
                if about == subject.name and (not states or case.state in states):
                    return case
            return None

        return await eventually(found)

    async def open_case(self, subject):
        """Let something wait for a person; answers its case."""
        is_user = isinstance(subject, user_pb2.User)
        await self.happen(registered(subject) if is_user else flagged(subject))
        return await self.case_about(subject)

    def get(self, case):
        request = pb.GetCaseRequest(name=case.name)
        return self.stub.GetCase(request, metadata=self.asha.metadata)

    def decide(self, case, decision=APPROVE, *, by=None, reason="looked at it"):
        """The call; await it for the answer."""
        request = pb.DecideCaseRequest(name=case.name, decision=decision, reason=reason)
        return self.stub.DecideCase(request, metadata=(by or self.asha).metadata)

    def watch(self, cursor=""):
        request = pb.WatchCasesRequest(cursor=cursor)
        return self.stub.WatchCases(request, metadata=self.asha.metadata)

    async def all_read(self):
        """Wait until every event so far has been taken and acknowledged."""

        async def done():
            for source in ("user", "payment"):
                key = event_log.stream_name(source)
                length = await self.redis.xlen(key)
                groups = await self.redis.xinfo_groups(key) if length else []
                ours = [group for group in groups if group["name"] == b"admin"]
                newest = await streams.latest(self.redis, source)
                if length and not (
                    ours
                    and ours[0]["pending"] == 0
                    and ours[0]["last-delivered-id"].decode() == newest
                ):
                    return False
            return True

        await eventually(done)

    async def rows(self):
        """How many rows the cases table holds, also of cases that never opened."""
        engine = sql.create_engine(self.settings.database_url)
        try:
            async with engine.begin() as connection:
                return len((await connection.execute(store.cases.select())).all())
        finally:
            await engine.dispose()

    async def told(self, case):
        """What the event log tells of a case, in order: (fact, outcome, actor)."""
        engine = sql.create_engine(self.settings.database_url)
        try:
            async with engine.begin() as connection:
                query = store.event_log.select().order_by(store.event_log.c.log_id)
                rows = (await connection.execute(query)).all()
        finally:
            await engine.dispose()
        batches = [event_pb2.EventBatch.FromString(bytes(row.events)) for row in rows]
        return [
            (event.WhichOneof("fact"), event.case_closed.outcome, event.actor)
            for batch in batches
            for event in batch.events
            if event.subject == case.name
        ]


@asynccontextmanager
async def around_a_review_desk(tls_for, valkey_url, database_url):
    """Everything an admin service needs, without the service."""
    async with AsyncExitStack() as stack:
        payment, user = Backend("payment", tls_for("payment")), Backend("user", tls_for("user"))
        for backend in (payment, user):
            await backend.start()
            stack.push_async_callback(backend.stop)
        redis = streams.connect(valkey_url)
        stack.push_async_callback(redis.aclose)
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=database_url("admin"),
            redis_url=valkey_url,
            user_address=user.address,
            payment_address=payment.address,
            tls=tls_for("admin"),
            sweep_ms=100,
            drain_notice_ms=0,
            log_level="INFO",
        )
        yield ReviewDesk(settings, payment, user, redis, tls_for)
