"""The fraud engine over mutual TLS: what is kept, alerts, labels, live rules, reports, degradation."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from uuid_utils import uuid4

from services import sql, streams
from services.fraud.domain.assessment import Limits
from services.fraud.features.spec import FEATURES
from services.fraud.labels import Patience
from services.fraud.server import FraudServer
from services.fraud.settings import Settings
from services.rpc import channel
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import fraud_service_pb2_grpc, rule_service_pb2_grpc
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tallystick.payment.v1 import payment_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.fakes.parties import serving_parties
from tests.outages import Valkey, running
from tests.review_desk import Person
from tests.test_fraud_service import (
    ALLOW,
    BANGALORE,
    DECLINE,
    MYSORE,
    REVIEW,
    Fraud,
    a_payment,
    a_vendor,
)
from tests.user_service import reason_of

NORMAL = event_pb2.OfflineRiskChanged.LEVEL_NORMAL
REDUCED = event_pb2.OfflineRiskChanged.LEVEL_REDUCED
SUSPENDED = event_pb2.OfflineRiskChanged.LEVEL_SUSPENDED
LIVE, SHADOW = rules_pb.Rule.MODE_LIVE, rules_pb.Rule.MODE_SHADOW


class Engine(Fraud):
    """A running fraud service, and an analyst's clients of it."""

    def __init__(self, settings, parties, redis, tls_for):
        super().__init__(settings, parties, redis, tls_for)
        self.analyst = Person("ADMIN")
        self._stack = AsyncExitStack()

    async def open(self):
        """Start a replica; the newest is the one that is asked."""
        server = FraudServer(self.settings)
        port = await server.start()
        self._stack.push_async_callback(server.stop)
        self.server, self.port = server, port
        address = f"127.0.0.1:{port}"
        calls = await self._stack.enter_async_context(
            channel.connect(address, "fraud", self._tls_for("payment"))
        )
        self.stub = fraud_service_pb2_grpc.FraudServiceStub(calls)
        people = await self._stack.enter_async_context(
            channel.connect(address, "fraud", self._tls_for("gateway"))
        )
        self._desk = fraud_service_pb2_grpc.FraudServiceStub(people)
        self._rules = rule_service_pb2_grpc.RuleServiceStub(people)
        return server

    async def close(self):
        await self._stack.aclose()

    def desk(self, method, request):
        return getattr(self._desk, method)(request, metadata=self.analyst.metadata)

    def rules(self, method, request):
        return getattr(self._rules, method)(request, metadata=self.analyst.metadata)

    async def a_vendor(self):
        vendor = a_vendor(BANGALORE)
        await self.knows(vendor)
        return vendor.user.name

    async def kept(self, payment):
        """The assessment that is kept of a payment, once it is."""
        await self.server.recorder.write_now()
        return await self.desk("GetAssessment", pb.GetAssessmentRequest(payment=payment.payment))

    async def put(self, name, expression, action, *, mode=LIVE, version=0):
        rule = rules_pb.Rule(
            name=name,
            expression=expression,
            action=action,
            mode=mode,
            detail="it is so",
            version=version,
        )
        return (await self.rules("PutRule", rules_pb.PutRuleRequest(rule=rule))).rule

    async def label(self, payment, *, fraud, source=pb.Label.SOURCE_CHARGEBACK):
        request = pb.LabelPaymentRequest(
            payment=payment.payment, fraud=fraud, source=source, reason="the bank says so"
        )
        return (await self.desk("LabelPayment", request)).label

    async def risks(self):
        """(user, level) of every change of offline risk published so far."""
        events = []
        for _, fields in await self.redis.xrange("events:fraud"):
            events += event_pb2.EventBatch.FromString(fields[b"events"]).events
        return [
            (each.offline_risk_changed.user, each.offline_risk_changed.level)
            for each in events
            if each.WhichOneof("fact") == "offline_risk_changed"
        ]


