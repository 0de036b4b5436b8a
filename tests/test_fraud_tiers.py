"""Limits by the payer's tier: the rules at their edges, how tiers arrive, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import names, sql, streams
from services.fraud import store, wire
from services.fraud.domain.assessment import Decision, Facts, Position, Site
from services.fraud.domain.guard import Guard
from services.fraud.domain.tiers import Standing, Tier, TierIndex
from services.fraud.domain.variables import VARIABLES
from services.fraud.features.spec import NAMES
from services.fraud.model.scorer import Scorer
from services.fraud.store.tables import assessments
from services.money import Money
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tallystick.user.v1 import party_service_pb2, user_pb2, user_service_pb2
from tests.event_stream import publish
from tests.eventually import eventually
from tests.fraud_checks import BUILT_IN, case_of
from tests.test_fraud_engine import engine, sqlite_only, surroundings  # noqa: F401
from tests.test_fraud_service import ALLOW, REVIEW, a_payment, a_vendor, news_of
from tests.user_service import serving_users

SHOP = Site("users/v/sites/shop", 12.9716, 77.5946, open=True)
AT_SHOP = Position(SHOP.latitude, SHOP.longitude)
REVIEW_FROM = {Tier.BASIC: 5_000_00, Tier.STANDARD: 10_000_00, Tier.PLUS: 25_000_00}


def judged(minor_units, tier, **features):
    """What the built-in rules say of a payment by somebody on a tier."""
    facts = Facts(Money(minor_units, "INR"), "", AT_SHOP)
    case = replace(case_of(facts, [SHOP], **features), tier=tier)
    return BUILT_IN.judge(case, Guard())


def reasons(assessment):
    return [signal.reason for signal in assessment.signals]


@pytest.mark.parametrize(("tier", "limit"), REVIEW_FROM.items())
def test_one_payment_is_held_from_its_tiers_limit_on(tier, limit):
    assert reasons(judged(limit - 1, tier)) == []

    for minor_units in (limit, limit + 1):
        found = judged(minor_units, tier)
        assert found.decision is Decision.REVIEW
        assert reasons(found) == ["AMOUNT_OVER_REVIEW_LIMIT"]
    assert judged(limit, tier).signals[0].detail == (
        f"{limit // 100}.00 INR; on tier {tier.value} a person must look from {limit // 100}.00 INR on"
    )


@pytest.mark.parametrize(("tier", "limit"), REVIEW_FROM.items())
@pytest.mark.parametrize(
    ("rule", "feature", "times"),
    [
        ("AMOUNT_PER_MINUTE", "sum_1m", 1.0),
        ("AMOUNT_PER_HOUR", "sum_1h", 1.5),
        ("AMOUNT_PER_DAY", "sum_1d", 2.0),
        ("AMOUNT_PER_WEEK", "sum_7d", 6.0),
    ],
)
def test_payments_together_are_held_from_a_multiple_of_their_tiers_limit_on(
    tier, limit, rule, feature, times
):
    together = times * limit

    # Each alone is below its limit; a minor unit decides.
    assert reasons(judged(100_00, tier, **{feature: together - 100_00 - 1})) == []
    for over in (0, 1):
        found = judged(100_00, tier, **{feature: together - 100_00 + over})
        assert found.decision is Decision.REVIEW
        assert reasons(found) == [rule]
        assert found.signals[0].detail.endswith(f"on tier {tier.value}")


@pytest.mark.parametrize("tier", Tier)
def test_the_hard_limit_is_everybodys(tier):
    assert judged(100_000_00, tier).decision is Decision.REVIEW
    assert reasons(judged(100_000_01, tier)) == ["AMOUNT_OVER_LIMIT"]


@given(st.integers(1, 2**63 - 1), st.floats(0, 1e9))
def test_a_higher_tier_is_never_held_for_an_amount_that_a_lower_one_passes_with(amount, before):
    held = [
        judged(amount, tier, sum_1m=before, sum_1h=before, sum_1d=before, sum_7d=before).decision
        is not Decision.ALLOW
        for tier in Tier
    ]

    assert held == sorted(held, reverse=True)


def test_tiers_are_numbered_and_named_as_in_the_contract():
    assert {f"TIER_{tier.value}" for tier in Tier} | {"TIER_UNSPECIFIED"} == set(
        user_pb2.User.Tier.keys()
    )
    assert [wire.tier(value) for value in (0, 1, 2, 3, 4)] == [
        Tier.BASIC,
        Tier.BASIC,
        Tier.STANDARD,
        Tier.PLUS,
        # Of a release to come: not known, so the lowest.
        Tier.BASIC,
    ]


def test_a_tier_is_a_variable_of_rules_and_no_feature_of_the_model():
    assert VARIABLES["payer_tier"].type == "string"
    assert not VARIABLES["payer_tier"].features
    assert not [name for name in NAMES if "tier" in name]
    assert Scorer.load().available


def test_whose_tier_nobody_knows_is_on_the_lowest():
    assert TierIndex().find("users/stranger") is Tier.BASIC
    assert judged(5_000_00, TierIndex().find("users/stranger")).decision is Decision.REVIEW


def test_whoever_never_left_the_lowest_tier_takes_no_room():
    index = TierIndex()

    index.apply("users/a", Standing(1, Tier.BASIC))

    assert len(index) == 0
    assert index.take_changed() == {}


@given(
    st.lists(st.tuples(st.integers(2, 9), st.sampled_from(Tier)), unique_by=lambda each: each[0]),
    st.randoms(),
)
def test_once_somebody_was_raised_the_newest_news_counts_whatever_order_it_comes_in(news, dice):
    index = TierIndex()
    index.apply("users/a", Standing(1, Tier.PLUS))
    newest = max(news, default=(1, Tier.PLUS))
    dice.shuffle(news)

    for version, tier in news:
        index.apply("users/a", Standing(version, tier))

    assert index.find("users/a") is newest[1]
    assert index.take_changed() == {"users/a": Standing(*newest)}


def test_all_that_is_above_the_lowest_tier_replaces_what_was_known():
    index = TierIndex()
    index.load({"users/a": Standing(3, Tier.PLUS), "users/b": Standing(3, Tier.STANDARD)})

    index.renew({"users/b": Standing(4, Tier.PLUS), "users/c": Standing(2, Tier.STANDARD)})

    found = {payer: index.find(f"users/{payer}") for payer in "abc"}
    assert found == {"a": Tier.BASIC, "b": Tier.PLUS, "c": Tier.STANDARD}
    assert index.take_changed().keys() == {"users/a", "users/b", "users/c"}
    # What the stream tells of somebody since then is newer.
    index.apply("users/a", Standing(4, Tier.PLUS))
    assert index.find("users/a") is Tier.PLUS


def test_what_the_table_could_not_take_is_kept_but_for_what_is_newer():
    index = TierIndex()
    index.apply("users/a", Standing(1, Tier.PLUS))
    index.apply("users/b", Standing(1, Tier.PLUS))
    taken = index.take_changed()
    index.apply("users/a", Standing(2, Tier.BASIC))

    index.put_back(taken)

    assert index.take_changed() == {
        "users/a": Standing(2, Tier.BASIC),
        "users/b": Standing(1, Tier.PLUS),
    }


def an_account(tier, *, version=2, name=None, role=access_pb2.ROLE_USER):
    """A payer as the user service would describe them."""
    name = name or a_payment("users/x").payer
    user = user_pb2.User(name=name, role=role, version=version, tier=wire.TIERS[tier])
    return party_service_pb2.Party(user=user)


def told(party):
    return news_of(party, event_pb2.UserChanged.CHANGE_TIER)


def a_purchase(payer, vendor, minor_units=5_000_00):
    payment = a_payment(vendor, minor_units=minor_units)
    payment.payer = payer
    return payment


async def knows(engine, payer, tier):  # noqa: F811
    """Wait until a replica knows a payer's tier."""
    await eventually(lambda: engine.server._tiers.find(payer) is tier)


