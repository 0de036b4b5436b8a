"""FraudService over mutual TLS, with a real Valkey, SQLite and MariaDB."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from uuid_utils import uuid4

from services import sql, streams
from services.fraud import store
from services.fraud.account_feed import CURSOR
from services.fraud.domain.assessment import Code, Limits
from services.fraud.server import FraudServer
from services.fraud.settings import Settings
from services.rpc import channel
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import fraud_service_pb2_grpc
from tallystick.user.v1 import party_service_pb2, user_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.fakes.parties import serving_parties
from tests.schema import differences
from tests.user_service import reason_of

ALLOW = pb.Assessment.DECISION_ALLOW
REVIEW = pb.Assessment.DECISION_REVIEW
DECLINE = pb.Assessment.DECISION_DECLINE

BANGALORE = (12.9716, 77.5946)
MYSORE = (12.2958, 76.6394)


def a_vendor(*places, version=1, closed=(), name=None):
    """A vendor with sites at some places, as the user service would describe it."""
    name = name or f"users/{uuid4()}"
    party = party_service_pb2.Party()
    party.user.name, party.user.version = name, version
    party.user.role = access_pb2.ROLE_VENDOR
    party.user.state = user_pb2.User.STATE_ACTIVE
    for number, (latitude, longitude) in enumerate(places):
        site = party.sites.add(name=f"{name}/sites/{uuid4()}", display_name=f"Shop {number}")
        site.position.latitude, site.position.longitude = latitude, longitude
        site.open = number not in closed
    return party


def news_of(party, change=event_pb2.UserChanged.CHANGE_SITES):
    fact = event_pb2.UserChanged(change=change, user=party.user, sites=party.sites)
    return an_event("user", party.user.name, user_changed=fact)


def a_payment(vendor, at=BANGALORE, *, minor_units=100_00, site=""):
    facts = pb.PaymentFacts(
        payment=f"payments/{uuid4()}",
        payer=f"users/{uuid4()}",
        vendor=vendor,
        site=site,
    )
    facts.amount.minor_units, facts.amount.currency_code = minor_units, "INR"
    if at is not None:
        facts.position.latitude, facts.position.longitude = at
    return facts


class Fraud:
    """A running fraud service, its surroundings, and a client that payment would use."""

    def __init__(self, settings, parties, redis, tls_for):
        self.settings = settings
        self.parties = parties
        self.redis = redis
        self._tls_for = tls_for
        self.server = None
        self.stub = None

    @asynccontextmanager
    async def running(self):
        """A replica, from its start to its stop."""
        server = FraudServer(self.settings)
        port = await server.start()
        try:
            async with self.calling(port, "payment") as stub:
                self.server, self.stub = server, stub
                yield stub
        finally:
            await server.stop()

    @asynccontextmanager
    async def calling(self, port, caller):
        async with channel.connect(f"127.0.0.1:{port}", "fraud", self._tls_for(caller)) as calls:
            self.port = port
            yield fraud_service_pb2_grpc.FraudServiceStub(calls)

    async def assess(self, *payments):
        answer = await self.stub.AssessPayments(
            pb.AssessPaymentsRequest(payments=payments), timeout=5
        )
        assert [found.payment for found in answer.assessments] == [
            each.payment for each in payments
        ]
        return list(answer.assessments)

    async def knows(self, *parties):
        """Publish vendors and wait until the index has them."""
        await publish(self.redis, *(news_of(party) for party in parties))
        index = self.server._index
        await eventually(
            lambda: all(
                index._vendors.get(party.user.name) is not None
                and index._vendors[party.user.name].version >= party.user.version
                for party in parties
            )
        )


@pytest.fixture
async def around(tls_for, valkey_url, database_url):
    """A fraud service's surroundings, on either database, without the service."""
    async with AsyncExitStack() as stack:
        parties, address = await stack.enter_async_context(serving_parties(tls_for("user")))
        redis = streams.connect(valkey_url)
        stack.push_async_callback(redis.aclose)
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=database_url("fraud"),
            redis_url=valkey_url,
            user_address=address,
            tls=tls_for("fraud"),
            limits=Limits(),
            drain_notice_ms=0,
            log_level="INFO",
            # A test machine may be busy with other things.
            history_seconds=5.0,
        )
        yield Fraud(settings, parties, redis, tls_for)


@pytest.fixture
async def fraud(around):
    async with around.running():
        yield around


async def test_a_payment_is_measured_from_the_site_the_vendor_registered(fraud):
    vendor = a_vendor(BANGALORE)
    await fraud.knows(vendor)

    near, far = await fraud.assess(
        a_payment(vendor.user.name, BANGALORE), a_payment(vendor.user.name, MYSORE)
    )

    assert (near.decision, near.score, list(near.signals)) == (ALLOW, 0, [])
    assert far.decision == REVIEW
    assert [signal.code for signal in far.signals] == [pb.Signal.CODE_DISTANCE_OVER_LIMIT]
    assert far.signals[0].detail == "128.0 km from the vendor's site; the limit is 20 km"


