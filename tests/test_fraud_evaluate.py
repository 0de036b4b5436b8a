"""`tallystick fraud evaluate` on tiny worlds made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from cli.__main__ import main
from cli.fraud import worlds
from cli.fraud.evaluate import Found, measure
from cli.fraud.replay import replay
from services import streams
from services.fraud.features.derive import like_its_payer
from services.fraud.features.store import FeatureStore

DAY = 86_400
PAYERS, VENDORS, DAYS = 12, 6, 12


def write(path: Path, columns: dict) -> None:
    pq.write_table(pa.table(columns), path)


def payments(rnd: np.random.Generator) -> dict:
    rows = PAYERS * DAYS * 2
    return {
        "t": np.sort(rnd.integers(0, DAYS * DAY, rows)),
        "payer": rnd.integers(0, PAYERS, rows),
        "vendor": rnd.integers(0, VENDORS, rows),
        "cents": rnd.integers(0, 90_00, rows),
    }


@pytest.fixture
def data(tmp_path) -> Path:
    """Both worlds. In the last days payer 0's phone is used a thousand kilometres away, again and again."""
    rnd = np.random.default_rng(5)
    made = payments(rnd)
    rows = len(made["t"])
    stolen = (made["t"] >= 9 * DAY) & (made["payer"] == 0)
    made["cents"] = np.where(stolen, 900_00, made["cents"])
    remote = stolen | (rnd.random(rows) < 0.2)
    source = np.where(stolen, 2, np.where(remote, 1, 0))
    write(
        tmp_path / "synccfd_tx.parquet",
        {
            **made,
            "remote": remote.astype(np.int8),
            "dev_src": source.astype(np.int8),
            "dev_lat_e5": pa.array(np.full(rows, -15_00000), mask=source != 2),
            "dev_lon_e5": pa.array(np.full(rows, -55_00000), mask=source != 2),
            "scenario": np.where(stolen, 3, 0),
        },
    )
    write(
        tmp_path / "synccfd_places.parquet",
        {
            "kind": ["payer"] * PAYERS + ["vendor"] * VENDORS,
            "id": [*range(PAYERS), *range(VENDORS)],
            "lat": rnd.uniform(-23.6, -23.5, PAYERS + VENDORS),
            "lon": rnd.uniform(-46.7, -46.6, PAYERS + VENDORS),
        },
    )
    write(
        tmp_path / "overlay_tx.parquet",
        {
            **made,
            "dev_lat_e4": pa.array(np.where(stolen, -15_0000, -23_5500), mask=made["t"] % 7 == 0),
            "dev_lon_e4": pa.array(np.where(stolen, -55_0000, -46_6500), mask=made["t"] % 7 == 0),
            "device": np.where(stolen, 999, made["payer"]),
            "offline": (made["t"] % 5 == 0).astype(np.int8),
            "code_age_s": made["t"] % 600,
            "cls": np.where(stolen, 1, 0),
        },
    )
    write(
        tmp_path / "overlay_vendors.parquet",
        {"id": [*range(VENDORS)], "reg_lat": [-23.55] * VENDORS, "reg_lon": [-46.65] * VENDORS},
    )
    return tmp_path


def evaluate(data: Path, *more: str) -> dict:
    report = data / "report.json"
    arguments = ["fraud", "evaluate", "--data", str(data), "--label-delay", "1d", *more]
    assert main([*arguments, "--json", str(report)]) == 0
    return json.loads(report.read_text())


def test_the_report_has_what_checks_read(data, capsys):
    report = evaluate(data, "--from-day", "7")

    assert set(report["worlds"]) == {"synccfd", "overlay"}
    for world in report["worlds"].values():
        assert {"recall", "fpr", "amount_weighted_recall"} <= set(world["overall"])
        assert 0 <= world["overall"]["fpr"] < 0.5
        assert world["overall"]["recall"] > 0.5
        assert set(world["precision_at_k"]) == {"20", "50", "100"}
        assert world["cpu_us_per_payment"]["process"] > 0
    synccfd, overlay = report["worlds"]["synccfd"], report["worlds"]["overlay"]
    assert synccfd["scenarios"]["3"]["count"] > 0
    assert "without_device" not in synccfd
    assert set(overlay["without_device"]["scenarios"]) == {"1"}
    assert "labels known after 1 d" in capsys.readouterr().out


def test_evaluating_again_says_the_same(data):
    def figures(report):
        for world in report["worlds"].values():
            for each in (world, world.get("without_device", {})):
                each.pop("cpu_us_per_payment", None)
        return report

    assert figures(evaluate(data)) == figures(evaluate(data))


def test_one_world_is_enough(data):
    (data / "synccfd_tx.parquet").unlink()

    assert set(evaluate(data)["worlds"]) == {"overlay"}


def without(column):
    def spoil(data):
        path = data / "synccfd_tx.parquet"
        pq.write_table(pq.read_table(path).drop_columns([column]), path)

    return spoil


def set_column(column, values):
    def spoil(data):
        path = data / "synccfd_tx.parquet"
        table = pq.read_table(path)
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, column, [pa.array(values(table.num_rows))]), path)

    return spoil


def remove_worlds(data):
    (data / "synccfd_tx.parquet").unlink()
    (data / "overlay_tx.parquet").unlink()


