"""Back-tests of rules and models over mutual TLS: what they change, and what they cannot be tried on."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from services import names
from services.fraud import drafts, wire
from services.fraud.features.spec import FEATURES, FEATURES_VERSION, NAMES
from services.fraud.model.scorer import SHIPPED, Scorer
from services.fraud.store import feature_lists
from services.fraud.store.tables import assessments
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tests.review_desk import Person
from tests.test_fraud_engine import SHADOW, engine, sqlite_only, surroundings  # noqa: F401
from tests.test_fraud_service import ALLOW, DECLINE, MYSORE, REVIEW, a_payment
from tests.user_service import reason_of, refusal_of

Scores = rules_pb.BacktestModelResponse.Scores
ALWAYS, NEVER = (50.0, 99.0), (0.0, 49.0)


def a_draft(folder, name, scores, **changes):
    """A draft that gives every payment a score between two."""
    made = shutil.copytree(SHIPPED, folder / name)
    said = json.loads((made / "model.json").read_text())
    margins = said["calibration"]["margins"]
    calibration = {
        "margins": margins,
        "scores": np.linspace(*scores, num=len(margins)).tolist(),
    }
    said |= {"version": f"{name} of today", "calibration": calibration} | changes
    (made / "model.json").write_text(json.dumps(said))
    return made


@pytest.fixture
async def desk(surroundings, tmp_path):  # noqa: F811
    """A fraud service with two drafts, one of which judges."""
    a_draft(tmp_path, "always", ALWAYS)
    a_draft(tmp_path, "never", NEVER)
    surroundings.settings = replace(
        surroundings.settings, drafts_directory=tmp_path, model_directory=tmp_path / "never"
    )
    await surroundings.open()
    surroundings.drafts = tmp_path
    return surroundings


def listen_to_the_model(engine, *, to_strangers=True):  # noqa: F811
    engine.server._guard._newcomers = 0.0 if to_strangers else 1.0


async def keep_on(engine, payment, features, version="older"):  # noqa: F811
    """Have an assessment kept as an earlier release would have, on its own list of features."""
    kept = await engine.kept(payment)
    payment_id = names.last_id(payment.payment)
    values = {each.name: each.value for each in kept.features}
    async with engine.server._engine.begin() as connection:
        row = (
            await connection.execute(
                sa.select(assessments).where(assessments.c.payment_id == payment_id)
            )
        ).one()
        record = pb.GetAssessmentResponse.FromString(row.record)
        record.features_version = version
        head = row.features[: len(row.features) - 4 * len(wire.unpack_features(row.features))]
        packed = np.array([values.get(each.name, 7.0) for each in features], "<f4").tobytes()
        await connection.execute(
            sa.update(assessments)
            .where(assessments.c.payment_id == payment_id)
            .values(record=record.SerializeToString(), features=head + packed)
        )
        if version and await feature_lists.find(connection, version) is None:
            await feature_lists.insert(connection, version, features)


async def try_rule(engine, expression, action=rules_pb.Rule.ACTION_REVIEW):  # noqa: F811
    rule = rules_pb.Rule(name="DRAFT", expression=expression, action=action, mode=1, detail="x")
    return await engine.rules("BacktestRule", rules_pb.BacktestRuleRequest(rule=rule))


async def try_model(engine, model, **asked):  # noqa: F811
    return await engine.rules("BacktestModel", rules_pb.BacktestModelRequest(model=model, **asked))


def changes(found):
    return {
        (getattr(each, "from"), each.to, each.reason, each.new_reason): each
        for each in found.changes
    }


# An earlier release knew no `amount_z`, meant something else by `count_1h`, and had another order.
OLDER = (
    replace(FEATURES[0], name="gone_since"),
    *(
        replace(each, unit="cows") if each.name == "count_1h" else each
        for each in reversed(FEATURES)
        if each.name != "amount_z"
    ),
)


async def test_a_rule_is_tried_on_older_features_only_where_it_needs_none_they_lack(engine):  # noqa: F811
    vendor = await engine.a_vendor()
    old, new = a_payment(vendor, minor_units=77), a_payment(vendor, minor_units=77)
    await engine.assess(old, new)
    await keep_on(engine, old, OLDER)

    known = await try_rule(engine, "amount == 77.0")
    lacking = await try_rule(engine, "amount == 77.0 && amount_z < 100.0")
    otherwise = await try_rule(engine, "amount == 77.0 && count_1h >= 0.0")

    assert (known.matched.payments, known.not_comparable) == (2, 0)
    for found in (lacking, otherwise):
        assert (found.tried.payments, found.matched.payments) == (1, 1)
        assert (found.not_comparable, found.failed) == (1, 0)


@sqlite_only
async def test_a_variable_that_is_read_from_a_feature_needs_it(engine):  # noqa: F811
    payment = a_payment(await engine.a_vendor(), MYSORE)
    await engine.assess(payment)
    without = [each for each in FEATURES if each.name != "vendor_distance_excess_km"]
    await keep_on(engine, payment, without)

    assert (await try_rule(engine, "vendor_usual_km >= 0.0")).not_comparable == 1
    assert (await try_rule(engine, "beyond_limit_m > 0.0")).matched.payments == 1


@sqlite_only
@pytest.mark.parametrize(
    ("features", "version"), [(FEATURES, ""), (FEATURES[:-2], FEATURES_VERSION)]
)
async def test_figures_of_which_nobody_knows_what_they_are_are_not_interpreted(
    desk, features, version
):
    payment = a_payment(await desk.a_vendor())
    await desk.assess(payment)
    await keep_on(desk, payment, features, version)

    found = await try_rule(desk, "payer_clean_since_fraud < 100.0")

    assert (found.tried.payments, found.not_comparable) == (0, 1)
    assert (await try_model(desk, "always")).not_comparable == 1


@sqlite_only
async def test_figures_without_a_list_are_not_shown(engine):  # noqa: F811
    payment = a_payment(await engine.a_vendor())
    await engine.assess(payment)
    await keep_on(engine, payment, FEATURES, "")

    assert list((await engine.kept(payment)).features) == []


async def test_an_assessment_shows_the_features_of_its_own_time(engine):  # noqa: F811
    vendor = await engine.a_vendor()
    old, new = a_payment(vendor, minor_units=77), a_payment(vendor, minor_units=77)
    await engine.assess(old, new)
    await keep_on(engine, old, OLDER)

    older, newer = await engine.kept(old), await engine.kept(new)

    assert [each.name for each in newer.features] == list(NAMES)
    assert newer.features_version == FEATURES_VERSION
    assert [each.name for each in older.features] == [each.name for each in OLDER]
    assert older.features[0].value == 7.0
    assert {each.name: each.value for each in older.features}["amount"] == 77.0
    assert {each.name: each.unit for each in older.features}["count_1h"] == "cows"


async def test_a_replica_reads_the_list_of_one_that_is_ahead(engine):  # noqa: F811
    ahead = engine.server
    payment = a_payment(await engine.a_vendor())
    await engine.assess(payment)
    await ahead.recorder.write_now()
    await engine.open()
    await keep_on(engine, payment, OLDER, "newer")

    assert (await engine.kept(payment)).features[0].name == "gone_since"


@sqlite_only
async def test_what_could_not_be_true_is_counted_as_not_comparable(desk):
    vendor = await desk.a_vendor()
    nowhere = a_payment(vendor, (91.0, 0.0))
    await desk.assess(nowhere, a_payment(vendor))
    await desk.server.recorder.write_now()

    rule, model = await try_rule(desk, "amount > 0.0"), await try_model(desk, "never")

    for found in (rule, model):
        assert (found.tried.payments, found.not_comparable) == (1, 1)


async def test_a_draft_model_says_what_it_would_have_held_and_what_it_is_worth(desk):
    vendor = await desk.a_vendor()
    listen_to_the_model(desk)
    bad, fine, unknown, far, huge = (
        a_payment(vendor, minor_units=70),
        a_payment(vendor, minor_units=7),
        a_payment(vendor, minor_units=1),
        a_payment(vendor, MYSORE, minor_units=1),
        a_payment(vendor, minor_units=100_000_01),
    )
    unknown.amount.currency_code = "USD"
    await desk.assess(bad, fine, unknown, far, huge)
    await desk.label(bad, fraud=True)
    await desk.label(fine, fraud=False)

    found = await try_model(desk, "always")

    assert found.model_version == "always of today"
    assert found.tried == pb.Outcomes(payments=5, fraud=1, honest=1)
    assert (found.silent, found.not_comparable) == (0, 0)
    # What is held or refused already stays as it is.
    (change,) = found.changes
    assert list(changes(found)) == [(ALLOW, REVIEW, "", "MODEL")]
    assert change.outcomes == pb.Outcomes(payments=3, fraud=1, honest=1)
    assert {each.currency_code: each for each in change.worth} == {
        "INR": rules_pb.BacktestModelResponse.Worth(
            currency_code="INR", minor_units=77, fraud_minor_units=70, honest_minor_units=7
        ),
        "USD": rules_pb.BacktestModelResponse.Worth(currency_code="USD", minor_units=1),
    }
    assert set(change.examples) == {bad.payment, fine.payment, unknown.payment}
    by = {each.of: each for each in found.scores}
    assert [by[of].draft.payments for of in (Scores.OF_ALL, Scores.OF_FRAUD, Scores.OF_HONEST)] == [
        5,
        1,
        1,
    ]
    spread = by[Scores.OF_ALL].draft
    assert 50 <= spread.mean <= 99
    assert 50 <= spread.p50 <= spread.p90 <= spread.p99 == spread.max <= 99
    kept = [(await desk.kept(each)).model_score for each in (bad, fine, unknown, far, huge)]
    assert by[Scores.OF_ALL].before.mean == pytest.approx(sum(kept) / 5)
    assert by[Scores.OF_ALL].before.p50 == sorted(kept)[2]
    assert (await try_model(desk, "never")).changes == []


@sqlite_only
async def test_a_draft_model_says_what_it_would_have_let_pass(desk):
    desk.settings = replace(desk.settings, model_directory=desk.drafts / "always")
    await desk.open()
    vendor = await desk.a_vendor()
    await desk.put("NOTED", "minor_units == 5", rules_pb.Rule.ACTION_NOTE)
    await desk.put("PASSES", "minor_units == 6", rules_pb.Rule.ACTION_ALLOW)
    await desk.put("TRIED", "minor_units == 4", rules_pb.Rule.ACTION_REVIEW, mode=SHADOW)
    listen_to_the_model(desk)
    payments = {
        "plain": a_payment(vendor, minor_units=4),
        "noted": a_payment(vendor, minor_units=5),
        "allowed": a_payment(vendor, minor_units=6),
        "far": a_payment(vendor, MYSORE, minor_units=1),
    }
    listed = a_payment(vendor, minor_units=1)
    entry = rules_pb.Entry(list=rules_pb.Entry.LIST_DENY, entity=listed.payer, reason="so")
    entry.expire_time.FromSeconds(2**32)
    await desk.rules("PutEntry", rules_pb.PutEntryRequest(entry=entry))
    answers = await desk.assess(*payments.values(), listed)
    assert [each.decision for each in answers] == [REVIEW, REVIEW, ALLOW, REVIEW, DECLINE]
    await desk.server.recorder.write_now()

    found = await try_model(desk, "never")

    assert found.tried.payments == 5
    assert {said: list(each.examples) for said, each in changes(found).items()} == {
        (REVIEW, ALLOW, "MODEL", ""): [payments["plain"].payment],
        (REVIEW, ALLOW, "MODEL", "NOTED"): [payments["noted"].payment],
    }
    # The model that judged them would change nothing of what it said.
    assert (await try_model(desk, "always")).changes == []


@sqlite_only
async def test_where_the_model_was_not_listened_to_a_draft_is_not_either(desk):
    vendor = await desk.a_vendor()
    listen_to_the_model(desk, to_strangers=False)
    payment = a_payment(vendor)
    await desk.assess(payment)
    assert (await desk.kept(payment)).model_silent

    found = await try_model(desk, "always")

    assert (found.tried.payments, found.silent, len(found.changes)) == (1, 1, 0)


async def test_a_draft_model_is_not_tried_on_other_features_nor_without_history(desk):
    vendor = await desk.a_vendor()
    listen_to_the_model(desk)
    old, lost, fine = (a_payment(vendor) for _ in range(3))
    await desk.assess(old, fine)
    await keep_on(desk, old, OLDER)
    desk.server._assessor._ask_again_at = float("inf")  # as while Valkey is away
    await desk.assess(lost)
    await desk.server.recorder.write_now()

    found = await try_model(desk, "always")

    assert (found.tried.payments, found.not_comparable) == (1, 2)
    assert [list(each.examples) for each in found.changes] == [[fine.payment]]


@sqlite_only
async def test_amounts_at_the_edge_of_int64_do_not_overflow(desk):
    desk.settings = replace(
        desk.settings,
        model_directory=desk.drafts / "always",
        limits=replace(
            desk.settings.limits, review_minor_units=2**63 - 1, hard_minor_units=2**63 - 1
        ),
    )
    await desk.open()
    await desk.put("AMOUNT_OVER_REVIEW_LIMIT", "false", rules_pb.Rule.ACTION_REVIEW, version=1)
    vendor = await desk.a_vendor()
    listen_to_the_model(desk)
    await desk.assess(a_payment(vendor, minor_units=2**63 - 1), a_payment(vendor, minor_units=9))
    await desk.server.recorder.write_now()

    (change,) = (await try_model(desk, "never")).changes

    assert change.outcomes.payments == 2
    assert change.worth[0].minor_units == 2**63 - 1


@sqlite_only
async def test_only_the_newest_of_a_time_are_tried(desk):
    vendor = await desk.a_vendor()
    listen_to_the_model(desk)
    for _ in range(3):
        await desk.assess(a_payment(vendor))
        await desk.server.recorder.write_now()
    first, *_ = (await try_model(desk, "always")).changes
    none = rules_pb.BacktestModelRequest(model="always")
    none.end_time.FromSeconds(1_000_000_000)

    newest = await try_model(desk, "always", payments_max=2)
    earlier = await desk.rules("BacktestModel", none)

    assert list(newest.changes[0].examples) == list(first.examples)[:2]
    assert newest.tried.payments == 2
    assert (earlier.tried.payments, list(earlier.scores)) == (0, [])


@sqlite_only
async def test_payments_are_judged_while_a_draft_is_tried(desk, monkeypatch):
    vendor = await desk.a_vendor()
    await desk.assess(*(a_payment(vendor) for _ in range(20)))
    await desk.server.recorder.write_now()
    scoring, released, score = threading.Event(), threading.Event(), Scorer.score

    def slowly(scorer, matrix):
        if scorer.version == "always of today":
            scoring.set()
            assert released.wait(20)
        return score(scorer, matrix)

    monkeypatch.setattr(Scorer, "score", slowly)
    trying = asyncio.ensure_future(try_model(desk, "always"))
    next_one = asyncio.ensure_future(try_rule(desk, "amount > 0.0"))
    await asyncio.to_thread(scoring.wait, 20)

    (found,) = await desk.assess(a_payment(vendor))

    assert found.decision == ALLOW
    assert not trying.done()
    assert not next_one.done(), "one back-test at a time"
    released.set()
    assert (await trying).tried.payments == 20
    assert (await next_one).matched.payments >= 20


def spoilt(spoil):
    return lambda folder: spoil(a_draft(folder, "bad", ALWAYS))


def cut_off(made):
    trees = (made / "model.onnx").read_bytes()
    (made / "model.onnx").write_bytes(trees[: len(trees) // 2])


UNUSABLE = {
    "no trees": (spoilt(lambda made: (made / "model.onnx").unlink()), "bad: FileNotFoundError"),
    "empty": (lambda folder: (folder / "bad").mkdir(), "bad: FileNotFoundError"),
    "half": (spoilt(cut_off), "is not the one model.json speaks of"),
    "no json": (spoilt(lambda made: (made / "model.json").write_text("{")), "JSONDecodeError"),
    "other features": (
        lambda folder: a_draft(folder, "bad", ALWAYS, features_version="other"),
        "trained for features other",
    ),
}


@sqlite_only
@pytest.mark.parametrize(("spoil", "problem"), UNUSABLE.values(), ids=UNUSABLE)
async def test_a_draft_that_cannot_be_used_is_refused_with_why(desk, spoil, problem):
    spoil(desk.drafts)

    refusal = await refusal_of(try_model(desk, "bad"))

    assert refusal.reason == "MODEL_UNUSABLE"
    assert refusal.metadata["model"] == "bad"
    assert problem in refusal.metadata["problem"]
    assert str(desk.drafts) not in refusal.metadata["problem"]
    # The model that serves is none the worse for it.
    assert desk.server._scorer.available


@sqlite_only
async def test_a_draft_that_would_take_the_memory_of_serving_is_refused(desk, monkeypatch):
    monkeypatch.setattr(drafts, "_BYTES_MAX", 1_000)

    refusal = await refusal_of(try_model(desk, "always"))

    assert refusal.reason == "MODEL_UNUSABLE"
    assert "a draft may have 1,000" in refusal.metadata["problem"]


@sqlite_only
async def test_a_draft_nobody_made_is_refused(desk):
    (desk.drafts / "file").write_text("no folder")

    for name in ("other", "file"):
        assert await reason_of(try_model(desk, name)) == "MODEL_NOT_FOUND"


@sqlite_only
async def test_a_deployment_without_drafts_says_so_first(engine):  # noqa: F811
    assert await reason_of(try_model(engine, "nowhere")) == "MODEL_DRAFTS_UNSET"


@sqlite_only
@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../always", "always/", "/etc", "a/b", ".hidden", "a\\b", "a\0", "é", "a" * 65],
)
async def test_a_draft_is_named_by_a_plain_name_only(desk, name):
    assert await reason_of(try_model(desk, name)) == "FIELDS_INVALID"


@sqlite_only
async def test_only_admins_may_try_a_draft(desk):
    desk.analyst = Person("USER")

    assert await reason_of(try_model(desk, "always")) == "CALLER_NOT_ALLOWED"