async def test_every_decision_comes_back_in_the_order_asked(fraud):
    vendor = a_vendor(BANGALORE)
    await fraud.knows(vendor)
    name = vendor.user.name

    found = await fraud.assess(
        a_payment(name, minor_units=100_000_01),
        a_payment(name),
        a_payment(name, minor_units=5_000_00),
        a_payment(name, None),
        a_payment(name, None, minor_units=500_00),
    )

    assert [each.decision for each in found] == [DECLINE, ALLOW, REVIEW, ALLOW, REVIEW]
    assert found[3].signals[0].code == pb.Signal.CODE_POSITION_MISSING
    assert [each.score for each in found] == [100, 0, 50, 10, 50]


async def test_a_payment_that_breaks_the_contract_is_reviewed_and_its_neighbours_are_not(fraud):
    vendor = a_vendor(BANGALORE)
    await fraud.knows(vendor)
    nowhere, nobody, free = (a_payment(vendor.user.name) for _ in range(3))
    nowhere.position.latitude = math.nan
    nobody.vendor = "users/nobody"
    free.ClearField("amount")

    found = await fraud.assess(
        a_payment(vendor.user.name), nowhere, nobody, free, pb.PaymentFacts()
    )

    assert [each.decision for each in found] == [ALLOW, REVIEW, REVIEW, REVIEW, REVIEW]
    assert [each.signals[0].code for each in found[1:]] == [pb.Signal.CODE_FACTS_INVALID] * 4
    assert [each.signals[0].detail.partition(":")[0] for each in found[1:4]] == [
        "position.latitude",
        "vendor",
        "amount",
    ]
    assert fraud.parties.asked == []


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_batch_of_no_or_too_many_payments_is_refused(fraud):
    for payments in ([], [a_payment(f"users/{uuid4()}")] * 1001):
        call = fraud.stub.AssessPayments(pb.AssessPaymentsRequest(payments=payments))

        assert await reason_of(call) == "FIELDS_INVALID"


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    ("caller", "reason"),
    [
        ("gateway", "UNAUTHENTICATED"),
        ("admin", "CALLER_NOT_ALLOWED"),
        ("user", "CALLER_NOT_ALLOWED"),
    ],
)
async def test_only_payment_and_offline_may_ask(fraud, caller, reason):
    async with fraud.calling(fraud.port, caller) as stub:
        request = pb.AssessPaymentsRequest(payments=[a_payment(f"users/{uuid4()}")])

        assert await reason_of(stub.AssessPayments(request)) == reason


async def test_a_vendor_whose_event_has_not_arrived_is_asked_for_once(fraud):
    vendor = a_vendor(BANGALORE)
    fraud.parties.parties[vendor.user.name] = vendor

    (first,) = await fraud.assess(a_payment(vendor.user.name, MYSORE))
    (second,) = await fraud.assess(a_payment(vendor.user.name))

    assert [first.decision, second.decision] == [REVIEW, ALLOW]
    assert fraud.parties.asked == [[vendor.user.name]]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_whole_batch_asks_for_its_unknown_vendors_together(fraud):
    vendors = [a_vendor(BANGALORE) for _ in range(3)]
    fraud.parties.parties.update({vendor.user.name: vendor for vendor in vendors})

    await fraud.assess(*(a_payment(vendor.user.name) for vendor in vendors * 2))

    assert fraud.parties.asked == [sorted(vendor.user.name for vendor in vendors)]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_vendor_nobody_knows_is_not_asked_for_with_every_payment(fraud):
    name = f"users/{uuid4()}"

    found = [*await fraud.assess(a_payment(name)), *await fraud.assess(a_payment(name))]

    assert [each.signals[0].code for each in found] == [pb.Signal.CODE_SITE_UNKNOWN] * 2
    assert fraud.parties.asked == [[name]]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_an_event_about_a_vendor_counts_at_once_although_nobody_knew_it_before(fraud):
    vendor = a_vendor(BANGALORE)
    await fraud.assess(a_payment(vendor.user.name))
    await fraud.knows(vendor)

    (found,) = await fraud.assess(a_payment(vendor.user.name))

    assert list(found.signals) == []


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_payer_is_no_vendor_although_the_user_service_knows_them(fraud):
    payer = a_vendor()
    payer.user.role = access_pb2.ROLE_USER
    fraud.parties.parties[payer.user.name] = payer

    (found,) = await fraud.assess(a_payment(payer.user.name))

    assert found.signals[0].code == pb.Signal.CODE_SITE_UNKNOWN


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_slow_user_service_does_not_hold_a_batch_up(fraud):
    fraud.parties.delay_seconds = 30.0
    clock = asyncio.get_running_loop().time
    await fraud.assess(a_payment(f"users/{uuid4()}"))
    started = clock()

    found = await fraud.assess(
        *(a_payment(f"users/{uuid4()}", minor_units=amount) for amount in (499_99, 500_00))
    )

    # Not even the deadline: after the first time it is not asked for a while.
    assert clock() - started < 0.07
    assert [each.decision for each in found] == [ALLOW, REVIEW]


