"""The benchmark tells the truth: its arithmetic, its load, its books."""

import json
import subprocess
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import books, report
from bench.books import _differences
from services.payment.domain.payment import State
from tests.stacks import TALLYSTICK


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0.001, 1))
def test_a_percentile_is_a_value_that_enough_do_not_exceed_and_the_smallest_such(values, share):
    ordered = sorted(values)

    found = report.percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered)
    smaller = [value for value in ordered if value < found]
    assert len(smaller) < share * len(ordered)


def test_percentiles_are_given_in_milliseconds():
    found = report.latency_ms([number / 1000 for number in range(1, 101)])

    assert found == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 100.0, "max": 100.0}


def test_books_match_when_every_client_was_told_what_is_stored():
    paid, failed, refused = (str(uuid4()) for _ in range(3))
    stored = {paid: (State.SUCCESS, 1), failed: (State.FAILED, 1)}

    told = {paid: State.SUCCESS, failed: State.FAILED, refused: 0}

    assert _differences(stored, told, unanswered=0) == []


@pytest.mark.parametrize(
    ("stored", "told", "unanswered", "wrong"),
    [
        ({}, {"a": State.SUCCESS}, 0, "told SUCCESS, stored nothing"),
        ({"a": (State.FAILED, 1)}, {"a": State.SUCCESS}, 0, "told SUCCESS, stored FAILED"),
        ({"a": (State.SUCCESS, 1)}, {}, 0, "stored, never sent"),
        ({"a": (State.SUCCESS, 1)}, {"a": 0}, 0, "stored that were refused"),
    ],
)
def test_books_do_not_match_when(stored, told, unanswered, wrong):
    (found,) = _differences(stored, told, unanswered)

    assert wrong in found


def test_a_payment_whose_client_got_no_answer_may_be_stored_or_not():
    stored = {"a": (State.SUCCESS, 1)}

    assert _differences(stored, {"a": 0, "b": 0}, unanswered=2) == []


async def test_a_law_that_is_broken_is_found_in_the_books(sqlite_url):
    import aiosqlite

    url = sqlite_url("payment")
    async with aiosqlite.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
        out_of_nothing = (bytes(16) + b"INR", 5, 0, 0, 0, 1, 1, 0, 0, 0)
        await connection.execute("INSERT INTO wallets VALUES (?,?,?,?,?,?,?,?,?,?)", out_of_nothing)
        await connection.commit()

    found = await books.check(url, {}, unanswered=0)

    assert not found.match
    assert "law 1: INR: all balances sum to 5" in found.wrong


def test_a_short_run_offers_what_was_asked_and_its_books_match(tmp_path):
    file = tmp_path / "bench.json"
    command = ["bench", "online", "--rate", "50", "--seconds", "3", "--no-references"]

    done = subprocess.run(
        [*TALLYSTICK, *command, "--json", file],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["books_match"] is True
    assert found["statuses"] == {"0": 150}
    assert found["settled_per_second"] == pytest.approx(50, rel=0.1)
    assert found["stored"] == {"SUCCESS": 300}, "the warm-up is stored too"
    assert set(found["latency_ms"]) == {"p50", "p95", "p99", "p999", "max"}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert {"client", "envoy", "payment", "fraud", "valkey"} <= set(found["cpu_us_per_payment"])
    assert set(found["references"]) == {
        "capacity_per_second",
        "echo_per_second",
        "groups_of_one_per_second",
        "database_alone_per_second",
    }


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--seconds", "-1"], ["nothing"]])
def test_arguments_that_mean_nothing_are_refused(wrong):
    figure = [] if wrong == ["nothing"] else ["online"]

    done = subprocess.run(
        [*TALLYSTICK, "bench", *figure, *wrong],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert wrong[-1] in done.stderr
