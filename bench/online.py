"""`tallystick bench online`: the headline, its references, and the books."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy.engine import make_url

from bench import books, report, stack, statements
from bench.load import Outcome, Spec
from bench.seed import CURRENCY, World, seed
from cli import databases, mariadb
from cli.stack.endpoints import Endpoints

# What a payer may send in a minute; every payer of a run stays at it.
_PER_PAYER = 10
_VENDORS = 50
_WARM_UP = 3.0
_REFERENCE_SECONDS = 8.0
# Enough in flight that a group forms while another commits.
_IN_FLIGHT = 256
# More calls than the fastest reference can answer in its time.
_REFERENCE_RATE_MAX = 5_000
_ALONE_PAYMENTS = 20_000
_SETTLED = (3, 5)  # SUCCESS, FLAGGED


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        profile: `dev` or `mysql`.
        rate: Payments offered a second.
        seconds: For how long.
        payment_processes: How many share the work.
        references: Measure them too; without, the report has only the headline.
        json_file: Where the report goes as JSON; None for nowhere.
    """

    profile: str
    rate: float
    seconds: float
    payment_processes: int
    references: bool
    json_file: Path | None


def run(options: Options) -> int:
    """Measure, print, write; 1 when the books do not match what clients were told.

    Raises:
        StartError: a stack did not start.
    """
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-") as directory:
        found = asyncio.run(_measure(options, Path(directory), console))
    report.show(found, console)
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["books_match"] else 1


async def _measure(options: Options, directory: Path, console: Console) -> dict[str, Any]:
    offered = options.rate * (options.seconds + _WARM_UP)
    console.print(f"{options.rate:,.0f} payments a second for {options.seconds:.0f} s")
    headline, sizes, found = await _headline(options, directory / "headline", int(offered))
    references = {
        "capacity_per_second": 0.0,
        "echo_per_second": 0.0,
        "groups_of_one_per_second": 0.0,
        "database_alone_per_second": 0.0,
    }
    if options.references:
        own = stack.with_variables()
        one = stack.with_variables(TALLYSTICK_GROUP_SIZE_MAX="1")
        echo = stack.with_module("bench.echo")
        for name, change, ledger in (
            ("capacity_per_second", own, True),
            ("groups_of_one_per_second", one, True),
            ("echo_per_second", echo, False),
        ):
            console.print(f"reference: {name.replace('_', ' ')}")
            references[name] = await _reference(options, directory / name, change, ledger=ledger)
        console.print("reference: database alone")
        with _fresh_databases(options.profile, directory) as fresh:
            references["database_alone_per_second"] = await statements.per_second(
                fresh, payments=_ALONE_PAYMENTS, group_size=max(1, round(_mean(sizes)))
            )
    return {**headline, **_with_references(headline, references, sizes), **found}


async def _headline(
    options: Options, directory: Path, offered: int
) -> tuple[dict[str, Any], Counter[int], dict[str, Any]]:
    async with stack.running(
        directory, options.profile, payment_processes=options.payment_processes
    ) as (endpoints, key_file):
        world = await seed(endpoints, key_file, payers=ceil(offered / _PER_PAYER), vendors=_VENDORS)
        spec = _spec(endpoints, world, rate=options.rate, seconds=options.seconds)
        before = stack.cpu_seconds(endpoints.processes)
        outcome = await _offer(spec, directory)
        after = stack.cpu_seconds(endpoints.processes)
        database_url = endpoints.services["payment"].database_url
        unanswered = sum(1 for state in outcome.told.values() if not state) - len(outcome.refused)
        found = await books.check(database_url, outcome.told, unanswered=max(0, unanswered))
    answered = max(1, len(outcome.latencies))
    calls = max(1, outcome.calls)
    costs = {name: after[name] - before[name] for name in before}
    costs["client"] = outcome.client_seconds
    settled = (
        sum(1 for state in outcome.told.values() if state in _SETTLED)
        * answered
        / max(1, sum(1 for state in outcome.told.values() if state))
    )
    return (
        {
            "settled_per_second": round(settled / max(outcome.seconds, options.seconds), 1),
            "latency_ms": report.latency_ms(outcome.latencies),
            "refused_latency_ms": report.latency_ms(outcome.refused),
            "statuses": {str(status): count for status, count in outcome.statuses.items()},
            "cpu_us_per_payment": {
                name: round(seconds / calls * 1e6, 1) for name, seconds in costs.items()
            },
            "settings": {
                **{
                    name: value
                    for name, value in dataclasses.asdict(options).items()
                    if name != "json_file"
                },
                "payers": len(world.tokens),
                "vendors": len(world.vendors),
                "warm_up_seconds": _WARM_UP,
            },
            "machine": report.machine(),
        },
        found.group_sizes,
        {"books_match": found.match, "books_wrong": found.wrong, "stored": found.states},
    )


