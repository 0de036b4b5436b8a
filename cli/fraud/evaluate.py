"""`tallystick fraud evaluate`: what the shipped checks find in labelled worlds, and whom they bother."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from cli import valkey
from cli.fraud.judge import Checks
from cli.fraud.replay import replay
from cli.fraud.worlds import World, WorldError, read
from services import streams
from services.fraud.features.derive import FeatureBatch
from services.fraud.features.observation import Observation
from services.fraud.features.store import FeatureStore
from services.fraud.model.scorer import Scorer

# Without --from-day so many of a world's days only build state.
_WARM_UP_DAYS = 7
# Cases a desk may work a day.
_DESKS = (20, 50, 100)


@dataclass(frozen=True)
class Found:
    """What the checks said of every payment of a world.

    Attributes:
        stopped: Not let through.
        score: What a desk would sort its cases by.
        cost: CPU microseconds a payment: of this process and of Valkey, all of the replay in it.
    """

    stopped: NDArray[np.bool_]
    score: NDArray[np.float64]
    cost: dict[str, float]


def run(
    data: Path, label_delay_seconds: float, from_day: int | None, json_file: Path | None
) -> int:
    """Replay every world of a folder, print a table, write JSON where asked; 1 when it holds none."""
    console = Console(stderr=True)
    try:
        worlds = read(data)
        report = asyncio.run(evaluate(worlds, label_delay_seconds, from_day, Scorer.load()))
    except WorldError as error:
        console.print(f"tallystick: {error}", highlight=False, markup=False, soft_wrap=True)
        return 1
    show(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    return 0


async def evaluate(
    worlds: Sequence[World], label_delay_seconds: float, from_day: int | None, scorer: Scorer
) -> dict[str, Any]:
    """The report of some worlds, each replayed in a Valkey of its own.

    Nothing is fitted: model, rules and thresholds are those that are shipped.

    A world that ends before that day is passed over, and listed as such.

    Raises:
        WorldError: every world does.
    """
    judged = {world.name: _judged(world, from_day) for world in worlds}
    if not any(rows.any() for rows in judged.values()):
        ends = ", ".join(f"{world.name} ends on day {world.day[-1]}" for world in worlds)
        first = "its eighth day" if from_day is None else f"day {from_day}"
        raise WorldError(
            f"Nothing is left to judge from {first} on: {ends}. Give an earlier --from-day."
        )
    found: dict[str, Any] = {}
    for world in worlds:
        rows = judged[world.name]
        if not rows.any():
            continue
        found[world.name] = measure(world, await _replay(world, label_delay_seconds, scorer), rows)
        if world.device is not None:
            plain = world.without_device()
            told = await _replay(plain, label_delay_seconds, scorer)
            found[world.name]["without_device"] = measure(plain, told, rows)
    return {
        "model": scorer.version,
        "label_delay_seconds": label_delay_seconds,
        "worlds": found,
        "passed_over": {
            world.name: f"ends on day {world.day[-1]}"
            for world in worlds
            if world.name not in found
        },
    }


def _judged(world: World, from_day: int | None) -> NDArray[np.bool_]:
    first = int(world.day[0]) + _WARM_UP_DAYS if from_day is None else from_day
    rows: NDArray[np.bool_] = world.day >= first
    return rows


async def _replay(world: World, label_delay_seconds: float, scorer: Scorer) -> Found:
    checks = Checks(scorer, world.sites)
    stopped: list[NDArray[np.bool_]] = []
    scores: list[NDArray[np.float64]] = []

    def judge(observed: Sequence[Observation], features: FeatureBatch) -> NDArray[np.bool_]:
        stop, score = checks.judge(observed, features)
        stopped.append(stop)
        scores.append(score)
        return stop

    with valkey.running() as port:
        redis = streams.connect(valkey.url(port))
        try:
            started, server_started = time.process_time(), await _cpu(redis)
            await replay(FeatureStore(redis), world, label_delay_seconds, judge)
            spent = time.process_time() - started, await _cpu(redis) - server_started
        finally:
            await redis.aclose()
    cost = {
        name: round(each / len(world) * 1e6, 1)
        for name, each in zip(("process", "valkey"), spent, strict=True)
    }
    return Found(np.concatenate(stopped), np.concatenate(scores), cost)


async def _cpu(redis: Redis) -> float:
    said: Any = await redis.info("cpu")
    return float(said["used_cpu_sys"] + said["used_cpu_user"])


def measure(world: World, found: Found, judged: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of the judged payments of a world. None where there is nothing to divide by."""
    scenario, stopped = world.scenario[judged], found.stopped[judged]
    fraud = scenario != 0
    amount = world.minor_units[judged].astype(np.float64)
    return {
        "payments": int(judged.sum()),
        "overall": {
            "count": int(fraud.sum()),
            "recall": _share(stopped[fraud]),
            "fpr": _share(stopped[~fraud]),
            "amount_weighted_recall": _share(stopped[fraud], amount[fraud]),
            "precision": _share(fraud[stopped]),
        },
        "scenarios": {
            str(each): {
                "recall": _share(stopped[scenario == each]),
                "count": int((scenario == each).sum()),
            }
            for each in np.unique(scenario[fraud]).tolist()
        },
        "precision_at_k": {
            str(k): _precision(world.day[judged], found.score[judged], fraud, k) for k in _DESKS
        },
        "cpu_us_per_payment": found.cost,
    }


def _share(of: NDArray[np.bool_], weight: NDArray[np.float64] | None = None) -> float | None:
    if not len(of):
        return None
    return round(float(np.average(of, weights=weight)), 6)


def _precision(
    day: NDArray[np.int64], score: NDArray[np.float64], fraud: NDArray[np.bool_], k: int
) -> float | None:
    """The share of fraud among the k payments of each day that score highest."""
    best = [
        rows[np.argsort(-score[rows], kind="stable")[:k]]
        for rows in (np.flatnonzero(day == each) for each in np.unique(day))
    ]
    return _share(fraud[np.concatenate(best)])


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report for people."""
    table = Table(box=box.SIMPLE_HEAD)
    notes: list[str] = []
    table.add_column("world")
    table.add_column("fraud")
    for name in ("count", "recall", "by amount", "FPR"):
        table.add_column(name, justify="right")
    for name, world in report["worlds"].items():
        for title, said in ((name, world), (f"{name}, no device", world.get("without_device"))):
            if said is None:
                continue
            overall = said["overall"]
            table.add_row(
                title,
                "all",
                f"{overall['count']}",
                _percent(overall["recall"]),
                _percent(overall["amount_weighted_recall"]),
                _percent(overall["fpr"]),
            )
            for scenario, each in said["scenarios"].items():
                table.add_row(
                    "", f"scenario {scenario}", f"{each['count']}", _percent(each["recall"])
                )
            table.add_section()
            precision = ", ".join(f"{k}: {_percent(p)}" for k, p in said["precision_at_k"].items())
            cost = said["cpu_us_per_payment"]
            notes.append(
                f"{title}: precision of the k highest scores a day: {precision}; CPU a payment, the "
                f"replay's included: {cost['process']} µs here, {cost['valkey']} µs in Valkey"
            )
    days = report["label_delay_seconds"] / 86_400
    model = report["model"] or "none: rules only"
    console.print(f"model {model}; labels known after {days:g} d", highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    for name, why in report["passed_over"].items():
        console.print(f"{name} is not judged: it {why}, before --from-day", highlight=False)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