@pytest.fixture
async def surroundings(tls_for, valkey_url, database_url):
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
        engine = Engine(settings, parties, redis, tls_for)
        stack.push_async_callback(engine.close)
        yield engine


@pytest.fixture
async def engine(surroundings):
    await surroundings.open()
    return surroundings


sqlite_only = pytest.mark.parametrize("dialect", ["sqlite"])


async def test_an_assessment_is_kept_with_the_features_it_rests_on(engine):
    payment = a_payment(await engine.a_vendor(), MYSORE)
    (answered,) = await engine.assess(payment)

    kept = await engine.kept(payment)

    assert kept.assessment == answered
    assert kept.facts == payment
    assert [(each.name, each.unit) for each in kept.features] == [
        (each.name, each.unit) for each in FEATURES
    ]
    named = {each.name: each.value for each in kept.features}
    assert named["amount"] == 100_00
    assert named["vendor_distance_km"] == pytest.approx(128.0, abs=0.1)
    assert kept.history_known
    assert kept.model_version
    assert not kept.HasField("label")


@sqlite_only
async def test_a_payment_asked_for_twice_is_answered_and_kept_once(engine):
    payment = a_payment(await engine.a_vendor(), MYSORE)

    (first,), (second,) = [await engine.assess(payment) for _ in range(2)]

    assert first == second
    await engine.kept(payment)
    alerts = await engine.desk("ListAlerts", pb.ListAlertsRequest())
    assert [alert.payment for alert in alerts.alerts] == [payment.payment]


@sqlite_only
async def test_a_payment_nobody_assessed_has_no_assessment_and_no_label(engine):
    unknown = f"payments/{uuid4()}"
    label = pb.LabelPaymentRequest(
        payment=unknown, fraud=True, source=pb.Label.SOURCE_OPERATOR, reason="x"
    )

    for call in (
        engine.desk("GetAssessment", pb.GetAssessmentRequest(payment=unknown)),
        engine.desk("LabelPayment", label),
    ):
        assert await reason_of(call) == "ASSESSMENT_NOT_FOUND"


@sqlite_only
async def test_what_broke_the_contract_is_kept_and_raises_an_alert_all_the_same(engine):
    payment = a_payment("users/nobody")

    await engine.assess(payment)

    kept = await engine.kept(payment)
    assert kept.assessment.signals[0].reason == "FACTS_INVALID"
    assert list(kept.features) == []
    (alert,) = (await engine.desk("ListAlerts", pb.ListAlertsRequest())).alerts
    assert list(alert.reasons) == ["FACTS_INVALID"]


async def test_alerts_are_listed_newest_first_by_page_and_by_filter(engine):
    vendor = await engine.a_vendor()
    far, large, fine = (
        a_payment(vendor, MYSORE),
        a_payment(vendor, minor_units=100_000_01),
        a_payment(vendor),
    )
    await engine.assess(far, large, fine)
    await engine.server.recorder.write_now()

    async def listed(**asked):
        request = pb.ListAlertsRequest(filter=pb.AlertFilter(**asked))
        return [alert.payment for alert in (await engine.desk("ListAlerts", request)).alerts]

    first = await engine.desk("ListAlerts", pb.ListAlertsRequest(page_size=1))
    rest = await engine.desk(
        "ListAlerts", pb.ListAlertsRequest(page_size=1, page_token=first.next_page_token)
    )
    assert [first.alerts[0].payment, rest.alerts[0].payment] == [large.payment, far.payment]
    assert rest.next_page_token == ""
    assert await listed(decision=DECLINE) == [large.payment]
    assert await listed(reason="DISTANCE_OVER_LIMIT") == [far.payment]
    assert await listed(reason="DISTANCE_OVER_LIMI_") == []
    assert await listed(score_min=71) == [large.payment]
    assert await listed(user=far.payer) == [far.payment]
    assert await listed(user=vendor, kind=pb.Alert.KIND_PAYMENT) == [large.payment, far.payment]
    assert await listed(kind=pb.Alert.KIND_GUARD_TRIPPED) == []