async def saved(engine):  # noqa: F811
    """Wait until the table holds what the index holds; answers it."""

    async def held():
        async with sql.reading(engine.server._engine) as connection:
            return await store.read_tiers(connection) == engine.server._tiers._payers

    await eventually(held)
    return dict(engine.server._tiers._payers)


async def test_the_payment_after_a_raise_passes_and_the_one_after_a_fall_is_held(engine):  # noqa: F811
    vendor = await engine.a_vendor()
    payer = an_account(Tier.PLUS)
    name = payer.user.name
    (before,) = await engine.assess(a_purchase(name, vendor))

    await publish(engine.redis, told(payer))
    await knows(engine, name, Tier.PLUS)
    (after,) = await engine.assess(a_purchase(name, vendor))
    await publish(engine.redis, told(an_account(Tier.BASIC, version=3, name=name)))
    await knows(engine, name, Tier.BASIC)
    (fallen,) = await engine.assess(a_purchase(name, vendor))

    assert [each.decision for each in (before, after, fallen)] == [REVIEW, ALLOW, REVIEW]
    assert [each.reason for each in before.signals] == ["AMOUNT_OVER_REVIEW_LIMIT"]


@sqlite_only
async def test_a_tier_is_the_payers_and_nobody_elses(engine):  # noqa: F811
    # Vendors pay too, and a payment is measured by the tier of whoever pays it.
    shop = a_vendor((12.9716, 77.5946))
    shop.user.tier = user_pb2.User.TIER_PLUS
    await engine.knows(shop)
    vendor = await engine.a_vendor()
    name = shop.user.name
    await knows(engine, name, Tier.PLUS)

    found = await engine.assess(
        a_purchase(name, vendor), a_payment(name, minor_units=5_000_00), a_payment(vendor)
    )

    assert [each.decision for each in found] == [ALLOW, REVIEW, ALLOW]