BAD = {
    "no world": (remove_worlds, "neither synccfd_tx.parquet nor overlay_tx.parquet"),
    "no places": (
        lambda data: (data / "synccfd_places.parquet").unlink(),
        "synccfd_places.parquet is missing",
    ),
    "no dev_src": (without("dev_src"), "lacks the column 'dev_src'"),
    "no scenario": (without("scenario"), "lacks the column 'scenario'"),
    "text": (
        lambda data: (data / "overlay_tx.parquet").write_text("t,payer"),
        "cannot be read as Parquet",
    ),
    "backwards": (set_column("t", lambda rows: list(range(rows, 0, -1))), "time order"),
    "negative": (set_column("cents", lambda rows: [-1] * rows), "must not be below zero"),
    "words": (set_column("cents", lambda rows: ["1"] * rows), "must hold numbers, not string"),
    "nothing": (set_column("payer", lambda rows: [None] * rows), "column 'payer'"),
    "new source": (set_column("dev_src", lambda rows: [3] * rows), "must be 0"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_folder_that_is_no_world_is_refused_by_name(data, capsys, spoil, message):
    spoil(data)

    assert main(["fraud", "evaluate", "--data", str(data), "--label-delay", "7d"]) == 1

    assert message in capsys.readouterr().err


def test_a_missing_folder_and_an_empty_time_are_refused(data, capsys):
    start = ["fraud", "evaluate", "--label-delay", "1d", "--data"]

    assert main([*start, str(data / "none")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main([*start, str(data), "--from-day", "12"]) == 1
    assert "Nothing is left to judge from day 12 on" in capsys.readouterr().err


def test_a_world_that_ends_before_the_day_is_passed_over(data, capsys):
    path = data / "overlay_tx.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.compute.less(table["t"], 8 * DAY)), path)

    report = evaluate(data, "--from-day", "9")

    assert set(report["worlds"]) == {"synccfd"}
    assert report["passed_over"] == {"overlay": "ends on day 7"}
    assert "overlay is not judged" in capsys.readouterr().out


@pytest.mark.parametrize("delay", ["1", "d", "1.5d", "-1d", "1w", ""])
def test_a_label_delay_is_a_whole_number_and_a_unit(data, capsys, delay):
    with pytest.raises(SystemExit):
        main(["fraud", "evaluate", "--data", str(data), f"--label-delay={delay}"])

    assert "is no duration" in capsys.readouterr().err


def test_figures_are_counted_on_judged_payments_only(data):
    world = worlds.read(data)[0]
    judged = world.day >= 9
    stopped = (world.scenario == 3) & (world.minor_units > 0)
    stopped[np.flatnonzero(judged & (world.scenario == 0))[0]] = True
    stopped[~judged] = True

    said = measure(world, Found(stopped, stopped.astype(float), {}), judged)

    honest, fraud = int((judged & (world.scenario == 0)).sum()), int((world.scenario == 3).sum())
    assert said["overall"]["fpr"] == pytest.approx(1 / honest, rel=1e-3)
    assert said["overall"]["recall"] == said["overall"]["amount_weighted_recall"] == 1
    assert said["overall"]["precision"] == pytest.approx(fraud / (fraud + 1), rel=1e-3)
    assert said["scenarios"] == {"3": {"recall": 1.0, "count": fraud}}


async def test_no_label_is_known_before_its_time(data, valkey_url):
    world = worlds.read(data)[0]
    asked: list[tuple[float, float]] = []

    class Watched(FeatureStore):
        async def label(self, labels):
            self.newest = max(label.occur_time for label in labels)
            await super().label(labels)

        async def observe(self, observations, *, now, settled=()):
            asked.append((getattr(self, "newest", 0.0), observations[0].occur_time))
            return await super().observe(observations, now=now, settled=settled)

    client = streams.connect(valkey_url)
    await replay(Watched(client), world, 2 * DAY, lambda seen, _: np.zeros(len(seen), bool))
    await client.aclose()

    assert all(newest <= first - 2 * DAY for newest, first in asked)
    assert asked[-1][0] > 0


async def test_a_stopped_payment_teaches_nothing_until_it_is_known_to_be_honest(data, valkey_url):
    world = worlds.read(data)[0]
    fraud = {f"payments/{row}" for row in np.flatnonzero(world.scenario)}

    taught = []

    class Watched(FeatureStore):
        async def observe(self, observations, *, now, settled=()):
            taught.extend(settled)
            return await super().observe(observations, now=now, settled=settled)

    client = streams.connect(valkey_url)
    await replay(Watched(client), world, DAY, lambda seen, _: np.ones(len(seen), bool))
    await client.aclose()

    settled = [each.payment for each in taught]
    assert len(settled) == len(set(settled)) > 100
    assert not fraud & set(settled)


async def test_a_label_tells_whether_the_payment_was_like_its_payer_when_it_was_made(
    data, valkey_url
):
    world = worlds.read(data)[0]
    told: list[bool] = []
    seen: list[bool] = []

    class Watched(FeatureStore):
        async def label(self, labels):
            told.extend(label.like_payer for label in labels)
            await super().label(labels)

    def judge(observed, features):
        seen.extend(like_its_payer(each.values) for each in features)
        return np.zeros(len(observed), bool)

    client = streams.connect(valkey_url)
    await replay(Watched(client), world, DAY, judge)
    await client.aclose()

    assert told == seen[: len(told)]
    assert 0 < sum(told) < len(told)