@sqlite_only
async def test_alerts_are_seen_within_a_second_and_a_watcher_resumes(engine):
    vendor = await engine.a_vendor()
    watching = engine.desk("WatchAlerts", pb.WatchAlertsRequest())
    cursor = (await watching.read()).cursor
    payments = [a_payment(vendor, MYSORE) for _ in range(2)]

    await engine.assess(payments[0])
    async with asyncio.timeout(1):
        seen = await watching.read()
    watching.cancel()
    await engine.assess(payments[1])

    assert seen.alert.payment == payments[0].payment
    resumed = engine.desk("WatchAlerts", pb.WatchAlertsRequest(cursor=cursor))
    async with asyncio.timeout(5):
        found = [await resumed.read() for _ in range(3)]
    assert [each.alert.payment for each in found] == ["", *(each.payment for each in payments)]
    resumed.cancel()


async def test_a_review_becomes_a_label_by_the_payment_stream(engine):
    vendor = await engine.a_vendor()
    fine, bad = a_payment(vendor, MYSORE), a_payment(vendor, MYSORE)
    await engine.assess(fine, bad)
    await engine.server.recorder.write_now()
    succeeded = event_pb2.PaymentSucceeded(review_reason="the customer was called")
    failed = event_pb2.PaymentFailed(
        review_reason="not theirs", reason=payment_pb2.Payment.FAILURE_REASON_REVIEW_REJECTED
    )

    await publish(
        engine.redis,
        an_event("payment", fine.payment, actor="users/a", payment_succeeded=succeeded),
        an_event("payment", bad.payment, actor="users/a", payment_failed=failed),
    )

    async def labelled():
        kept = [await engine.kept(each) for each in (fine, bad)]
        return all(each.HasField("label") for each in kept) and [each.label for each in kept]

    honest, fraud = await eventually(labelled)
    assert (honest.fraud, honest.reason) == (False, "the customer was called")
    assert (fraud.fraud, fraud.source) == (True, pb.Label.SOURCE_REVIEW)


@sqlite_only
async def test_a_chargeback_is_seen_in_the_features_of_the_vendors_next_payment(engine):
    vendor = await engine.a_vendor()
    bad, after = a_payment(vendor), a_payment(vendor)
    await engine.assess(bad)

    label = await engine.label(bad, fraud=True)
    await engine.server.labels.feed_now()
    await engine.assess(after)

    assert (label.fraud, label.actor) == (True, engine.analyst.name)
    kept = await engine.kept(after)
    named = {each.name: each.value for each in kept.features}
    assert named["vendor_fraud_7d"] == pytest.approx(1.0, abs=0.01)
    assert named["vendor_fraud_run"] == 1


@sqlite_only
async def test_a_fraud_unlike_its_payer_does_not_speak_against_the_vendor(engine):
    vendor = await engine.a_vendor()
    usual, robbed, after = (
        a_payment(vendor),
        a_payment(vendor, minor_units=300_00),
        a_payment(vendor),
    )
    robbed.payer = usual.payer
    for payment in (usual, robbed):
        await engine.assess(payment)

    await engine.label(robbed, fraud=True)
    await engine.server.labels.feed_now()
    await engine.assess(after)

    named = {each.name: each.value for each in (await engine.kept(after)).features}
    assert named["vendor_fraud_7d"] == pytest.approx(1.0, abs=0.01)
    assert (named["vendor_fraud_run"], named["vendor_own_fraud_28d"]) == (0, 0)


@sqlite_only
async def test_the_same_label_again_changes_nothing_and_a_correction_counts(engine):
    payment = a_payment(await engine.a_vendor())
    await engine.assess(payment)

    first = await engine.label(payment, fraud=True)
    again = await engine.label(payment, fraud=True)
    corrected = await engine.label(payment, fraud=False, source=pb.Label.SOURCE_OPERATOR)

    assert again == first
    assert not corrected.fraud
    assert (await engine.kept(payment)).label == corrected