@sqlite_only
async def test_news_that_says_nothing_of_tiers_changes_none(engine):  # noqa: F811
    payer = an_account(Tier.STANDARD)
    await publish(engine.redis, told(payer))
    silent = an_account(Tier.BASIC, version=3, name=payer.user.name)
    silent.user.ClearField("tier")

    await publish(engine.redis, told(silent))
    await engine.a_vendor()  # so the silent news has been read

    assert engine.server._tiers.find(payer.user.name) is Tier.STANDARD


async def test_a_restarted_service_knows_the_tiers_it_knew(surroundings):  # noqa: F811
    engine = surroundings  # noqa: F811
    await engine.open()
    raised, fallen = an_account(Tier.PLUS), an_account(Tier.STANDARD)
    await publish(engine.redis, told(raised), told(fallen))
    await publish(engine.redis, told(an_account(Tier.BASIC, version=3, name=fallen.user.name)))
    vendor = await engine.a_vendor()
    before = await saved(engine)
    assert before == {
        raised.user.name: Standing(2, Tier.PLUS),
        fallen.user.name: Standing(3, Tier.BASIC),
    }

    await engine.open()  # with the first replica still there, over the same tables

    assert engine.server._tiers._payers == before
    found = await engine.assess(
        *(a_purchase(each.user.name, vendor) for each in (raised, fallen, an_account(Tier.PLUS)))
    )
    assert [each.decision for each in found] == [ALLOW, REVIEW, REVIEW]


async def test_the_table_keeps_the_newer_of_two_tiers(database_url):
    engine = sql.create_engine(database_url("fraud"))  # noqa: F811
    first, second = (an_account(Tier.PLUS).user.name for _ in range(2))
    news = [
        {first: Standing(5, Tier.PLUS), second: Standing(1, Tier.STANDARD)},
        {first: Standing(4, Tier.STANDARD), second: Standing(2, Tier.BASIC)},
        {first: Standing(4, Tier.BASIC)},
        {},
    ]
    try:
        for each in news:
            async with engine.begin() as connection:
                await store.save_tiers(connection, each)
        async with sql.reading(engine) as connection:
            found = await store.read_tiers(connection)
    finally:
        await engine.dispose()

    assert found == {first: Standing(5, Tier.PLUS), second: Standing(2, Tier.BASIC)}


