"""`tallystick bench online`: the headline, its references, and the books."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy.engine import make_url

from bench import books, noted, pgbench, report, stack, statements
from bench.books import Books, Told
from bench.figures import Figures, figures, latency_ms, overload, percentile
from bench.load import Outcome, Spec, Stretch
from bench.seed import CURRENCY, World, payers_needed, seed
from bench.stack import NEVER_EMPTY, Variant
from cli import databases, mariadb
from cli.process import StartError
from cli.stack.endpoints import Endpoints
from services.environment import SettingError

# A token lives 15 minutes, and one is made for each payer before the load begins.
SECONDS_MAX = 600.0
_VENDORS = 50
_WARM_UP_SECONDS = 3.0
_REFERENCE_SECONDS = 8.0
# Payers of loads whose buckets are made to last.
_REFERENCE_PAYERS = 1_000
# Enough that a group forms while another commits, and fewer than the gateway refuses.
_IN_FLIGHT = 256
_CONNECTIONS = 4
# As long as the gateway lets a payment take: by then every call has been answered.
_PATIENCE_SECONDS = 16.0
# For the generator to start and to write what came of it.
_GENERATOR_SECONDS = 60.0
_ROUNDS = 3
# Above this the generator, not the gateway, decided when calls were made.
_LAG_SECONDS_MAX = 0.02
# Cores that others may keep busy before a figure says so; the kernel's own work takes some too.
_COMPANY_CORES_MAX = 0.3

_OVERLOAD_SECONDS = 10.0
_RECOVERY_SECONDS = 10.0
_BEFORE_SECONDS = 4.0


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        profile: `dev` or `mysql`.
        rate: Payments offered a second.
        seconds: For how long, at most SECONDS_MAX.
        payment_processes: How many share the work.
        references: Measure them too; without, the report has only the headline.
        overload: Offer twice the capacity too.
        json_file: Where the report goes as JSON; None for nowhere.
    """

    profile: str
    rate: float
    seconds: float
    payment_processes: int
    references: bool
    overload: bool
    json_file: Path | None


def run(options: Options) -> int:
    """Measure, print, write; 1 when the books do not match what clients were told.

    Raises:
        SettingError: it cannot be measured so.
        StartError: a stack did not start, or a process of it ended.
    """
    stack.check_environment()
    if options.seconds > SECONDS_MAX:
        raise SettingError(
            f"--seconds {options.seconds:g} is longer than the tokens live that payers are given before. "
            f"Give at most {SECONDS_MAX:g}."
        )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-") as directory:
        found = asyncio.run(_Run(options, Path(directory), console).measure())
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(found, indent=2) + "\n")
    report.show(found, console)
    return 0 if found["books_match"] else 1


@dataclass
class _Measured:
    """A stack with a world in it, at rest, and what was offered to it."""

    endpoints: Endpoints
    world: World
    directory: Path
    outcomes: list[Outcome] = field(default_factory=list)

    async def offer(self, stretches: Sequence[Stretch]) -> Outcome:
        host, _, port = self.endpoints.grpc.rpartition(":")
        spec = Spec(
            host=host,
            port=int(port),
            ca_file=self.endpoints.ca_file,
            server_name="localhost",
            payers=self.world.tokens,
            vendors=self.world.vendors,
            currency_code=CURRENCY,
            stretches=stretches,
            patience=_PATIENCE_SECONDS,
            connections=_CONNECTIONS,
            # Another one each time, or the second load would repeat the first one's request ids.
            seed=len(self.outcomes) + 1,
            processes=self.endpoints.processes,
        )
        given, told = self.directory / "spec.json", self.directory / "outcome.json"
        given.write_text(spec.to_json())
        await _generate(given, told, sum(stretch.seconds for stretch in stretches))
        outcome = Outcome(**json.loads(told.read_text()))
        self.outcomes.append(outcome)
        return outcome

    async def check(self) -> Books:
        url = self.endpoints.services["payment"].database_url
        return await books.check(url, Told.by(self.outcomes, self.world), self.world)


