"""`tallystick bench`: the command."""

from __future__ import annotations

import json
import os
import subprocess
from xml.etree import ElementTree as ET

import pytest

from bench import summary
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
    services = {"payment", "fraud", "user", "offline", "admin", "gateway"}
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_tells_latency_and_cost_of_every_rate_and_draws_them(tmp_path):
    file = tmp_path / "reports" / "bench.json"

    done = bench(
        *("online", "--profile", "dev", "--rate", "40", "--seconds", "1", "--sweep"),
        *("--no-references", "--json", file, "--plots", tmp_path / "plots"),
        seconds=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert [one["offered_per_second"] for one in found["sweep"]] == [4, 10, 20, 30, 40, 50, 60]
    for one in found["sweep"]:
        assert one["statuses"] == {"OK": one["offered"]}
        assert one["latency_ms"]["p50"] > 0
        assert one["cpu_us_per_payment"]["payment"] > 0
        assert one["group_size"]["mean"] >= 1
    plots = {plot.name: ET.parse(plot) for plot in (tmp_path / "plots").iterdir()}  # noqa: S314 - our own
    assert set(plots) == {"online-latency.svg", "online-cost.svg"}
    file.rename(file.with_name("online.json"))
    tables = summary.markdown(file.parent)
    assert f"| 60 | {found['sweep'][-1]['settled_per_second']:,.0f} |" in tables
    assert "books match" in tables


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--seconds", "-1"], ["--seconds", "601"]])
def test_arguments_that_mean_nothing_are_refused(wrong):
    done = bench("online", *wrong)

    assert done.returncode == 2
    assert wrong[-1] in done.stderr


def test_a_figure_nobody_knows_is_refused():
    done = bench("nothing")

    assert done.returncode == 2
    assert "nothing" in done.stderr


@pytest.mark.parametrize("name", ["MYSQL_URL", "REDIS_URL", "KEK_FILE"])
def test_a_server_that_is_somebody_elses_is_not_filled(name):
    variable = f"TALLYSTICK_{name}"

    done = bench("online", "--profile", "mysql", **{variable: "mysql://root:secret@db:3306"})

    assert done.returncode == 2
    assert variable in done.stderr
    assert "secret" not in done.stderr