@sqlite_only
async def test_a_service_that_starts_anew_asks_for_whoever_is_above_the_lowest_tier(surroundings):  # noqa: F811
    # The stream says nothing of them: it is younger, or somebody emptied it.
    raised = [an_account(tier) for tier in (Tier.STANDARD, Tier.PLUS, Tier.PLUS)]
    parties = surroundings.parties.parties
    parties.update({each.user.name: each for each in [*raised, an_account(Tier.BASIC)]})

    await surroundings.open()

    await eventually(lambda: len(surroundings.server._tiers) == len(raised))
    assert await saved(surroundings) == {
        each.user.name: Standing(2, wire.tier(each.user.tier)) for each in raised
    }


@sqlite_only
async def test_when_the_stream_lost_events_tiers_are_asked_for_anew(surroundings):  # noqa: F811
    engine = surroundings  # noqa: F811
    await engine.open()
    kept, fallen, raised = an_account(Tier.PLUS), an_account(Tier.PLUS), an_account(Tier.STANDARD)
    await publish(engine.redis, told(kept), told(fallen))
    await knows(engine, fallen.user.name, Tier.PLUS)
    await saved(engine)
    await engine.server._feed.save_now()
    await engine.server.stop()
    # What happened meanwhile is not on the stream any more.
    lowered = an_account(Tier.BASIC, version=3, name=fallen.user.name)
    engine.parties.parties.update({each.user.name: each for each in (kept, lowered, raised)})
    await publish(engine.redis, told(lowered), told(raised), told(an_account(Tier.BASIC)))
    await engine.redis.xtrim("events:user", maxlen=1, approximate=False)

    await engine.open()

    await knows(engine, raised.user.name, Tier.STANDARD)
    await knows(engine, fallen.user.name, Tier.BASIC)
    await knows(engine, kept.user.name, Tier.PLUS)


@sqlite_only
async def test_a_cursor_from_before_tiers_were_read_is_not_taken_up(surroundings):  # noqa: F811
    # An older replica, which read no tiers, went past the news of one while an update was under way.
    payer = an_account(Tier.PLUS)
    await publish(surroundings.redis, told(payer))
    past = await streams.latest(surroundings.redis, "user")
    engine = sql.create_engine(surroundings.settings.database_url)  # noqa: F811
    async with engine.begin() as connection:
        await store.save_cursor(connection, "user", None, past)
    await engine.dispose()

    await surroundings.open()

    await knows(surroundings, payer.user.name, Tier.PLUS)


async def test_an_assessment_keeps_the_tier_it_was_made_on_and_back_tests_use_it(engine):  # noqa: F811
    vendor = await engine.a_vendor()
    payer = an_account(Tier.STANDARD)
    await publish(engine.redis, told(payer))
    await knows(engine, payer.user.name, Tier.STANDARD)
    known = a_purchase(payer.user.name, vendor, 7_777_77)
    unknown = a_payment(vendor, minor_units=7_777_77)
    broken = a_payment("users/nobody")
    await engine.assess(known, unknown, broken)
    # What its payer became later does not count.
    await publish(engine.redis, told(an_account(Tier.PLUS, version=3, name=payer.user.name)))
    await knows(engine, payer.user.name, Tier.PLUS)

    kept = [(await engine.kept(each)).payer_tier for each in (known, unknown, broken)]
    assert kept == [
        user_pb2.User.TIER_STANDARD,
        user_pb2.User.TIER_BASIC,
        user_pb2.User.TIER_UNSPECIFIED,
    ]
    for expression, matched in (
        ('payer_tier == "STANDARD"', 1),
        ('payer_tier == "BASIC"', 1),
        ('payer_tier == "PLUS"', 0),
        ("minor_units >= review_minor_units", 1),
    ):
        found = await tried(engine, expression)
        assert (found.matched.payments, found.failed, found.not_comparable) == (matched, 0, 1)