async def _generate(given: Path, told: Path, seconds: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "bench.load", given, told
    )
    try:
        async with asyncio.timeout(seconds + _PATIENCE_SECONDS + _GENERATOR_SECONDS):
            code = await process.wait()
    except TimeoutError:
        raise StartError("The load generator did not end.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code != 0:
        raise StartError("The load generator failed; what it said stands above.")


class _Run:
    """One run of the benchmark."""

    def __init__(self, options: Options, directory: Path, console: Console) -> None:
        self._options = options
        self._directory = directory
        self._console = console
        self._wrong: list[str] = []
        self._warnings: list[str] = []
        self._references: dict[str, float | None] = dict.fromkeys(
            (
                "capacity_per_second",
                "echo_per_second",
                "groups_of_one_per_second",
                "database_alone_per_second",
            )
        )
        self._details: dict[str, Any] = {}
        self._overload: dict[str, Any] | None = None

    async def measure(self) -> dict[str, Any]:
        options, machine = self._options, report.machine()
        headline = await self._headline()
        if options.references or options.overload:
            await self._capacity()
        if options.references:
            await self._groups_of_one()
            await self._echo()
            await self._database_alone()
            await self._pgbench()
        return {
            **headline,
            "references": self._references,
            "reference_details": self._details,
            "ratios": self._ratios(),
            "overload": self._overload,
            "books_match": not self._wrong,
            "books_wrong": self._wrong,
            "warnings": self._warnings,
            "machine": machine,
            "versions": report.versions(options.profile),
        }

    async def _headline(self) -> dict[str, Any]:
        options = self._options
        self._say(f"{options.rate:,.0f} payments a second for {options.seconds:.0f} s")
        payers = payers_needed(options.rate, options.seconds + _WARM_UP_SECONDS)
        stretches = [
            Stretch("warm-up", _WARM_UP_SECONDS, rate=options.rate),
            Stretch("online", options.seconds, rate=options.rate),
        ]
        async with self._measured("headline", Variant(), payers=payers) as measured:
            outcome = await measured.offer(stretches)
            found = await self._checked("headline", measured)
        online = figures(outcome, stretches, 1)
        self._note_company("online", online)
        lag = latency_ms(online.lags)
        if lag["p99"] > _LAG_SECONDS_MAX * 1000:
            self._warnings.append(
                f"the generator made one call in a hundred {lag['p99']:.0f} ms late or more: part of the latency is "
                "the machine's, not the system's"
            )
        return {
            "settled_per_second": round(online.settled_per_second, 1),
            "latency_ms": latency_ms(online.latencies),
            "refused_latency_ms": latency_ms(online.refused),
            "generator_lag_ms": lag,
            "offered": online.offered,
            "not_made": online.not_made,
            "statuses": online.statuses,
            "states": online.states,
            "cpu_us_per_payment": online.cpu_us_per_payment(),
            "cores_used": round(online.cores_used, 2),
            "cores_of_others": round(online.cores_of_others, 2),
            "connections_lost": outcome.connections_lost,
            "group_size": _sizes(found.group_sizes(outcome.requests(1))),
            "stored": found.states,
            "laws": found.laws,
            "settings": {
                "profile": options.profile,
                "rate": options.rate,
                "seconds": options.seconds,
                "warm_up_seconds": _WARM_UP_SECONDS,
                "payment_processes": options.payment_processes,
                "payers": payers,
                "vendors": _VENDORS,
                "connections": _CONNECTIONS,
                "reference_seconds": _REFERENCE_SECONDS,
                "reference_in_flight": _IN_FLIGHT,
                "variables": stack.own_variables(),
            },
        }

    async def _capacity(self) -> None:
        self._say("capacity: the same payments, closed loop")
        async with self._measured("capacity", Variant(variables=NEVER_EMPTY)) as measured:
            found = await self._closed_loop("capacity_per_second", measured)
            if self._options.overload:
                await self._overloaded(measured, found.settled_per_second)
            checked = await self._checked("capacity", measured)
        sizes = checked.group_sizes(measured.outcomes[0].requests(1))
        self._details["capacity_per_second"]["group_size"] = _sizes(sizes)

    async def _overloaded(self, measured: _Measured, capacity: float) -> None:
        self._say(f"overload: {2 * capacity:,.0f} payments a second")
        stretches = [
            Stretch("before", _BEFORE_SECONDS, rate=capacity / 2),
            Stretch("during", _OVERLOAD_SECONDS, rate=2 * capacity),
            Stretch("after", _RECOVERY_SECONDS, rate=capacity / 2),
        ]
        outcome = await measured.offer(stretches)
        self._overload = overload(outcome, stretches, before=0, during=1, after=2)

    async def _groups_of_one(self) -> None:
        self._say("reference: the same code, one payment in a group")
        one = Variant("bench.unpaced", {**NEVER_EMPTY, "GROUP_SIZE_MAX": "1"})
        async with self._measured("groups-of-one", one) as measured:
            await self._closed_loop("groups_of_one_per_second", measured)
            checked = await self._checked("groups of one", measured)
        largest = max(checked.group_sizes(measured.outcomes[0].request_ids), default=0)
        if largest > 1:
            self._wrong.append(f"groups of one: a group of {largest}")

    async def _echo(self) -> None:
        self._say("reference: an empty call through the same gateway")
        echo = Variant("bench.echo", NEVER_EMPTY)
        async with self._measured("echo", echo, ledger=False) as measured:
            admin = measured.endpoints.envoy_admin
            before = await asyncio.to_thread(stack.answers_passed, admin)
            await self._closed_loop("echo_per_second", measured)
            passed = await asyncio.to_thread(stack.answers_passed, admin) - before
        # There are no books to hold this one against, but Envoy has counted too.
        told = sum(1 for status in measured.outcomes[0].statuses if status == 0)
        self._details["echo_per_second"]["answers_envoy_counted"] = passed
        if told != passed:
            self._wrong.append(f"echo: {told} answers came, Envoy passed on {passed}")

    async def _closed_loop(self, name: str, measured: _Measured) -> Figures:
        stretches = [
            Stretch("warm-up", _WARM_UP_SECONDS, in_flight=_IN_FLIGHT),
            Stretch(name, _REFERENCE_SECONDS, in_flight=_IN_FLIGHT),
        ]
        found = figures(await measured.offer(stretches), stretches, 1)
        self._references[name] = round(found.settled_per_second, 1)
        self._details[name] = {"in_flight": _IN_FLIGHT, **found.summary()}
        self._note_company(name, found)
        errors = sum(found.statuses.values()) - found.accepted
        if errors:
            self._warnings.append(f"{name}: {errors} calls were answered with errors")
        return found

    async def _database_alone(self) -> None:
        self._say("reference: the database alone, same statements")
        directory = self._directory / "noted"
        notes = self._directory / "notes.pickle"
        variant = Variant("bench.noted", {**NEVER_EMPTY, noted.FILE_VARIABLE: str(notes)})
        stretches = [Stretch("noted", _REFERENCE_SECONDS, rate=self._options.rate)]
        # One process: two would write to one file.
        async with self._measured(directory.name, variant, processes=1) as measured:
            rows = await statements.copy(measured.endpoints.services["payment"].database_url)
            since = time.time()
            await measured.offer(stretches)
            await self._checked("noted", measured)
        with _fresh_databases(self._options.profile, self._directory) as fresh:
            found = await statements.replay(
                notes, rows, fresh, since=since, directory=self._directory
            )
        self._references["database_alone_per_second"] = found.per_second
        self._details["database_alone_per_second"] = {**vars(found)}

    async def _pgbench(self) -> None:
        found = await asyncio.to_thread(pgbench.per_second, seconds=_REFERENCE_SECONDS)
        if found is not None:
            self._references["pgbench_per_second"] = found

    @contextlib.asynccontextmanager
    async def _measured(
        self,
        name: str,
        variant: Variant,
        *,
        payers: int = _REFERENCE_PAYERS,
        ledger: bool = True,
        processes: int | None = None,
    ) -> AsyncIterator[_Measured]:
        options, directory = self._options, self._directory / name
        async with stack.running(
            directory,
            options.profile,
            payment_processes=processes or options.payment_processes,
            variant=variant,
        ) as (endpoints, key_file):
            world = await seed(endpoints, key_file, payers=payers, vendors=_VENDORS, ledger=ledger)
            if not await stack.at_rest(endpoints.processes):
                self._warnings.append(f"{name}: the stack was not at rest when the load began")
            yield _Measured(endpoints, world, directory)

    async def _checked(self, name: str, measured: _Measured) -> Books:
        found = await measured.check()
        self._wrong += [f"{name}: {wrong}" for wrong in found.wrong]
        if found.wrong_count > len(found.wrong):
            self._wrong.append(f"{name}: and {found.wrong_count - len(found.wrong)} more")
        return found

    def _note_company(self, name: str, found: Figures) -> None:
        if found.cores_of_others > _COMPANY_CORES_MAX:
            self._warnings.append(
                f"{name}: {found.cores_of_others:.1f} cores were busy with other work meanwhile"
            )

    def _ratios(self) -> dict[str, float]:
        # Like with like: closed loop against closed loop.
        capacity = self._references["capacity_per_second"]
        return {
            f"payments_to_{name.removesuffix('_per_second')}": round(capacity / value, 3)
            for name, value in self._references.items()
            if capacity and value and name != "capacity_per_second"
        }

    def _say(self, sentence: str) -> None:
        self._console.print(f"[dim]{sentence}[/]")


@contextlib.contextmanager
def _fresh_databases(profile: str, directory: Path) -> Iterator[list[str]]:
    names = [f"tallystick_bench_{number}" for number in range(_ROUNDS)]
    if profile != databases.MYSQL:
        yield [f"sqlite+aiosqlite:///{directory}/{name}.db" for name in names]
        return
    with mariadb.running(durable=True) as server:
        yield [
            make_url(server).set(database=name).render_as_string(hide_password=False)
            for name in names
        ]


def _sizes(sizes: Mapping[int, int]) -> dict[str, float]:
    groups = sum(sizes.values())
    members = sorted(Counter(sizes).elements())
    return {
        "mean": round(len(members) and sum(members) / groups, 2),
        "p95": percentile(members, 0.95),
        "max": max(sizes, default=0),
    }