async def test_offline_risk_follows_suspicion_fraud_and_its_correction(engine):
    payment = a_payment(await engine.a_vendor(), MYSORE)
    await engine.assess(payment)
    await engine.server.recorder.write_now()
    await engine.label(payment, fraud=True)
    await engine.label(payment, fraud=True)
    await engine.label(payment, fraud=False, source=pb.Label.SOURCE_OPERATOR)

    async def told():
        found = await engine.risks()
        return len(found) >= 3 and found

    assert await eventually(told) == [
        (payment.payer, level) for level in (REDUCED, SUSPENDED, NORMAL)
    ]


@sqlite_only
async def test_silence_is_honesty_in_time_risks_run_out_and_what_is_old_is_forgotten(surroundings):
    clock = [datetime.now(UTC)]
    surroundings.settings = replace(surroundings.settings, patience=Patience())
    engine = surroundings
    await engine.open()
    server = engine.server
    server.recorder._now = server.labels._now = lambda: clock[0]
    vendor = await engine.a_vendor()
    quiet, suspect = a_payment(vendor), a_payment(vendor, MYSORE)
    await engine.assess(quiet, suspect)
    await server.recorder.write_now()

    clock[0] += timedelta(days=7, seconds=1)
    await server.labels.keep_up_now()

    assert (await engine.kept(quiet)).label.source == pb.Label.SOURCE_UNDISPUTED
    assert not (await engine.kept(suspect)).HasField("label")

    async def told():
        return (suspect.payer, NORMAL) in await engine.risks()

    await eventually(told)
    clock[0] += timedelta(days=120)
    await server.labels.keep_up_now()
    call = engine.desk("GetAssessment", pb.GetAssessmentRequest(payment=quiet.payment))
    assert await reason_of(call) == "ASSESSMENT_NOT_FOUND"
    assert not (await engine.desk("ListAlerts", pb.ListAlertsRequest())).alerts


async def test_a_new_rule_counts_at_once_and_in_the_other_replica_soon(engine):
    vendor = await engine.a_vendor()
    first, here = engine.stub, engine.server
    await engine.open()
    await eventually(lambda: engine.server._index.find(vendor) or engine.knows())

    made = await engine.put("TINY", "minor_units == 77", rules_pb.Rule.ACTION_DECLINE)

    (found,) = await engine.assess(a_payment(vendor, minor_units=77))
    assert (found.decision, found.signals[0].reason) == (DECLINE, "TINY")
    assert (made.version, made.author) == (1, engine.analyst.name)
    async with asyncio.timeout(2):
        await eventually(
            lambda: here.books.current().revision == engine.server.books.current().revision
        )
    request = pb.AssessPaymentsRequest(payments=[a_payment(vendor, minor_units=77)])
    assert (await first.AssessPayments(request)).assessments[0].decision == DECLINE


@sqlite_only
async def test_versions_are_kept_and_only_the_newest_may_be_changed(engine):
    await engine.put("TINY", "minor_units == 77", rules_pb.Rule.ACTION_DECLINE)
    await engine.put(
        "TINY", "minor_units == 78", rules_pb.Rule.ACTION_REVIEW, mode=SHADOW, version=1
    )

    rule = rules_pb.Rule(name="TINY", expression="true", action=3, mode=1, detail="x", version=1)
    call = engine.rules("PutRule", rules_pb.PutRuleRequest(rule=rule))
    assert await reason_of(call) == "RULE_CHANGED"
    found = await engine.rules("GetRule", rules_pb.GetRuleRequest(name="TINY"))
    assert [(each.version, each.expression) for each in found.versions] == [
        (2, "minor_units == 78"),
        (1, "minor_units == 77"),
    ]
    assert (
        await reason_of(engine.rules("GetRule", rules_pb.GetRuleRequest(name="NONE")))
        == "RULE_NOT_FOUND"
    )
    listed = await engine.rules("ListRules", rules_pb.ListRulesRequest())
    names = [state.rule.name for state in listed.rules]
    assert {"TINY", "DISTANCE_OVER_LIMIT"} <= set(names)
    assert {each.name for each in listed.variables} >= {each.name for each in FEATURES}