@sqlite_only
async def test_an_assessment_from_before_there_were_tiers_is_of_the_lowest(engine):  # noqa: F811
    payment = a_payment(await engine.a_vendor(), minor_units=6_000_00)
    await engine.assess(payment)
    record = await engine.kept(payment)
    record.ClearField("payer_tier")
    record.ClearField("features")
    async with engine.server._engine.begin() as connection:
        await connection.execute(
            assessments.update()
            .where(assessments.c.payment_id == names.last_id(payment.payment))
            .values(record=record.SerializeToString())
        )

    found = await tried(engine, 'payer_tier == "BASIC" && minor_units >= review_minor_units')

    assert (found.matched.payments, found.not_comparable) == (1, 0)
    kept = await engine.desk("GetAssessment", pb.GetAssessmentRequest(payment=payment.payment))
    assert kept.payer_tier == user_pb2.User.TIER_UNSPECIFIED
    assert len(kept.features) == len(NAMES)


async def tried(engine, expression):  # noqa: F811
    rule = rules_pb.Rule(
        name="DRAFT", expression=expression, action=rules_pb.Rule.ACTION_REVIEW, mode=1, detail="x"
    )
    return await engine.rules("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule))


@sqlite_only
async def test_analysts_write_rules_over_tiers(engine):  # noqa: F811
    said = await engine.rules("ListRules", rules_pb.ListRulesRequest())
    (variable,) = [each for each in said.variables if each.name == "payer_tier"]
    assert (variable.type, variable.unit) == ("string", "tier")
    vendor = await engine.a_vendor()
    payer = an_account(Tier.PLUS)
    await publish(engine.redis, told(payer))
    await knows(engine, payer.user.name, Tier.PLUS)

    await engine.put(
        "BASIC_MAX", 'payer_tier == "BASIC" && minor_units > 1', rules_pb.Rule.ACTION_REVIEW
    )

    found = await engine.assess(
        a_purchase(payer.user.name, vendor, 2), a_payment(vendor, minor_units=2)
    )
    assert [each.decision for each in found] == [ALLOW, REVIEW]


async def test_an_admin_raises_a_tier_and_the_next_payment_over_the_old_limit_passes(
    surroundings,  # noqa: F811
    tls_for,
    valkey_url,
    database_url,
    tmp_path,
):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as users:
        fraud = surroundings
        fraud.settings = replace(fraud.settings, user_address=f"127.0.0.1:{users.port}")
        await fraud.open()
        shop = await users.approved("shop", vendor=True)
        asha = await users.approved("asha")
        await eventually(lambda: shop.name in fraud.server._index._vendors)
        (before,) = await fraud.assess(a_purchase(asha.name, shop.name, 6_000_00))

        request = user_service_pb2.ChangeTierRequest(
            name=asha.name,
            tier=user_pb2.User.TIER_PLUS,
            reason="passport seen",
            version=asha.version,
        )
        await users.users.ChangeTier(request, metadata=await users.admin())
        await knows(fraud, asha.name, Tier.PLUS)
        (after,) = await fraud.assess(a_purchase(asha.name, shop.name, 6_000_00))

        assert [before.decision, after.decision] == [REVIEW, ALLOW]
        # Where neither table nor stream tells of it any more, the user service is asked.
        await fraud.server.stop()
        await fraud.redis.delete("events:user")
        database = sql.create_engine(fraud.settings.database_url)
        async with database.begin() as connection:
            await connection.execute(store.tables.tiers.delete())
            await connection.execute(store.tables.stream_cursors.delete())
        await database.dispose()
        await fraud.open()
        await knows(fraud, asha.name, Tier.PLUS)
