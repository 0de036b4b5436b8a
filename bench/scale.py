"""`tallystick bench scale`: what size, a hot vendor, a second replica and time do to a payment."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import uuid7

from bench import books, plot, population, queries, report, stack
from bench.books import Told
from bench.figures import Figures, figures
from bench.load import Stretch
from bench.measured import IN_FLIGHT, VENDORS, WARM_UP_SECONDS, Bench, Measured
from bench.population import AMOUNT, Population, past
from bench.processes import memory_bytes
from bench.seed import MONEY_EACH, payers_needed, sign_in
from bench.stack import NEVER_EMPTY, Variant
from cli.databases import MYSQL
from services import sql
from services.environment import SettingError

# Enough that each pays seldom; spread evenly among all wallets there will be.
FEW = 10_000
_CLOSED_SECONDS = 6.0
_SAMPLE_SECONDS = 1.0
# Where an hour's growth is read from, the first half of a soak is caches filling.
_SETTLED_SHARE = 0.5
_MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        rate: Payments offered a second at every size.
        seconds: For how long.
        wallets: In the large ledger; a multiple of FEW.
        payments: In the large ledger, about; 0 loads none.
        soak: Seconds of the soak, at most 600; 0 for none.
        json_file: Where the report goes as JSON; None for nowhere.
        plots: A directory for plots; None for none.
    """

    rate: float
    seconds: float
    wallets: int
    payments: int
    soak: float
    json_file: Path | None
    plots: Path | None


def run(options: Options) -> int:
    """Measure, print, write; 1 when the books do not match what clients were told.

    Raises:
        SettingError: it cannot be measured so.
        StartError: a stack did not start, or a process of it ended.
    """
    stack.check_environment()
    if options.wallets % FEW or options.wallets <= FEW:
        raise SettingError(
            f"--wallets {options.wallets} is no multiple of {FEW}. Give one, larger than it."
        )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-") as directory:
        bench = Bench(MYSQL, 1, Path(directory), console)
        found = asyncio.run(_Scale(options, bench).measure())
    report.write(found, options.json_file, options.plots, _plots(found))
    _show(found, console)
    return 0 if found["books_match"] else 1


@dataclass
class _Size:
    """What was measured in a ledger of one size."""

    name: str
    wallets: int
    payments: int
    figures: Figures
    queries: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "wallets": self.wallets,
            "payments": self.payments,
            "settled_per_second": round(self.figures.settled_per_second, 1),
            **self.figures.summary(),
            "queries": self.queries,
        }