@sqlite_only
@pytest.mark.parametrize(
    ("expression", "detail", "reason"),
    [
        ("amount > speed", "x", "RULE_INVALID"),
        ("1 / 0 == 1", "x", "RULE_INVALID"),
        ("true", "{speed}", "RULE_INVALID"),
        ("", "x", "FIELDS_INVALID"),
        ("x" * 1001, "x", "FIELDS_INVALID"),
    ],
)
async def test_a_rule_that_cannot_be_used_is_refused(engine, expression, detail, reason):
    rule = rules_pb.Rule(name="BAD", expression=expression, action=3, mode=1, detail=detail)

    for method, request in (
        ("PutRule", rules_pb.PutRuleRequest(rule=rule)),
        ("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule)),
    ):
        assert await reason_of(engine.rules(method, request)) == reason


@sqlite_only
async def test_only_admins_may_see_alerts_or_change_rules(engine):
    engine.analyst = Person("USER")

    for call in (
        engine.desk("ListAlerts", pb.ListAlertsRequest()),
        engine.rules("ListRules", rules_pb.ListRulesRequest()),
    ):
        assert await reason_of(call) == "CALLER_NOT_ALLOWED"


@sqlite_only
async def test_lists_and_suppressions_count_until_they_expire(engine):
    vendor = await engine.a_vendor()
    payment = a_payment(vendor, MYSORE)
    soon = datetime.now(UTC) + timedelta(hours=1)
    suppression = rules_pb.Suppression(rule="DISTANCE_OVER_LIMIT", entity=vendor, reason="a van")
    suppression.expire_time.FromDatetime(soon)
    entry = rules_pb.Entry(list=rules_pb.Entry.LIST_DENY, entity=payment.payer, reason="a thief")
    entry.expire_time.FromDatetime(soon)

    await engine.rules("SuppressRule", rules_pb.SuppressRuleRequest(suppression=suppression))
    assert [each.decision for each in await engine.assess(payment)] == [ALLOW]
    await engine.rules("PutEntry", rules_pb.PutEntryRequest(entry=entry))
    (denied,) = await engine.assess(payment)
    listed = await engine.rules("ListEntries", rules_pb.ListEntriesRequest())

    assert (denied.decision, denied.signals[0].reason) == (DECLINE, "DENY_LISTED")
    assert [each.entity for each in listed.entries] == [payment.payer]
    assert [each.author for each in listed.suppressions] == [engine.analyst.name]
    entry.expire_time.FromDatetime(datetime.now(UTC))
    await engine.rules("PutEntry", rules_pb.PutEntryRequest(entry=entry))
    assert [each.decision for each in await engine.assess(payment)] == [ALLOW]
    suppression.rule = "NONE"
    call = engine.rules("SuppressRule", rules_pb.SuppressRuleRequest(suppression=suppression))
    assert await reason_of(call) == "RULE_NOT_FOUND"


@sqlite_only
async def test_a_rule_that_declines_too_much_raises_an_alert_and_is_shown_as_guarded(engine):
    vendor = await engine.a_vendor()
    await engine.put("BAD", "minor_units > 1", rules_pb.Rule.ACTION_DECLINE)

    found = await engine.assess(*(a_payment(vendor) for _ in range(200)))
    await engine.server.recorder.write_now()

    assert {found[0].decision, found[-1].decision} == {DECLINE, REVIEW}
    request = pb.ListAlertsRequest(filter=pb.AlertFilter(kind=pb.Alert.KIND_GUARD_TRIPPED))
    (alert,) = (await engine.desk("ListAlerts", request)).alerts
    assert list(alert.reasons) == ["BAD"]
    listed = await engine.rules("ListRules", rules_pb.ListRulesRequest())
    assert [state.rule.name for state in listed.rules if state.guarded] == ["BAD"]


async def test_a_back_test_says_what_a_rule_would_have_changed(engine):
    vendor = await engine.a_vendor()
    bad, fine, held, other = (
        a_payment(vendor, minor_units=77),
        a_payment(vendor, minor_units=77),
        a_payment(vendor, MYSORE, minor_units=77),
        a_payment(vendor),
    )
    await engine.assess(bad, fine, held, other)
    await engine.label(bad, fraud=True)
    await engine.label(fine, fraud=False)
    rule = rules_pb.Rule(name="DRAFT", expression="amount == 77.0", action=3, mode=1, detail="x")

    found = await engine.rules("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule))

    assert (found.tried.payments, found.matched.payments, found.failed) == (4, 3, 0)
    (change,) = found.changes
    assert (getattr(change, "from"), change.to, change.reason) == (ALLOW, REVIEW, "")
    assert change.outcomes == pb.Outcomes(payments=2, fraud=1, honest=1)
    assert set(change.examples) == {bad.payment, fine.payment}
    rule.action = rules_pb.Rule.ACTION_ALLOW
    found = await engine.rules("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule))
    assert [(getattr(each, "from"), each.reason) for each in found.changes] == [
        (REVIEW, "DISTANCE_OVER_LIMIT")
    ]


async def test_precision_is_told_by_reason_live_and_in_shadow_and_by_band(engine):
    vendor = await engine.a_vendor()
    await engine.put("DRAFT", "minor_units == 77", rules_pb.Rule.ACTION_REVIEW, mode=SHADOW)
    bad, fine, far = (
        a_payment(vendor, minor_units=77),
        a_payment(vendor, minor_units=77),
        a_payment(vendor, MYSORE),
    )
    await engine.assess(bad, fine, far)
    await engine.label(bad, fraud=True)
    await engine.label(far, fraud=False)

    found = await engine.desk("GetPrecision", pb.GetPrecisionRequest())

    by = {(each.reason, each.shadow): each for each in found.reasons}
    assert by["DRAFT", True].said == pb.Outcomes(payments=2, fraud=1)
    assert by["DRAFT", True].passed == pb.Outcomes(payments=2, fraud=1)
    assert by["DISTANCE_OVER_LIMIT", False].said == pb.Outcomes(payments=1, honest=1)
    assert by["DISTANCE_OVER_LIMIT", False].passed.payments == 0
    assert sum(band.outcomes.payments for band in found.bands) == 3


@sqlite_only
async def test_without_a_model_rules_go_on_and_an_alert_says_so(surroundings, tmp_path):
    surroundings.settings = replace(surroundings.settings, model_directory=tmp_path)
    engine = surroundings
    await engine.open()
    payment = a_payment(await engine.a_vendor(), MYSORE)

    (found,) = await engine.assess(payment)

    assert found.decision == REVIEW
    kept = await engine.kept(payment)
    assert (kept.model_score, kept.model_version) == (-1, "")
    request = pb.ListAlertsRequest(filter=pb.AlertFilter(kind=pb.Alert.KIND_MODEL_MISSING))
    assert len((await engine.desk("ListAlerts", request)).alerts) == 1


@sqlite_only
async def test_a_batch_is_answered_as_its_payments_one_by_one(engine):
    vendor = await engine.a_vendor()
    payer = f"users/{uuid4()}"

    def sequence():
        made = [
            a_payment(vendor, at, minor_units=amount)
            for at, amount in [
                (BANGALORE, 100),
                (None, 500_00),
                (BANGALORE, 7),
                (MYSORE, 900),
                (BANGALORE, 100_000_01),
            ]
            * 3
        ]
        for number, each in enumerate(made):
            each.payer = payer
            each.occur_time.FromSeconds(1_780_000_000 + number)
        return made

    together = [await engine.kept(each) for each in await asked(engine, sequence(), at_once=True)]
    payer = f"users/{uuid4()}"
    await engine.redis.flushall()
    engine.server._guard._declined.clear()
    alone = [await engine.kept(each) for each in await asked(engine, sequence(), at_once=False)]

    for one, other in zip(together, alone, strict=True):
        assert plain(one) == plain(other)


async def asked(engine, payments, *, at_once):
    # Profiles learn between two calls, and from a batch when it is over: that is not what is compared.
    engine.server._assessor._keep = lambda seen: None
    for batch in [payments] if at_once else [[each] for each in payments]:
        await engine.assess(*batch)
    return payments


def plain(kept):
    return (
        kept.assessment.decision,
        kept.assessment.score,
        [(each.reason, each.detail) for each in kept.assessment.signals],
        {each.name: each.value for each in kept.features},
    )


@sqlite_only
@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.occur_time.FromSeconds(253_402_300_799),
        lambda facts: facts.occur_time.FromSeconds(1),
        lambda facts: facts.occur_time.FromDatetime(datetime.now(UTC) - timedelta(days=3)),
        lambda facts: setattr(facts.amount, "minor_units", 2**63 - 1),
        lambda facts: setattr(facts.position, "latitude", 90.0),
        lambda facts: setattr(facts.position, "longitude", -180.0),
        lambda facts: facts.code_age.FromSeconds(-5),
        lambda facts: setattr(facts, "device", "d" * 64),
    ],
    ids=[
        "far future",
        "1970",
        "three days old",
        "int64",
        "pole",
        "antimeridian",
        "code from the future",
        "device",
    ],
)
async def test_odd_facts_are_answered_and_pass_only_where_nothing_is_wrong(engine, change):
    vendor = await engine.a_vendor()
    payment = a_payment(vendor, minor_units=600_00)
    change(payment)

    (found,) = await engine.assess(payment)

    near = payment.position.latitude == BANGALORE[0] and payment.position.longitude == BANGALORE[1]
    ordinary = near and payment.amount.minor_units == 600_00
    assert (found.decision == ALLOW) == ordinary
    assert (await engine.kept(payment)).assessment == found


@sqlite_only
async def test_losing_valkey_means_review_from_the_floor_on_never_a_pass(surroundings, tmp_path):
    engine = surroundings
    async with running(Valkey(tmp_path)) as server:
        engine.settings = replace(engine.settings, redis_url=server.url)
        engine.redis = streams.connect(server.url)
        await engine.open()
        vendor = await engine.a_vendor()
        payments = [a_payment(vendor, minor_units=amount) for amount in (499_99, 500_00)]
        await engine.assess(*payments)

        await server.stop()
        found = await engine.assess(
            *(a_payment(vendor, minor_units=each) for each in (499_99, 500_00))
        )

        assert [each.decision for each in found] == [ALLOW, REVIEW]
        assert [each.signals[0].code for each in found] == [pb.Signal.CODE_HISTORY_UNAVAILABLE] * 2
        await server.start()

        async def passes():
            engine.server._assessor._ask_again_at = 0.0
            (again,) = await engine.assess(a_payment(vendor, minor_units=500_00))
            return again.decision == ALLOW

        await eventually(passes)
        await engine.close()
        await engine.redis.aclose()


async def test_assessments_wait_for_a_database_that_is_away(engine):
    payment = a_payment(await engine.a_vendor(), MYSORE)
    broken, whole = (
        sql.create_engine("sqlite+aiosqlite:////nowhere/at/all.db"),
        engine.server._engine,
    )
    engine.server.recorder._engine = broken
    await engine.assess(payment)
    with pytest.raises(Exception, match="unable to open"):
        await engine.server.recorder.write_now()

    engine.server.recorder._engine = whole

    assert (await engine.kept(payment)).assessment.payment == payment.payment
    await broken.dispose()
