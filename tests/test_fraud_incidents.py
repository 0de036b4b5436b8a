"""Guessed codes and codes spent twice: out of the offline service's events, counted once, faded, and held against."""

from __future__ import annotations

import math

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import uuid4

from services import streams
from services.fraud import events
from services.fraud.features.incidents import NO_INCIDENTS, Incident, Incidents, Kind
from services.fraud.features.observation import Observation
from services.fraud.features.store import FeatureStore
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tallystick.offline.v1 import offline_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.test_fraud_engine import engine, surroundings
from tests.test_fraud_service import ALLOW, BANGALORE, REVIEW, a_payment

__all__ = ["engine", "surroundings"]

DAY = 86_400.0
T0 = 1_800_000_000.0
SHOP, STALL, ANNA = (f"users/{uuid4()}" for _ in range(3))


def a_terminal(vendor):
    return f"{vendor}/terminals/{uuid4()}"


def wrong_codes(vendor, *counts, at=T0):
    fact = event_pb2.WrongCodesEntered(terminal=a_terminal(vendor))
    for count in counts:
        fact.entered.add(count=count).time.FromSeconds(int(at))
    return an_event("offline", fact.terminal, wrong_codes_entered=fact)


def double_spend(first, second, owner=ANNA, at=T0):
    found = offline_pb2.DoubleSpend(code=f"codes/{uuid4()}", owner=owner)
    found.first.terminal, found.second.terminal = a_terminal(first), a_terminal(second)
    # However it was dated.
    found.second.spend_time.FromSeconds(1)
    found.find_time.FromSeconds(int(at))
    fact = event_pb2.DoubleSpendFound(double_spend=found)
    return an_event("offline", found.code, double_spend_found=fact)


def seen(vendor=SHOP, payer=ANNA, at=T0):
    return Observation(f"payments/{uuid4()}", payer, vendor, 1, at)


@pytest.fixture
async def store(valkey_url):
    client = streams.connect(valkey_url)
    yield FeatureStore(client)
    await client.aclose()


async def known(store, *observations):
    return (await store.observe(observations, now=T0 + 400 * DAY)).incidents


def test_events_say_whose_incidents_they_are():
    told = wrong_codes(SHOP, 3, 1)

    assert events.incidents(told) == [
        Incident(f"{told.event_id}/0", Kind.WRONG_CODES, SHOP, 3, T0),
        Incident(f"{told.event_id}/1", Kind.WRONG_CODES, SHOP, 1, T0),
    ]
    own, shared = double_spend(SHOP, SHOP), double_spend(SHOP, STALL)
    assert events.incidents(own) == [Incident(own.event_id, Kind.OWN_DUPLICATE, SHOP, 1, T0)]
    assert events.incidents(shared) == [Incident(shared.event_id, Kind.DOUBLE_SPEND, ANNA, 1, T0)]
    assert all(map(events.is_incident, (told, own, shared)))
    assert not events.is_incident(
        an_event("offline", SHOP, codes_ended=event_pb2.CodesEnded(reason="lost"))
    )


async def test_each_counts_once_for_its_own_side_and_fades_to_both_sides(store):
    guessed = events.incidents(wrong_codes(SHOP, 8))
    twice = events.incidents(double_spend(SHOP, SHOP))
    shared = events.incidents(double_spend(SHOP, STALL))
    for _ in range(2):
        await store.count([*guessed, *twice, *shared], now=T0)

    assert await known(store, seen(), seen(STALL), seen(STALL, SHOP)) == [
        Incidents(8, 1, 1),
        Incidents(0, 0, 1),
        NO_INCIDENTS,
    ]
    for at in (T0 + DAY, T0 - DAY):
        (faded,) = await known(store, seen(at=at))
        assert faded.wrong_codes == pytest.approx(4)
        assert faded.own_duplicates == pytest.approx(2 ** (-1 / 7))
        assert faded.double_spends == pytest.approx(2 ** (-1 / 28))


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 40 * DAY)), min_size=1, max_size=8))
async def test_order_does_not_matter(valkey_server, said):
    incidents = [
        Incident(str(uuid4()), Kind.WRONG_CODES, SHOP, count, T0 + at) for count, at in said
    ]
    found = []
    client = redis.asyncio.Redis.from_url(valkey_server)
    for number, order in enumerate((incidents, incidents[::-1])):
        await client.flushdb()
        store = FeatureStore(client, prefix=f"{{fraud-{number}}}")
        await store.count(order, now=T0 + 400 * DAY)
        found += await known(store, seen(at=T0 + 40 * DAY))
    await client.aclose()

    assert math.isclose(found[0].wrong_codes, found[1].wrong_codes, rel_tol=1e-9)


async def test_what_claims_to_be_later_than_now_happened_now(store):
    await store.count(events.incidents(wrong_codes(SHOP, 8, at=T0 + 300 * DAY)), now=T0)

    (found,) = await known(store, seen())

    assert found.wrong_codes == 8


def offline_sale(vendor, minor_units=10_00):
    facts = a_payment(vendor, BANGALORE, minor_units=minor_units)
    facts.offline = True
    facts.code_age.FromSeconds(60)
    return facts


async def test_sales_at_terminals_where_codes_are_guessed_are_held(engine):
    shop = await engine.a_vendor()
    (before,) = await engine.assess(offline_sale(shop))
    guessed = wrong_codes(shop, 12)
    guessed.wrong_codes_entered.entered[0].time.GetCurrentTime()
    await publish(engine.redis, guessed)

    async def held():
        sale = offline_sale(shop)
        (found,) = await engine.assess(sale)
        return (sale, found) if found.decision == REVIEW else None

    sale, found = await eventually(held)
    assert before.decision == ALLOW
    assert [signal.reason for signal in found.signals] == ["CODE_GUESSING"]
    assert found.signals[0].detail.startswith("12 wrong codes were typed in")
    (online,) = await engine.assess(a_payment(shop))
    assert online.decision == ALLOW

    # It is kept with the assessment, and a draft of another rule can be tried on it.
    kept = await engine.kept(sale)
    assert kept.incidents.vendor_wrong_codes == pytest.approx(12, rel=1e-2)
    draft = rules_pb.Rule(
        name="DRAFT", expression="vendor_wrong_codes_1d > 11.0", action=3, mode=1, detail="x"
    )
    tried = await engine.rules("BacktestRule", rules_pb.BacktestRuleRequest(rule=draft))
    assert 1 <= tried.matched.payments < tried.tried.payments
