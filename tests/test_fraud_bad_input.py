"""What must never pass by accident: odd facts and odd rules, each with its reason, over mutual TLS."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf, nan

import pytest
from uuid_utils import uuid4

from services.fraud.domain.rules import Action, Mode, Rule
from services.fraud.model import scorer
from services.fraud.store import rules as kept_rules
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tests.test_fraud_engine import engine, sqlite_only, surroundings  # noqa: F401
from tests.test_fraud_service import ALLOW, DECLINE, REVIEW, a_payment, a_vendor
from tests.user_service import reason_of

HERE = (12.9716, 77.5946)
NORTH_POLE, ANTIMERIDIAN = (90.0, 0.0), (0.0, 180.0)
FLOOR = 500_00


def at(latitude, longitude, accuracy=0.0):
    def change(facts):
        facts.position.latitude, facts.position.longitude = latitude, longitude
        facts.position.accuracy_meters = accuracy

    return change


def costs(minor_units, currency="INR"):
    def change(facts):
        facts.amount.minor_units, facts.amount.currency_code = minor_units, currency

    return change


def happened(seconds, nanos=0):
    def change(facts):
        facts.occur_time.seconds, facts.occur_time.nanos = seconds, nanos

    return change


def ago(**span):
    moment = datetime.now(UTC) - timedelta(**span)
    return lambda facts: facts.occur_time.FromDatetime(moment)


def aged(seconds):
    def change(facts):
        facts.offline = True
        facts.code_age.seconds = seconds

    return change


def saying(**fields):
    def change(facts):
        for name, value in fields.items():
            setattr(facts, name, value)

    return change


INVALID = (REVIEW, ["FACTS_INVALID"])
FACTS = {
    "latitude NaN": (at(nan, 0), INVALID),
    "latitude inf": (at(inf, 0), INVALID),
    "latitude out of range": (at(90.000001, 0), INVALID),
    "longitude NaN": (at(0, nan), INVALID),
    "longitude -inf": (at(0, -inf), INVALID),
    "longitude out of range": (at(0, -180.000001), INVALID),
    "accuracy NaN": (at(*HERE, nan), INVALID),
    "accuracy inf": (at(*HERE, inf), INVALID),
    "accuracy below zero": (at(*HERE, -0.1), INVALID),
    "accuracy of a city": (at(*HERE, 1e5), (REVIEW, ["POSITION_MISSING"])),
    "no position": (lambda facts: facts.ClearField("position"), (REVIEW, ["POSITION_MISSING"])),
    "null island": (at(0, 0), (REVIEW, ["DISTANCE_OVER_LIMIT"])),
    "the other pole": (at(-90, 180), (REVIEW, ["DISTANCE_OVER_LIMIT"])),
    "mocked": (
        lambda facts: setattr(facts.position, "mocked", True),
        (REVIEW, ["POSITION_MOCKED"]),
    ),
    "nothing to pay": (costs(0), INVALID),
    "below nothing": (costs(-(2**63)), INVALID),
    "int64": (costs(2**63 - 1), (DECLINE, ["AMOUNT_OVER_LIMIT"])),
    "no currency": (costs(1, ""), INVALID),
    "no such currency": (costs(1, "XXX"), INVALID),
    "no amount": (lambda facts: facts.ClearField("amount"), INVALID),
    "in the future": (ago(days=-400), (ALLOW, [])),
    "three days old": (ago(days=3), (ALLOW, [])),
    "1970": (happened(0), (ALLOW, [])),
    "before there were calendars": (happened(-(2**62)), INVALID),
    "after all calendars": (happened(2**62), INVALID),
    "half a second too many": (happened(1, 1_500_000_000), INVALID),
    "a code from the future": (aged(-5), (ALLOW, [])),
    "a code as old as no code": (aged(2**62), INVALID),
    "no payer": (saying(payer=""), INVALID),
    "a payer with no name": (saying(payer="users/me"), INVALID),
    "no vendor": (saying(vendor=""), INVALID),
    "a payer nobody knows": (saying(payer=f"users/{uuid4()}"), (ALLOW, [])),
    "a vendor nobody knows": (saying(vendor=f"users/{uuid4()}"), (REVIEW, ["SITE_UNKNOWN"])),
    "a site of nobody": (saying(site="users/x/sites/y"), (ALLOW, [])),
    "a device too long": (saying(device="d" * 65), INVALID),
}


def said(found):
    return found.decision, [each.reason for each in found.signals]


@sqlite_only
@pytest.mark.parametrize(("change", "outcome"), FACTS.values(), ids=FACTS)
async def test_odd_facts_have_a_reason_and_leave_others_alone(engine, change, outcome):  # noqa: F811
    vendor = await engine.a_vendor()
    odd, neighbour = (a_payment(vendor, HERE, minor_units=FLOOR) for _ in range(2))
    change(odd)

    found, other = await engine.assess(odd, neighbour)
    (again,) = await engine.assess(a_payment(vendor, HERE, minor_units=FLOOR))

    decision, reasons = outcome
    assert found.decision == decision
    assert list(dict.fromkeys(each.reason for each in found.signals)) == reasons
    assert said(other) == said(again) == (ALLOW, [])
    assert (await engine.kept(odd)).assessment == found


@sqlite_only
async def test_a_payment_without_an_id_is_answered(engine):  # noqa: F811
    payment = a_payment(await engine.a_vendor(), HERE)
    for name in ("", "payments/mine"):
        payment.payment = name
        (found,) = await engine.assess(payment)
        assert found.decision == (ALLOW if name else REVIEW)
    await engine.server.recorder.write_now()


# (the vendor's site, where the payer is, whether that is within 20 km)
PLACES = {
    "a pole by another longitude": (NORTH_POLE, (90.0, -123.4), True),
    "across the pole": ((89.95, 10.0), (89.95, -170.0), True),
    "too far across the pole": ((89.9, 10.0), (89.9, -170.0), False),
    "the antimeridian by its other name": (ANTIMERIDIAN, (0.0, -180.0), True),
    "across the antimeridian": ((0.0, 179.95), (0.0, -179.95), True),
    "too far across the antimeridian": ((0.0, 179.9), (0.0, -179.9), False),
}


@sqlite_only
@pytest.mark.parametrize(("site", "place", "near"), PLACES.values(), ids=PLACES)
async def test_the_limit_holds_where_the_map_ends(engine, site, place, near):  # noqa: F811
    vendor = a_vendor(site)
    await engine.knows(vendor)

    (found,) = await engine.assess(a_payment(vendor.user.name, place, minor_units=FLOOR))

    assert said(found) == ((ALLOW, []) if near else (REVIEW, ["DISTANCE_OVER_LIMIT"]))


@sqlite_only
@pytest.mark.parametrize("action", list(Action))
async def test_a_live_rule_that_fails_on_a_payment_is_a_reason_to_look(engine, action):  # noqa: F811
    # It can be computed for the payments that a new rule is tried on.
    await engine.put("DIVIDES", f"1 / (minor_units % {FLOOR} - 7) == 5", action)
    vendor = await engine.a_vendor()

    small, large, other = await engine.assess(
        *(a_payment(vendor, HERE, minor_units=each) for each in (7, FLOOR + 7, FLOOR))
    )

    assert said(small) == (ALLOW, ["RULE_FAILED"])
    assert said(large) == (REVIEW, ["RULE_FAILED"])
    assert said(other) == (ALLOW, [])


_ENDLESS = "minor_units > 0"
for _depth in range(6):
    _ENDLESS = f"[1,2,3,4,5,6,7,8,9,10].all(x{_depth}, {_ENDLESS} || true)"
_SLOW = f"{list(range(80))}.all(x, {' && '.join(['x * 3 + x + minor_units % 11 != -7'] * 12)})"


@sqlite_only
@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (_ENDLESS, "RULE_INVALID"),
        (_SLOW, "RULE_TOO_COSTLY"),
        ("minor_units / 0 == 1", "RULE_INVALID"),
        ("gone_feature > 1.0", "RULE_INVALID"),
    ],
)
async def test_a_rule_that_loops_or_fails_is_refused_and_judges_nothing(engine, expression, reason):  # noqa: F811
    rule = rules_pb.Rule(name="BAD", expression=expression, action=3, mode=1, detail="x")

    for method, request in (
        ("PutRule", rules_pb.PutRuleRequest(rule=rule)),
        ("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule)),
    ):
        assert await reason_of(engine.rules(method, request)) == reason

    (found,) = await engine.assess(a_payment(await engine.a_vendor(), HERE, minor_units=FLOOR))
    assert said(found) == (ALLOW, [])


async def test_a_rule_whose_feature_an_update_took_away_is_a_reason_to_look(engine, caplog):  # noqa: F811
    rule = Rule("LEFT_BEHIND", "gone_feature > 1.0", Action.ALLOW, Mode.LIVE, 0, "it was so")
    async with engine.server._engine.begin() as connection:
        now = datetime.now(UTC)
        await kept_rules.insert_rules(connection, [rule], author="services/fraud", now=now)
    with caplog.at_level(logging.ERROR):
        await engine.open()
    vendor = await engine.a_vendor()

    small, large = await engine.assess(
        *(a_payment(vendor, HERE, minor_units=each) for each in (FLOOR - 1, FLOOR))
    )

    assert said(small) == (ALLOW, ["RULE_FAILED"])
    assert said(large) == (REVIEW, ["RULE_FAILED"])
    assert "rule cannot be used" in caplog.text


@sqlite_only
async def test_a_missing_model_is_counted(surroundings, tmp_path, monkeypatch):  # noqa: F811
    class Counter:
        total = 0

        def add(self, amount):
            self.total += amount

    counter = Counter()
    monkeypatch.setattr(scorer, "_unavailable", counter)
    surroundings.settings = replace(surroundings.settings, model_directory=tmp_path / "none")

    await surroundings.open()

    assert counter.total == 1
    request = pb.ListAlertsRequest(filter=pb.AlertFilter(kind=pb.Alert.KIND_MODEL_MISSING))
    await surroundings.server.recorder.write_now()
    (alert,) = (await surroundings.desk("ListAlerts", request)).alerts
    assert "FileNotFoundError" in alert.detail
