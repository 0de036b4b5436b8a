"""`tallystick bench`: the command."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.stacks import TALLYSTICK


def bench(*arguments, seconds=30, **variables):
    return subprocess.run(
        [*TALLYSTICK, "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=os.environ | variables,
    )


def test_a_short_run_offers_what_was_asked_and_its_books_match(tmp_path):
    file = tmp_path / "bench.json"

    done = bench(
        *("online", "--profile", "dev", "--rate", "50", "--seconds", "3"),
        *("--no-references", "--json", file),
        seconds=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["books_match"] is True
    assert found["books_wrong"] == []
    assert found["statuses"] == {"OK": 150}
    # One in a hundred is too far away, and whoever is back at once has travelled impossibly fast.
    flagged = found["states"].pop("FLAGGED")
    assert 2 <= flagged <= 4
    assert found["states"] == {"SUCCESS": 150 - flagged}
    assert found["settled_per_second"] == pytest.approx(50, rel=0.1)
    stored = found["stored"]
    assert 3 <= stored.pop("FLAGGED") <= 6, "the warm-up is stored too"
    assert set(stored) == {"SUCCESS"}
    assert set(found["laws"].values()) == {True}
    assert set(found["latency_ms"]) == {"p50", "p95", "p99", "p999", "max"}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert found["group_size"]["mean"] >= 1
    services = {"payment", "fraud", "user", "admin", "gateway"}
    assert services | {"client", "envoy", "valkey"} <= set(found["cpu_us_per_payment"])
    assert found["references"] == {
        "capacity_per_second": None,
        "echo_per_second": None,
        "groups_of_one_per_second": None,
        "database_alone_per_second": None,
    }
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["settings"]["rate"] == 50
    assert {"python", "envoy", "grpcio"} <= set(found["versions"])
    assert "the books match what clients were told" in done.stdout


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--seconds", "-1"], ["--seconds", "601"]])
def test_arguments_that_mean_nothing_are_refused(wrong):
    done = bench("online", *wrong)

    assert done.returncode == 2
    assert wrong[-1] in done.stderr


def test_a_figure_nobody_knows_is_refused():
    done = bench("nothing")

    assert done.returncode == 2
    assert "nothing" in done.stderr


@pytest.mark.parametrize("figure", ["offline", "fraud", "scale"])
def test_a_figure_that_is_not_there_yet_says_when_it_comes(figure):
    done = bench(figure)

    assert done.returncode == 2
    assert f"bench {figure} comes with the service it measures" in done.stderr


@pytest.mark.parametrize("name", ["MYSQL_URL", "REDIS_URL", "KEK_FILE"])
def test_a_server_that_is_somebody_elses_is_not_filled(name):
    variable = f"TALLYSTICK_{name}"

    done = bench("online", "--profile", "mysql", **{variable: "mysql://root:secret@db:3306"})

    assert done.returncode == 2
    assert variable in done.stderr
    assert "secret" not in done.stderr