async def test_late_news_does_not_undo_newer(fraud):
    vendor = a_vendor(BANGALORE, MYSORE, version=5)
    stale = a_vendor(MYSORE, version=4, name=vendor.user.name)
    other = a_vendor(BANGALORE)

    await fraud.knows(vendor)
    await publish(fraud.redis, news_of(stale))
    await fraud.knows(other)  # so the stale news has been read

    (found,) = await fraud.assess(a_payment(vendor.user.name, BANGALORE))
    assert found.decision == ALLOW


async def test_a_closed_site_stops_counting(fraud):
    vendor = a_vendor(BANGALORE, MYSORE, version=1)
    await fraud.knows(vendor)
    vendor.user.version, vendor.sites[1].open = 2, False
    await fraud.knows(vendor)

    (found,) = await fraud.assess(a_payment(vendor.user.name, MYSORE))

    assert [signal.code for signal in found.signals] == [pb.Signal.CODE_DISTANCE_OVER_LIMIT]


async def test_a_restarted_service_knows_what_it_knew(around):
    told, asked = a_vendor(BANGALORE, MYSORE, closed=[1], version=3), a_vendor(BANGALORE)
    around.parties.parties[asked.user.name] = asked
    async with around.running():
        await around.knows(told)
        await around.assess(a_payment(asked.user.name))
        before = dict(around.server._index._vendors)
        await eventually(lambda: saved_vendors(around))

    around.parties.parties.clear()
    await around.redis.delete("events:user")  # nothing to read again
    async with around.running():
        assert around.server._index._vendors == before
        found = await around.assess(*(a_payment(p.user.name) for p in (told, asked)))

    assert [each.decision for each in found] == [ALLOW, ALLOW]


async def saved_vendors(fraud):
    """Whether the table holds what the index holds."""
    engine = sql.create_engine(fraud.settings.database_url)
    try:
        async with engine.begin() as connection:
            found = await store.read_vendors(connection)
    finally:
        await engine.dispose()
    return found == fraud.server._index._vendors


async def test_what_was_published_while_the_service_was_away_is_read_when_it_returns(around):
    vendor = a_vendor(BANGALORE)
    async with around.running():
        await around.knows(vendor)
        await eventually(lambda: saved_vendors(around))
    vendor.user.version = 2
    vendor.sites[0].position.latitude, vendor.sites[0].position.longitude = MYSORE
    await publish(around.redis, news_of(vendor))

    async with around.running():
        await eventually(lambda: around.server._index._vendors[vendor.user.name].version == 2)
        (found,) = await around.assess(a_payment(vendor.user.name, MYSORE))

    assert found.decision == ALLOW
    assert around.parties.asked == []


async def test_when_the_stream_lost_events_every_known_vendor_is_asked_for_anew(around):
    vendor = a_vendor(BANGALORE)
    async with around.running():
        await around.knows(vendor)
        await eventually(lambda: saved_vendors(around))
    vendor.user.version = 2
    vendor.sites[0].position.latitude, vendor.sites[0].position.longitude = MYSORE
    around.parties.parties[vendor.user.name] = vendor
    await publish(around.redis, news_of(vendor), news_of(a_vendor(MYSORE)))
    await around.redis.xtrim("events:user", maxlen=1, approximate=False)

    async with around.running():
        await eventually(lambda: around.server._index._vendors[vendor.user.name].version == 2)

    assert around.parties.asked == [[vendor.user.name]]


async def test_two_replicas_share_a_table_and_each_sees_every_event(around):
    async with around.running():
        first = around.server
        async with around.running():
            vendors = [a_vendor(BANGALORE, version=version) for version in (1, 2, 3)]
            await around.knows(*vendors)
            await eventually(lambda: len(first._index) == 3)
            await asyncio.gather(*(server._feed.save_now() for server in (first, around.server)))
            await eventually(lambda: saved_vendors(around))


async def test_a_lagging_replica_turns_back_neither_the_table_nor_the_cursor(around):
    name = f"users/{uuid4()}"
    newer = a_vendor(BANGALORE, MYSORE, version=7, name=name)
    older = a_vendor(MYSORE, version=6, name=name)
    async with around.running():
        ahead = around.server
        await around.knows(newer)
        await ahead._feed.save_now()
        cursor = ahead._feed._cursor
    async with around.running():
        behind = around.server
        behind._index._vendors.clear()
        await around.knows(older)
        behind._feed._cursor = "1-1"
        await behind._feed.save_now()

    engine = sql.create_engine(around.settings.database_url)
    async with engine.begin() as connection:
        found = await store.read_vendors(connection)
        position = await store.read_cursor(connection, CURSOR)
    await engine.dispose()
    assert found[name].version == 7
    assert streams.is_behind(position, cursor) or position == cursor


def test_every_code_of_the_checks_is_in_the_contract_and_the_other_way_round():
    in_contract = {
        name.removeprefix("CODE_") for name in pb.Signal.Code.DESCRIPTOR.values_by_name
    } - {"UNSPECIFIED"}

    assert {code.value for code in Code} == in_contract


async def test_the_migrations_make_the_tables_the_store_uses(database_url):
    assert await differences(database_url("fraud"), store.metadata) == []