class _Scale:
    """One run."""

    def __init__(self, options: Options, bench: Bench) -> None:
        self._options = options
        self._bench = bench
        self._sizes: list[_Size] = []
        self._load_seconds: dict[str, float] = {}
        self._plans: list[dict[str, Any]] = []
        self._bytes: dict[str, int] = {}
        self._soak: dict[str, Any] | None = None

    async def measure(self) -> dict[str, Any]:
        await self._by_size()
        replicas = [
            await self._replicas(processes, hot_every)
            for processes in (1, 2)
            for hot_every in (5, 1)
        ]
        first, last = self._sizes[0], self._sizes[-1]
        small, large = first.to_json(), last.to_json()
        return {
            "sizes": [size.to_json() for size in self._sizes],
            "p95_ratio": _ratio(large["latency_ms"]["p95"], small["latency_ms"]["p95"]),
            "cpu_ratio": _ratio(_cpu(last.figures), _cpu(first.figures)),
            "audit_plans": self._plans,
            "bytes_per_payment": self._bytes,
            "replicas": replicas,
            "soak": self._soak,
            "load_seconds": self._load_seconds,
            "settings": {
                "profile": MYSQL,
                "rate": self._options.rate,
                "seconds": self._options.seconds,
                "payers": FEW,
                "vendors": VENDORS,
                "mariadb": list(stack.MARIADB),
                "variables": stack.own_variables(),
            },
            **self._bench.circumstances(),
        }

    async def _by_size(self) -> None:
        """One stack, whose ledger grows from a measurement to the next."""
        options, bench = self._options, self._bench
        directory = bench.directory / "sizes"
        variant = Variant(variables=NEVER_EMPTY)
        async with (
            stack.running(directory, MYSQL, payment_processes=1, variant=variant) as (
                endpoints,
                key_file,
            ),
            _engine(endpoints.services["payment"].database_url) as engine,
        ):
            world = await bench.vendors(endpoints, key_file)
            people = Population(
                wallets=options.wallets,
                few=FEW,
                payments_each=round(options.payments / options.wallets),
                vendors=world.vendor_ids,
                now=past(),
            )
            since = uuid7()
            await self._loaded(f"{FEW:,} wallets", people.add_few(engine))
            owners = people.owners_of_few()
            world = replace(
                world,
                payers=owners,
                tokens=await sign_in(endpoints, key_file, owners),
                opening=people.opening(paid=False),
            )
            measured = Measured(endpoints, key_file, world, directory)
            await self._at_size(measured, engine, people, FEW, 0)
            statements = await queries.statements_of_audit(engine)

            await self._loaded(f"{people.wallets:,} wallets", people.add_others(engine))
            await self._at_size(measured, engine, people, people.wallets, 0)
            if people.payments:
                before = await queries.bytes_by_table(engine)
                await self._loaded(f"{people.payments:,} payments", people.add_payments(engine))
                await self._weigh(engine, before, people.payments)
                measured.world = replace(world, opening=people.opening(paid=True))
                await self._at_size(measured, engine, people, people.wallets, people.payments)
            self._plans = await queries.plans(engine, statements)
            if options.soak:
                await self._soaked(measured)
            told = Told.by(measured.outcomes, measured.world)
            found = await books.check(measured.ledger_url, told, measured.world, since=since)
            bench.note_books("sizes", found)
            await self._check_others(engine, people, measured)

    async def _weigh(self, engine: AsyncEngine, before: Mapping[str, int], payments: int) -> None:
        """Bytes one payment takes in every table: rows made here by their tables, events by those of the load."""
        after = await queries.bytes_by_table(engine)
        grown = {
            name: round((after[name] - before[name]) / payments)
            for name in ("payments", "transfers", "requests")
        }
        paid = sum(size.figures.accepted for size in self._sizes)
        # The warm-ups paid as well.
        paid = round(paid * (self._options.seconds + WARM_UP_SECONDS) / self._options.seconds)
        events = await queries.event_bytes(engine)
        self._bytes = {**grown, "event_log": round(events / max(1, paid))}

    async def _loaded(self, what: str, loading: Any) -> None:
        self._bench.say(f"loading: {what}")
        began = time.perf_counter()
        await loading
        self._load_seconds[what] = round(time.perf_counter() - began, 1)

    async def _at_size(
        self,
        measured: Measured,
        engine: AsyncEngine,
        people: Population,
        wallets: int,
        payments: int,
    ) -> None:
        options, bench = self._options, self._bench
        name = f"{wallets:,} wallets, {payments:,} payments"
        await bench.rest(name, measured.endpoints)
        bench.say(f"{name}: {options.rate:,.0f} payments a second for {options.seconds:.0f} s")
        stretches = [
            Stretch("warm-up", WARM_UP_SECONDS, rate=options.rate),
            Stretch(name, options.seconds, rate=options.rate),
        ]
        found = figures(await measured.offer(stretches), stretches, 1)
        bench.note_company(name, found)
        costs = await queries.costs(
            engine,
            payer=measured.world.payers[0],
            vendor=people.vendors[0],
            before=people.payment(payments // 2) if payments else uuid7(),
        )
        self._sizes.append(_Size(name, wallets, payments, found, costs))

    async def _check_others(
        self, engine: AsyncEngine, people: Population, measured: Measured
    ) -> None:
        """Nobody's balance may have changed who did not pay."""
        each = MONEY_EACH - AMOUNT * people.payments_each
        balances = await books.online_balances(engine, measured.world.payers)
        paid = sum(balance != each for balance in balances.values())
        changed = await population.changed(engine, each)
        if changed != paid:
            self._bench.wrong.append(
                f"sizes: {changed} wallets have changed, and only {paid} of them paid"
            )

    async def _soaked(self, measured: Measured) -> None:
        options, bench = self._options, self._bench
        rate = options.rate / 2
        bench.say(f"soak: {rate:,.0f} payments a second for {options.soak:.0f} s")
        stretches = [Stretch("soak", options.soak, rate=rate)]
        samples: list[tuple[float, dict[str, int]]] = []
        began = time.monotonic()

        async def sample() -> None:
            while True:
                used = memory_bytes(measured.endpoints.processes)
                samples.append((time.monotonic() - began, used))
                await asyncio.sleep(_SAMPLE_SECONDS)

        sampling = asyncio.create_task(sample())
        try:
            outcome = await measured.offer(stretches)
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
        found = figures(outcome, stretches, 0)
        self._soak = {
            "rate": rate,
            "seconds": options.soak,
            **found.summary(),
            "memory_mib": {
                name: {
                    "first": round(samples[0][1][name] / _MIB, 1),
                    "last": round(samples[-1][1][name] / _MIB, 1),
                    "growth_mib_per_hour": _growth(samples, name),
                    "samples": [
                        [round(at, 1), round(used[name] / _MIB, 1)]
                        for at, used in samples[:: max(1, len(samples) // 60)]
                    ],
                }
                for name in measured.endpoints.processes
            },
        }

    async def _replicas(self, processes: int, hot_every: int) -> dict[str, Any]:
        """A fresh stack: capacity, closed loop, then latency at the rate, a share to one vendor."""
        bench, options = self._bench, self._options
        share = f"{1 / hot_every + (1 - 1 / hot_every) / VENDORS:.0%} to one vendor"
        name = f"{processes} payment process{'es' * (processes > 1)}, {share}"
        bench.say(name)
        seconds = min(_CLOSED_SECONDS, options.seconds)
        stretches = [
            Stretch("warm-up", WARM_UP_SECONDS, in_flight=IN_FLIGHT),
            Stretch("capacity", seconds, in_flight=IN_FLIGHT),
            Stretch("pause", WARM_UP_SECONDS),
            Stretch("at the rate", seconds, rate=options.rate),
        ]
        payers = payers_needed(options.rate, 1)
        variant = Variant(variables=NEVER_EMPTY)
        async with bench.stack(
            f"{processes}-{hot_every}", variant, payers=payers, processes=processes
        ) as measured:
            outcome = await measured.offer(stretches, hot_every=hot_every)
            await bench.checked(name, measured)
        capacity = figures(outcome, stretches, 1)
        at_rate = figures(outcome, stretches, 3)
        bench.note_company(name, capacity)
        return {
            "name": name,
            "payment_processes": processes,
            "hot_share": round(1 / hot_every, 2),
            "capacity_per_second": round(capacity.settled_per_second, 1),
            "cpu_us_per_payment": capacity.cpu_us_per_payment(),
            "at_rate": {"rate": options.rate, **at_rate.summary()},
        }


@contextlib.asynccontextmanager
async def _engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = sql.create_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


def _cpu(found: Figures) -> float:
    return sum(found.cpu_us_per_payment().values())


def _ratio(one: float, other: float) -> float:
    return round(one / max(other, 1e-9), 3)


def _growth(samples: list[tuple[float, dict[str, int]]], name: str) -> float:
    """MiB an hour over the second half, from a straight line through it."""
    later = samples[int(len(samples) * _SETTLED_SHARE) :]
    if len(later) < 3:  # noqa: PLR2004 - two points are on a line whatever they are
        return 0.0
    line = statistics.linear_regression([at for at, _ in later], [used[name] for _, used in later])
    return round(line.slope * 3600 / _MIB, 1)


def _plots(found: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name."""
    names = {size["name"]: size for size in found["sizes"]}
    order = list(found["sizes"][0]["cpu_us_per_payment"])
    drawn = {
        "scale-cost.svg": plot.bars(
            "CPU of one online payment by size of the ledger",
            "µs",
            {
                _short(size): {part: size["cpu_us_per_payment"].get(part, 0) for part in order}
                for size in names.values()
            },
        ),
        "scale-latency.svg": plot.bars(
            f"p95 of online payments at {found['settings']['rate']:,.0f}/s by size of the ledger",
            "ms",
            {_short(size): {"p95": size["latency_ms"]["p95"]} for size in names.values()},
        ),
        "scale-replicas.svg": plot.bars(
            "Payments a second, closed loop",
            "payments a second",
            {
                f"{one['payment_processes']} x {one['hot_share']:.0%} hot": {
                    "settled": one["capacity_per_second"]
                }
                for one in found["replicas"]
            },
        ),
    }
    if found["soak"]:
        drawn["scale-memory.svg"] = plot.lines(
            "Resident memory over a soak",
            "seconds",
            "MiB",
            {
                name: [(at, used) for at, used in one["samples"]]
                for name, one in found["soak"]["memory_mib"].items()
            },
        )
    return drawn


def _short(size: Mapping[str, Any]) -> str:
    return f"{_thousands(size['wallets'])} / {_thousands(size['payments'])}"


def _thousands(count: int) -> str:
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return str(count)


def _show(found: Mapping[str, Any], console: Console) -> None:
    settings = found["settings"]
    rows = report.table(
        f"at {settings['rate']:,.0f}/s, wallets / payments stored",
        *(_short(size) for size in found["sizes"]),
    )
    for name in ("p50", "p95", "p99", "p999"):
        rows.add_row(
            f"latency {name}, ms", *(f"{size['latency_ms'][name]:,.1f}" for size in found["sizes"])
        )
    for name in found["sizes"][0]["cpu_us_per_payment"]:
        rows.add_row(
            f"CPU µs, {name}",
            *(f"{size['cpu_us_per_payment'].get(name, 0):,.0f}" for size in found["sizes"]),
        )
    rows.add_row(
        "p95, largest over smallest", *[""] * (len(found["sizes"]) - 1), f"{found['p95_ratio']:.2f}"
    )
    rows.add_row(
        "CPU, largest over smallest", *[""] * (len(found["sizes"]) - 1), f"{found['cpu_ratio']:.2f}"
    )
    console.print(rows)

    rows = report.table("rows examined (ms)", *(_short(size) for size in found["sizes"]))
    for name in found["sizes"][0]["queries"]:
        cells = (size["queries"][name] for size in found["sizes"])
        rows.add_row(name, *(f"{cell['rows_examined']:,} ({cell['ms']:.1f})" for cell in cells))
    console.print(rows)

    if found["bytes_per_payment"]:
        rows = report.table("bytes a payment takes, indexes included", "")
        for name, size in found["bytes_per_payment"].items():
            rows.add_row(name, f"{size:,}")
        rows.add_row("all", f"{sum(found['bytes_per_payment'].values()):,}", style="bold")
        console.print(rows)

    rows = report.table(
        "closed loop, then the rate", "capacity /s", "payment CPU µs", "p95 ms at the rate"
    )
    for one in found["replicas"]:
        rows.add_row(
            one["name"],
            f"{one['capacity_per_second']:,.0f}",
            f"{one['cpu_us_per_payment']['payment']:,.0f}",
            f"{one['at_rate']['latency_ms']['p95']:,.1f}",
        )
    console.print(rows)

    if found["soak"]:
        soak = found["soak"]
        rows = report.table(
            f"soak, {soak['rate']:,.0f}/s for {soak['seconds']:.0f} s, MiB",
            "first",
            "last",
            "growth an hour",
        )
        for name, one in soak["memory_mib"].items():
            rows.add_row(
                name,
                f"{one['first']:,.1f}",
                f"{one['last']:,.1f}",
                f"{one['growth_mib_per_hour']:,.1f}",
            )
        console.print(rows)
    report.show_circumstances(found, console)
