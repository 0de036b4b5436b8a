"""Features on a real Valkey: batches, repeats, late and impossible payments, profiles, labels."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import RedisError

from services import streams
from services.fraud.features.derive import like_its_payer
from services.fraud.features.observation import Label, Observation, ObservedPosition
from services.fraud.features.spec import INDEX, NAMES
from services.fraud.features.store import FeatureStore, without_history

DAY = 86_400.0
T0 = 1_800_000_000.0
HOME = ObservedPosition(47.0, 8.0)
NEAR = ObservedPosition(47.1, 8.1)
FAR = ObservedPosition(48.0, 11.5)

real_valkey = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
async def store(valkey_url) -> AsyncIterator[FeatureStore]:
    client = streams.connect(valkey_url)
    yield FeatureStore(client)
    await client.aclose()


def a_payment(number: int, **changes) -> Observation:
    made = Observation(f"payments/{number}", "users/anna", "users/bakery", 10_00, T0 + number)
    return dataclasses.replace(made, **changes)


def some_payments(seed: int, length: int = 120) -> list[Observation]:
    """Few payers and vendors, much variety, some late, some repeated."""
    rnd = random.Random(seed)
    payments = []
    for number in range(length):
        position = None
        if rnd.random() < 0.8:
            place = rnd.uniform(-90, 90), rnd.choice([-180.0, 180.0, rnd.uniform(-180, 180)])
            position = ObservedPosition(*place, rnd.choice([0.0, 30.0, 5_000.0]))
        payments.append(
            Observation(
                f"payments/{rnd.randrange(number + 1) if rnd.random() < 0.1 else number}",
                f"users/p{rnd.randrange(4)}",
                f"users/v{rnd.randrange(4)}",
                rnd.choice([1, 10_00, 2**63 - 1, rnd.randrange(1, 500_00)]),
                T0 + number * 300 - (rnd.uniform(0, 3 * DAY) if rnd.random() < 0.2 else 0),
                position,
                rnd.choice([None, rnd.uniform(0, 1e6)]),
                rnd.choice(["", "one", "two", "three"]),
                rnd.random() < 0.3,
                rnd.choice([None, rnd.uniform(0, DAY)]),
                rnd.random() < 0.3,
            )
        )
    return payments


async def observe(store: FeatureStore, payments: Sequence[Observation], size: int) -> np.ndarray:
    parts = [
        (await store.observe(payments[start : start + size], now=T0 + 30 * DAY)).matrix
        for start in range(0, len(payments), size)
    ]
    return np.concatenate(parts)


@real_valkey
@given(seed=st.integers(0, 2**32), size=st.integers(2, 64))
async def test_a_batch_is_the_same_payments_one_by_one(valkey_url, seed, size):
    payments = some_payments(seed)
    client = streams.connect(valkey_url)
    results = []
    for each in (1, size):
        await client.flushall()
        results.append(await observe(FeatureStore(client), payments, each))
    await client.aclose()

    assert results[0].tobytes() == results[1].tobytes()
    assert np.isfinite(results[0]).all()


async def test_a_replay_in_another_process_gives_identical_features(store, valkey_url):
    here = await observe(store, some_payments(7), 16)
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()

    program = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[2])\n"
        "import test_fraud_features as t\n"
        "from services import streams\n"
        "async def main():\n"
        "    client = streams.connect(sys.argv[1])\n"
        "    found = await t.observe(t.FeatureStore(client), t.some_payments(7), 16)\n"
        "    sys.stdout.write(found.tobytes().hex())\n"
        "    await client.aclose()\n"
        "asyncio.run(main())\n"
    )
    there = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, valkey_url, __file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
        check=True,
    )

    assert there.stdout == here.tobytes().hex()


@real_valkey
@given(
    gaps=st.lists(st.floats(-4 * DAY, 4 * DAY), min_size=1, max_size=12),
    amounts=st.lists(st.integers(1, 10**9), min_size=12, max_size=12),
)
async def test_counters_are_the_decayed_sums_of_what_came_before(valkey_url, gaps, amounts):
    """Whatever order payments come in, a later one sees each by its age."""
    payments = [
        a_payment(at, amount=amounts[at], occur_time=T0 + gap) for at, gap in enumerate(gaps)
    ]
    last = a_payment(99, occur_time=T0 + 5 * DAY)
    client = streams.connect(valkey_url)
    await client.flushall()
    found = (await FeatureStore(client).observe([*payments, last], now=T0 + 9 * DAY))[-1]
    await client.aclose()

    half_lives = {"1m": 60, "10m": 600, "1h": 3600, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
    for window, half_life in half_lives.items():
        weights = [2 ** (-(last.occur_time - each.occur_time) / half_life) for each in payments]
        total = sum(weight * each.amount for weight, each in zip(weights, payments, strict=True))
        assert found[f"count_{window}"] == pytest.approx(sum(weights), rel=1e-4, abs=1e-30)
        assert found[f"sum_{window}"] == pytest.approx(total, rel=1e-4, abs=1e-20)
    for window, half_life in {"1h": 3600, "1d": DAY, "7d": 7 * DAY, "28d": 28 * DAY}.items():
        count = sum(2 ** (-(last.occur_time - each.occur_time) / half_life) for each in payments)
        assert found[f"vendor_count_{window}"] == pytest.approx(count, rel=1e-4, abs=1e-30)


async def test_a_second_observation_gets_the_first_answer_and_counts_nothing(store):
    first = await store.observe([a_payment(1), a_payment(2)], now=T0)
    again = await store.observe([a_payment(2), a_payment(1), a_payment(2)], now=T0)
    after = await store.observe([a_payment(3)], now=T0)

    assert again.matrix.tobytes() == first.matrix[[1, 0, 1]].tobytes()
    assert after[0]["count_30d"] == pytest.approx(2, rel=1e-4)


async def test_settling_a_payment_twice_teaches_the_profile_once(store):
    payment = a_payment(1)
    await store.observe([payment], now=T0)
    await store.settle([payment, payment], now=T0)
    await store.settle([payment], now=T0)

    found = await store.observe([a_payment(2)], now=T0)

    assert found[0]["payer_payments"] == 1
    assert found[0]["payer_vendor_payments"] == 1


async def test_a_payment_counts_at_once_but_teaches_only_when_let_through(store):
    stopped = a_payment(1, amount=9_000_00, position=FAR, device="phone")
    await store.observe([stopped], now=T0)

    before = (await store.observe([a_payment(2, device="phone", position=HOME)], now=T0))[0]
    await store.settle([stopped], now=T0)
    after = (await store.observe([a_payment(3, device="phone", position=HOME)], now=T0))[0]

    assert before["count_1h"] == pytest.approx(1, rel=1e-3)
    assert (before["amount_to_mean"], before["home_distance_km"]) == (-1, -1)
    assert (before["device_known"], before["payer_vendor_payments"]) == (0, 0)
    assert after["amount_to_mean"] == pytest.approx(10_00 / 9_000_00)
    assert after["home_distance_km"] == pytest.approx(286, abs=3)
    assert (after["device_known"], after["payer_vendor_payments"]) == (1, 1)


async def test_what_was_let_through_rides_along_and_comes_first(store):
    first = a_payment(1)
    await store.observe([first], now=T0)

    found = await store.observe([a_payment(2)], now=T0, settled=[first])

    assert found[0]["payer_payments"] == 1


async def test_one_huge_payment_moves_the_usual_amount_by_little(store):
    usual = [a_payment(number) for number in range(10)]
    huge = a_payment(10, amount=2**63 - 1)
    await store.observe([*usual, huge], now=T0)
    await store.settle([*usual, huge], now=T0)

    found = (await store.observe([a_payment(11)], now=T0))[0]

    # 3 times the mean counts, as one of eleven.
    assert found["amount_to_mean"] == pytest.approx(1 / (1 + 2 / 11), rel=1e-5)
    assert found["amount_to_max"] == pytest.approx(1 / 3, rel=1e-5)


async def home_distance(store: FeatureStore, number: int, position: ObservedPosition) -> float:
    found = await store.observe([a_payment(number, position=position)], now=T0 + DAY)
    return found[0]["home_distance_km"]


async def test_home_follows_small_steps_and_not_jumps(store):
    await store.settle([a_payment(1, position=HOME), a_payment(2, position=NEAR)], now=T0)
    middle = await home_distance(store, 90, HOME)
    await store.settle([a_payment(3, position=FAR)] * 1, now=T0)
    await store.settle([a_payment(4, position=FAR), a_payment(5, position=FAR)], now=T0)

    assert middle == pytest.approx(6.7, abs=0.3)
    assert await home_distance(store, 91, HOME) == middle


async def test_home_moves_after_a_payer_who_moved(store):
    await store.settle([a_payment(1, position=HOME)], now=T0)
    await store.settle([a_payment(10 + each, position=FAR) for each in range(6)], now=T0)

    assert await home_distance(store, 90, FAR) == pytest.approx(0, abs=0.1)


async def test_home_at_the_antimeridian_stays_there(store):
    east, west = ObservedPosition(-17.0, 179.9), ObservedPosition(-17.0, -179.9)
    await store.settle([a_payment(1, position=east), a_payment(2, position=west)], now=T0)

    assert await home_distance(store, 90, east) == pytest.approx(10.6, abs=0.2)
    assert await home_distance(store, 91, west) == pytest.approx(10.6, abs=0.2)


async def test_all_longitudes_meet_at_a_pole(store):
    await store.observe([a_payment(1, position=ObservedPosition(90.0, 0.0))], now=T0)

    found = await store.observe([a_payment(2, position=ObservedPosition(90.0, 180.0))], now=T0)

    assert found[0]["travel_km"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "position",
    [
        ObservedPosition(math.nan, 0.0),
        ObservedPosition(0.0, math.inf),
        ObservedPosition(90.1, 0.0),
        ObservedPosition(0.0, -180.1),
        ObservedPosition(0.0, 0.0, math.nan),
        ObservedPosition(0.0, 0.0, -1.0),
    ],
)
async def test_an_impossible_position_is_none_and_harms_nothing(store, position):
    first = a_payment(1, position=HOME)
    await store.observe([first], now=T0, settled=[first])
    wrong = a_payment(2, position=position, site_distance_meters=math.nan)
    found = await store.observe([wrong], now=T0)
    await store.settle([wrong], now=T0)

    later = await store.observe([a_payment(3, position=HOME)], now=T0)

    assert found[0]["position_missing"] == 1
    assert found[0]["home_distance_km"] == found[0]["travel_km"] == -1
    assert np.isfinite(found.matrix).all()
    assert later[0]["home_distance_km"] == later[0]["travel_km"] == 0


@pytest.mark.parametrize("occur_time", [T0 + 400 * DAY, math.inf])
async def test_a_clock_far_ahead_ages_nothing(store, occur_time):
    await store.observe([a_payment(1), a_payment(2, occur_time=occur_time)], now=T0)

    found = await store.observe([a_payment(3)], now=T0)

    assert found[0]["count_1d"] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("occur_time", [math.nan, -math.inf, -1.0])
async def test_a_time_that_cannot_be_is_long_ago(store, occur_time):
    await store.observe([a_payment(1)], now=T0)

    found = await store.observe([a_payment(2, occur_time=occur_time)], now=T0)
    after = await store.observe([a_payment(3)], now=T0)

    assert np.isfinite(found.matrix).all()
    assert found[0]["count_1d"] == 0
    assert after[0]["count_1d"] == pytest.approx(1, rel=1e-3)


async def test_a_late_batch_trips_no_counter_of_now(store):
    late = [a_payment(100 + each, occur_time=T0 - 3 * DAY + each * 3_600) for each in range(20)]
    await store.observe([a_payment(1)], now=T0)
    found = await store.observe(late, now=T0)
    now = (await store.observe([a_payment(2)], now=T0))[0]

    assert max(each["count_1m"] for each in found) < 0.01
    assert max(each["count_10m"] for each in found) < 0.1
    assert now["count_10m"] == pytest.approx(1, rel=0.01)
    assert now["count_1h"] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("order", ["sorted", "reversed", "behind a newer batch"])
async def test_a_burst_in_a_late_batch_is_seen_in_event_time(store, order):
    burst = [a_payment(100 + each, occur_time=T0 - 3 * DAY + each * 5) for each in range(12)]
    newer = [a_payment(200 + each, occur_time=T0 - DAY + each * 3_600) for each in range(5)]
    await store.observe([a_payment(1)], now=T0)
    if order == "behind a newer batch":
        await store.observe(newer, now=T0)
    last = a_payment(150, occur_time=T0 - 3 * DAY + 60)

    payments = [*(burst[::-1] if order == "reversed" else burst), last]
    found = await store.observe(payments, now=T0)

    assert found[-1]["count_1m"] > 8
    assert found[-1]["sum_1m"] == pytest.approx(found[-1]["count_1m"] * 10_00, rel=1e-4)
    assert found[-1]["vendor_count_1h"] == 12


async def test_travel_is_measured_either_way_in_time(store):
    await store.observe([a_payment(1, position=HOME)], now=T0)

    late = a_payment(2, position=FAR, occur_time=T0 + 1 - 3_600)
    found = await store.observe([late], now=T0)

    assert found[0]["travel_km_per_hour"] == pytest.approx(286, abs=3)


async def test_labels_feed_vendor_and_payer(store):
    found = (await store.observe([a_payment(1)], now=T0))[0]
    assert (found["vendor_days_since_fraud"], found["payer_days_since_fraud"]) == (-1, -1)

    await store.label(
        [
            Label("users/anna", "users/bakery", fraud=True, occur_time=T0 - 2 * DAY),
            Label("users/bert", "users/bakery", fraud=True, occur_time=T0 - DAY),
            Label("users/bert", "users/bakery", fraud=False, occur_time=T0 - DAY / 2),
        ]
    )
    found = (await store.observe([a_payment(2, occur_time=T0)], now=T0))[0]

    assert found["vendor_days_since_fraud"] == pytest.approx(1)
    assert found["vendor_days_since_first_fraud"] == pytest.approx(2)
    assert found["vendor_clean_since_fraud"] == 1
    assert found["vendor_fraud_7d"] == pytest.approx(2 ** (-2 / 7) + 2 ** (-1 / 7), rel=1e-5)
    assert found["payer_days_since_fraud"] == pytest.approx(2)
    assert found["payer_fraud_14d"] == pytest.approx(2 ** (-2 / 14), rel=1e-5)


async def test_ten_honest_payments_end_a_run_of_fraud(store):
    honest = [
        Label("users/bert", "users/bakery", fraud=False, occur_time=T0 + n) for n in range(10)
    ]
    await store.label(
        [Label("users/anna", "users/bakery", fraud=True, occur_time=T0 - DAY), *honest]
    )
    await store.label([Label("users/anna", "users/bakery", fraud=True, occur_time=T0 + DAY)])

    found = await store.observe([a_payment(1, occur_time=T0 + 2 * DAY)], now=T0 + 2 * DAY)

    assert found[0]["vendor_days_since_first_fraud"] == pytest.approx(1)
    assert found[0]["vendor_clean_since_fraud"] == 0


def a_fraud(at: float, *, like_payer: bool) -> Label:
    return Label("users/anna", "users/bakery", fraud=True, occur_time=at, like_payer=like_payer)


async def test_frauds_like_their_payers_make_a_run_that_one_honest_payment_ends(store):
    async def run_at_vendor(number: int) -> tuple[float, float, float]:
        found = (await store.observe([a_payment(number, occur_time=T0)], now=T0))[0]
        return tuple(
            found[name]
            for name in ("vendor_fraud_run", "vendor_days_in_run", "vendor_own_fraud_28d")
        )

    assert await run_at_vendor(1) == (0, -1, 0)

    # The second one says that its payer was robbed, and nothing about the vendor.
    await store.label(
        [
            a_fraud(T0 - 3 * DAY, like_payer=True),
            a_fraud(T0 - 2 * DAY, like_payer=False),
            a_fraud(T0 - DAY, like_payer=True),
        ]
    )
    own = 2 ** (-3 / 28) + 2 ** (-1 / 28)
    assert await run_at_vendor(2) == pytest.approx((2, 3, own), rel=1e-5)

    # What was honest before the run does not end it, however late it becomes known.
    honest = Label("users/bert", "users/bakery", fraud=False, occur_time=T0 - 4 * DAY)
    await store.label([honest])
    assert await run_at_vendor(3) == pytest.approx((2, 3, own), rel=1e-5)

    await store.label([dataclasses.replace(honest, occur_time=T0 - DAY / 2)])
    assert await run_at_vendor(4) == pytest.approx((0, -1, own), rel=1e-5)


@pytest.mark.parametrize(
    ("known", "like"),
    [
        ({}, True),
        ({"amount_to_mean": 2.5, "home_distance_km": 50.0}, True),
        ({"amount_to_mean": 2.6, "home_distance_km": 3.0}, False),
        ({"amount_to_mean": 1.0, "home_distance_km": 50.1}, False),
    ],
)
def test_a_payment_is_like_its_payer_unless_far_more_or_far_away(known, like):
    features = [-1.0] * len(NAMES)
    for name, value in known.items():
        features[INDEX[name]] = value

    assert like_its_payer(features) is like


async def test_what_an_earlier_version_kept_is_still_read(store, valkey_url):
    # As kept before runs were: last and first fraud a day ago, one fraud of one label.
    kept = struct.pack("<dddfffff", T0 - DAY, T0 - DAY, T0 - DAY, 1, 1, 1, 1, 0)
    with redis.Redis.from_url(valkey_url) as client:
        client.set("{fraud}:vl:users/bakery", kept)
        found = (await store.observe([a_payment(1, occur_time=T0)], now=T0))[0]
        # Nor is an answer repeated that said less.
        (answer_key,) = client.keys("{fraud}:oi:*")
        client.set(answer_key, client.get(answer_key)[:-16])
    again = (await store.observe([a_payment(1, occur_time=T0)], now=T0))[0]
    await store.label([a_fraud(T0 - DAY / 2, like_payer=True)])
    later = (await store.observe([a_payment(2, occur_time=T0)], now=T0))[0]

    assert found["vendor_days_since_fraud"] == again["vendor_days_since_fraud"] == 1
    assert (found["vendor_fraud_run"], found["vendor_days_in_run"]) == (0, -1)
    assert (later["vendor_fraud_run"], later["vendor_days_in_run"]) == (1, 0.5)
    assert later["vendor_fraud_28d"] == pytest.approx(2 ** (-1 / 28) + 2 ** (-0.5 / 28), rel=1e-5)


async def test_the_oldest_of_too_many_vendors_and_devices_is_forgotten(store):
    settled = [
        a_payment(number, vendor=f"users/v{number}", device=f"d{number}") for number in range(300)
    ]
    await store.settle(settled, now=T0)

    old, new = await store.observe(
        [
            a_payment(900, vendor="users/v0", device="d0"),
            a_payment(901, vendor="users/v299", device="d299"),
        ],
        now=T0 + DAY,
    )

    assert (old["payer_vendor_payments"], old["device_known"], old["payer_devices"]) == (0, 0, 8)
    assert (new["payer_vendor_payments"], new["device_known"]) == (1, 1)


async def test_what_a_payer_costs_in_memory_is_bounded(store, valkey_url):
    payments = [
        a_payment(number, vendor=f"users/v{number}", device=f"d{number}") for number in range(400)
    ]
    await store.observe(payments, now=T0, settled=payments)
    await store.label([Label("users/anna", "users/v1", fraud=True, occur_time=T0)])

    with redis.Redis.from_url(valkey_url) as client:
        keys = [f"{{fraud}}:{kind}:users/anna" for kind in ("p", "pv", "pd", "pl")]
        sizes = [client.memory_usage(key) for key in keys]
        lifetimes = [client.ttl(key) for key in client.scan_iter("*")]

    assert sum(sizes) < 3_500
    assert min(lifetimes) > 0


async def test_without_valkey_it_says_so_and_the_payment_itself_is_known():
    client = streams.connect("redis://127.0.0.1:1/0")
    with pytest.raises(RedisError):
        await FeatureStore(client).observe([a_payment(1)], now=T0)
    await client.aclose()

    found = without_history([a_payment(1, amount=5, offline=True)], now=T0)[0]

    assert (found["amount"], found["offline"], found["amount_to_mean"]) == (5, 1, -1)
    assert tuple(found.as_dict()) == NAMES


async def test_without_history_is_what_a_new_store_says(store):
    payments = [some_payments(3)[0], a_payment(1, position=FAR, device="new")]
    payments[1] = dataclasses.replace(payments[1], payer="users/carl", vendor="users/other")

    known = await store.observe(payments, now=T0 + 30 * DAY)
    unknown = without_history(payments, now=T0 + 30 * DAY)

    differs = {NAMES[at] for at in np.flatnonzero((known.matrix != unknown.matrix).any(axis=0))}
    assert differs == {"device_known"}  # whether an id is new is history


async def test_nameless_parties_are_refused_before_anything_is_counted(store):
    with pytest.raises(ValueError, match="1 to 200 bytes"):
        await store.observe([a_payment(1), a_payment(2, payer="")], now=T0)

    found = await store.observe([a_payment(3)], now=T0)

    assert found[0]["count_30d"] == 0
