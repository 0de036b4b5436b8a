"""The benchmark's arithmetic: what a load came to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import figures
from bench.figures import latency_ms, overload, percentile
from bench.load import Outcome, Stretch
from services.payment.domain.payment import State

OK, EXHAUSTED, UNAVAILABLE, NONE = 0, 8, 14, -1


def an_outcome(stretches, calls, *, ended=None, not_made=None, cpu=None):
    """`calls`: (stretch, due, latency, status, state)."""
    last = max((due + (latency or 0) for _, due, latency, _, _ in calls), default=0.0)
    idle = {"client": 0.0, "machine": 0.0}
    return Outcome(
        request_ids=[str(number) for number in range(len(calls))],
        payers=[0] * len(calls),
        vendors=[0] * len(calls),
        amounts=[1] * len(calls),
        stretches=[call[0] for call in calls],
        dues=[call[1] for call in calls],
        lags=[0.0] * len(calls),
        latencies=[call[2] for call in calls],
        statuses=[call[3] for call in calls],
        states=[call[4] for call in calls],
        not_made=not_made or [0] * len(stretches),
        cpu_seconds=cpu or [idle] * (len(stretches) + 1),
        ended=last if ended is None else ended,
    )


def paid(stretch, due, latency=0.01, state=State.SUCCESS):
    return (stretch, due, latency, OK, state)


def refused(stretch, due, latency=0.001, status=EXHAUSTED):
    return (stretch, due, latency, status, 0)


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0.001, 1))
def test_a_percentile_is_a_value_that_enough_do_not_exceed_and_the_smallest_such(values, share):
    ordered = sorted(values)

    found = percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered)
    smaller = [value for value in ordered if value < found]
    assert len(smaller) < share * len(ordered)


def test_percentiles_are_given_in_milliseconds():
    found = latency_ms([number / 1000 for number in range(1, 101)])

    assert found == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 100.0, "max": 100.0}


def test_percentiles_of_nothing_are_nothing():
    assert set(latency_ms([]).values()) == {0.0}


def test_only_the_stretch_that_is_asked_for_counts():
    stretches = [Stretch("warm-up", 1.0, rate=2), Stretch("online", 2.0, rate=2)]
    calls = [paid(0, 0.0, 9.0), paid(0, 0.5, 9.0), *(paid(1, 1 + n / 2) for n in range(4))]

    found = figures.figures(an_outcome(stretches, calls), stretches, 1)

    assert found.offered == 4
    assert found.settled == 4
    assert found.settled_per_second == pytest.approx(2.0)
    assert found.latencies == [0.01] * 4


def test_the_rate_counts_until_the_last_answer_not_until_the_last_call():
    stretches = [Stretch("online", 1.0, rate=10)]
    calls = [paid(0, n / 10, latency=4.1) for n in range(10)]

    found = figures.figures(an_outcome(stretches, calls), stretches, 0)

    assert found.settled_per_second == pytest.approx(10 / 5.0)


def test_success_and_flagged_are_settled_and_failed_is_not():
    stretches = [Stretch("online", 1.0, rate=3)]
    states = [State.SUCCESS, State.FLAGGED, State.FAILED]
    calls = [paid(0, n / 3, state=state) for n, state in enumerate(states)]

    found = figures.figures(an_outcome(stretches, calls), stretches, 0)

    assert found.accepted == 3
    assert found.settled == 2
    assert found.states == {"SUCCESS": 1, "FLAGGED": 1, "FAILED": 1}


def test_refusals_do_not_make_latency_look_better():
    stretches = [Stretch("online", 1.0, rate=4)]
    calls = [
        paid(0, 0.0, 0.5),
        refused(0, 0.25),
        refused(0, 0.5),
        refused(0, 0.75, status=UNAVAILABLE),
    ]

    found = figures.figures(an_outcome(stretches, calls), stretches, 0)

    assert found.latencies == [0.5]
    assert found.refused == [0.001] * 3
    assert found.statuses == {"OK": 1, "RESOURCE_EXHAUSTED": 2, "UNAVAILABLE": 1}


def test_a_call_without_an_answer_counts_with_as_long_as_it_has_waited():
    stretches = [Stretch("online", 1.0, rate=2)]
    calls = [paid(0, 0.0), (0, 0.5, None, NONE, 0)]

    found = figures.figures(an_outcome(stretches, calls, ended=16.5), stretches, 0)

    assert sorted(found.latencies) == [0.01, 16.0]
    assert found.statuses == {"OK": 1, "NO_ANSWER": 1}


def test_a_call_that_was_due_and_never_made_counts_like_one_without_an_answer():
    stretches = [Stretch("warm-up", 1.0, rate=1), Stretch("online", 1.0, rate=4)]
    calls = [paid(0, 0.0), paid(1, 1.0), paid(1, 1.25)]
    outcome = an_outcome(stretches, calls, ended=11.5, not_made=[0, 2])

    found = figures.figures(outcome, stretches, 1)

    assert found.offered == 4
    assert sorted(found.latencies) == pytest.approx([0.01, 0.01, 9.75, 10.0])
    assert found.settled == 2


def test_cpu_is_that_of_the_stretch_by_service_and_per_accepted_payment():
    stretches = [Stretch("warm-up", 1.0, rate=1), Stretch("online", 2.0, rate=2)]
    start = {"payment": 1.0, "payment-2": 2.0, "envoy": 3.0, "client": 0.5, "machine": 90.0}
    later = {"payment": 2.0, "payment-2": 2.5, "envoy": 3.0, "client": 0.6, "machine": 95.0}
    end = {"payment": 2.4, "payment-2": 2.9, "envoy": 3.2, "client": 0.8, "machine": 97.0}
    calls = [paid(0, 0.0), paid(1, 1.0), paid(1, 1.5), refused(1, 2.0), refused(1, 2.5)]
    outcome = an_outcome(stretches, calls, cpu=[start, later, end])

    found = figures.figures(outcome, stretches, 1)

    cost = found.cpu_us_per_payment()
    assert cost == pytest.approx({"payment": 400_000, "envoy": 100_000, "client": 100_000})
    assert next(iter(cost)) == "payment", "the greatest first"
    assert found.cores_used == pytest.approx(1.2 / 2)
    assert found.cores_of_others == pytest.approx((2.0 - 1.2) / 2)


STRETCHES = [
    Stretch("before", 1.0, rate=10),
    Stretch("during", 1.0, rate=40),
    Stretch("after", 3.0, rate=10),
]


def an_overload(after):
    before = [paid(0, n / 10) for n in range(10)]
    during = [paid(1, 1 + n / 40, 0.5) if n % 4 == 0 else refused(1, 1 + n / 40) for n in range(40)]
    late = [call(2, 2 + n / 10) for n, call in zip(range(30), after, strict=True)]
    outcome = an_outcome(STRETCHES, before + during + late)
    return overload(outcome, STRETCHES, before=0, during=1, after=2)


def slowly(stretch, due):
    return paid(stretch, due, 0.5)


def test_an_overload_tells_who_was_refused_and_how_the_others_fared():
    found = an_overload([paid] * 30)

    assert found["refused_share"] == 0.75
    assert found["other_errors_share"] == 0.0
    assert found["latency_ms"]["p95"] == 500.0
    assert found["refused_latency_ms"]["p95"] == 1.0
    assert found["p95_before_ms"] == 10.0
    assert found["recovery_seconds"] == 0.0


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ([slowly] * 7 + [paid] * 23, 1.0),
        ([refused] + [paid] * 29, 0.5),
        ([paid] * 5 + [slowly] * 5 + [paid] * 20, 1.0),
        ([slowly] * 30, None),
        ([slowly] * 25 + [paid] * 5, None),
    ],
    ids=["slow at first", "one refused", "well too shortly", "never", "too late to be sure"],
)
def test_it_has_recovered_when_two_windows_of_half_a_second_in_a_row_are_well(after, seconds):
    assert an_overload(after)["recovery_seconds"] == seconds


def test_sizes_of_groups_count_groups_and_not_their_members():
    assert figures.sizes({1: 9, 11: 1}) == {"mean": 2.0, "p95": 11, "max": 11}
    assert figures.sizes({}) == {"mean": 0.0, "p95": 0.0, "max": 0}