async def _reference(
    options: Options, directory: Path, change: stack.Change, *, ledger: bool
) -> float:
    """Calls answered a second with a fixed number in flight."""
    # Whose bucket is empty is refused, so the bucket is made to last; the filter does the same work.
    calls = ceil((_REFERENCE_SECONDS + _WARM_UP) * _REFERENCE_RATE_MAX)
    wide = f"{calls}/{calls}/60000"
    os.environ["TALLYSTICK_RATE_PAYMENT"] = wide
    try:
        async with stack.running(
            directory, options.profile, payment_processes=options.payment_processes, change=change
        ) as (endpoints, key_file):
            world = await seed(endpoints, key_file, payers=1_000, vendors=_VENDORS, ledger=ledger)
            spec = _spec(endpoints, world, rate=0, seconds=_REFERENCE_SECONDS)
            outcome = await _offer(spec, directory)
    finally:
        del os.environ["TALLYSTICK_RATE_PAYMENT"]
    return round(len(outcome.latencies) / max(outcome.seconds, _REFERENCE_SECONDS), 1)


def _spec(endpoints: Endpoints, world: World, *, rate: float, seconds: float) -> Spec:
    host, _, port = endpoints.grpc.rpartition(":")
    return Spec(
        host=host,
        port=int(port),
        ca_file=endpoints.ca_file,
        payers=world.tokens,
        vendors=world.vendors,
        currency_code=CURRENCY,
        rate=rate,
        in_flight=_IN_FLIGHT,
        seconds=seconds,
        warm_up=_WARM_UP,
        patience=15.0,
        connections=4,
        seed=1,
    )


async def _offer(spec: Spec, directory: Path) -> Outcome:
    given, told = directory / "spec.json", directory / "outcome.json"
    given.write_text(json.dumps(dataclasses.asdict(spec)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "bench.load", str(given), str(told)
    )
    if await process.wait() != 0:
        raise RuntimeError("The load generator failed; what it said stands above.")
    outcome = Outcome(**json.loads(told.read_text()))
    outcome.statuses = Counter({int(key): count for key, count in outcome.statuses.items()})
    return outcome


@contextlib.contextmanager
def _fresh_databases(profile: str, directory: Path) -> Iterator[list[str]]:
    names = ("tallystick_bench_noted", "tallystick_bench_replayed")
    if profile != databases.MYSQL:
        yield [f"sqlite+aiosqlite:///{directory}/{name}.db" for name in names]
        return
    with contextlib.ExitStack() as owned:
        server = os.environ.get("TALLYSTICK_MYSQL_URL") or owned.enter_context(
            mariadb.running(durable=True)
        )
        yield [
            make_url(server).set(database=name).render_as_string(hide_password=False)
            for name in names
        ]


def _mean(sizes: Counter[int]) -> float:
    groups = sum(sizes.values())
    return sum(size * count for size, count in sizes.items()) / groups if groups else 0.0


def _with_references(
    headline: dict[str, Any], references: dict[str, float], sizes: Counter[int]
) -> dict[str, Any]:
    best = max(headline["settled_per_second"], references["capacity_per_second"])
    ratios = {
        f"share_of_{name.removesuffix('_per_second')}": round(best / value, 3)
        for name, value in references.items()
        if value and name != "capacity_per_second"
    }
    return {
        "references": references,
        "ratios": ratios,
        "group_size": {"mean": round(_mean(sizes), 2), "max": max(sizes, default=0)},
    }
