"""What a figure is held against: the same machine, in the same minutes, doing something people can judge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from bench import noted, pgbench, stack, statements, sysbench
from bench.figures import Figures, figures, overload, sizes
from bench.load import Stretch
from bench.measured import IN_FLIGHT, REFERENCE_PAYERS, WARM_UP_SECONDS, Bench, Measured
from bench.stack import NEVER_EMPTY, Variant
from cli import databases, mariadb

_ROUNDS = 3
_OVERLOAD_SECONDS = 10.0
_RECOVERY_SECONDS = 10.0
_BEFORE_SECONDS = 4.0


class References:
    """References of online payments, measured one after the other.

    Args:
        bench: The run.
        seconds: For how long each is measured.
        warm_up_seconds: For how long it runs before that.
        payers: How many share a load.

    Attributes:
        found: By name, a second; None for what was not measured.
        details: What else is to be said of each.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        seconds: float,
        warm_up_seconds: float = WARM_UP_SECONDS,
        payers: int = REFERENCE_PAYERS,
    ) -> None:
        self._bench = bench
        self._seconds = seconds
        self._warm_up_seconds = warm_up_seconds
        self._payers = payers
        self.found: dict[str, float | None] = dict.fromkeys(
            (
                "capacity_per_second",
                "echo_per_second",
                "groups_of_one_per_second",
                "database_alone_per_second",
            )
        )
        self.details: dict[str, Any] = {}

    async def capacity(self) -> float:
        """The same payments, closed loop. Answers how many a second."""
        bench = self._bench
        bench.say("capacity: the same payments, closed loop")
        async with bench.stack(
            "capacity", Variant(variables=NEVER_EMPTY), payers=self._payers
        ) as measured:
            found = await self._closed_loop("capacity_per_second", measured)
            checked = await bench.checked("capacity", measured)
        self.details["capacity_per_second"]["group_size"] = sizes(
            checked.group_sizes(measured.outcomes[0].requests(1))
        )
        return found.settled_per_second

    async def overload(self, capacity: float) -> dict[str, Any]:
        """Twice the capacity for a while: who is refused, how soon all is well again."""
        bench = self._bench
        bench.say(f"overload: {2 * capacity:,.0f} payments a second")
        stretches = [
            Stretch("before", _BEFORE_SECONDS, rate=capacity / 2),
            Stretch("during", _OVERLOAD_SECONDS, rate=2 * capacity),
            Stretch("after", _RECOVERY_SECONDS, rate=capacity / 2),
        ]
        async with bench.stack("overload", Variant(variables=NEVER_EMPTY)) as measured:
            outcome = await measured.offer(stretches)
            await bench.checked("overload", measured)
        return overload(outcome, stretches, before=0, during=1, after=2)

    async def groups_of_one(self) -> None:
        """The same code, one payment in a group: what grouping is worth."""
        bench = self._bench
        bench.say("reference: the same code, one payment in a group")
        one = Variant("bench.unpaced", {**NEVER_EMPTY, "GROUP_SIZE_MAX": "1"})
        async with bench.stack("groups of one", one, payers=self._payers) as measured:
            await self._closed_loop("groups_of_one_per_second", measured)
            checked = await bench.checked("groups of one", measured)
        largest = max(checked.group_sizes(measured.outcomes[0].request_ids), default=0)
        if largest > 1:
            bench.wrong.append(f"groups of one: a group of {largest}")

    async def echo(self) -> None:
        """An empty call through the same gateway, by as many processes: what the edge costs and a payment cannot beat.

        Two others count as well. Envoy counts the answers it passes on: it must have passed on as many as came. And the
        kernel counts CPU: calls a second times CPU a call is the cores that were busy, and cannot be more than there
        are.
        """
        bench = self._bench
        bench.say("reference: an empty call through the same gateway")
        echo = Variant("bench.echo", NEVER_EMPTY)
        async with bench.stack("echo", echo, payers=self._payers, ledger=False) as measured:
            admin = measured.endpoints.envoy_admin
            before = await asyncio.to_thread(stack.answers_passed, admin)
            found = await self._closed_loop("echo_per_second", measured)
            passed = await asyncio.to_thread(stack.answers_passed, admin) - before
        # There are no books to hold this one against.
        told = sum(1 for status in measured.outcomes[0].statuses if status == 0)
        if told != passed:
            bench.wrong.append(f"echo: {told} answers came, Envoy passed on {passed}")
        self.details["echo_per_second"] |= {
            "answers_told": told,
            "answers_envoy_counted": passed,
            "cpu_us_per_call": round(sum(found.cpu_us_per_payment().values()), 1),
            "busiest_process_share_of_a_core": round(
                max(found.cpu_seconds.values()) / found.seconds, 2
            ),
        }

    async def database_alone(self, rate: float) -> None:
        """The very statements of a stretch at a rate, replayed by nobody who has anything else to do."""
        bench = self._bench
        bench.say("reference: the database alone, same statements")
        notes = bench.directory / "notes.pickle"
        variant = Variant("bench.noted", {**NEVER_EMPTY, noted.FILE_VARIABLE: str(notes)})
        stretches = [Stretch("noted", self._seconds, rate=rate)]
        # One process: two would write to one file.
        async with bench.stack("noted", variant, processes=1) as measured:
            rows = await statements.copy(measured.ledger_url)
            since = time.time()
            await measured.offer(stretches)
            await bench.checked("noted", measured)
        with _fresh_databases(bench.profile, bench.directory) as fresh:
            found = await statements.replay(
                notes, rows, fresh, since=since, directory=bench.directory
            )
        self.found["database_alone_per_second"] = found.per_second
        self.details["database_alone_per_second"] = {**vars(found)}

    async def yardsticks(self) -> None:
        """What sysbench and pgbench get out of this machine, where they are installed."""
        for name, measure in (("sysbench", sysbench.per_second), ("pgbench", pgbench.per_second)):
            self._bench.say(f"yardstick: {name}, where it is installed")
            found = await asyncio.to_thread(measure, seconds=self._seconds)
            if found is not None:
                self.found[f"{name}_per_second"] = found

    def ratios(self) -> dict[str, float]:
        """Capacity against everything else: like with like, closed loop against closed loop."""
        capacity = self.found["capacity_per_second"]
        return {
            f"payments_to_{name.removesuffix('_per_second')}": round(capacity / value, 3)
            for name, value in self.found.items()
            if capacity and value and name != "capacity_per_second"
        }

    async def _closed_loop(self, name: str, measured: Measured) -> Figures:
        stretches = [
            Stretch("warm-up", self._warm_up_seconds, in_flight=IN_FLIGHT),
            Stretch(name, self._seconds, in_flight=IN_FLIGHT),
        ]
        found = figures(await measured.offer(stretches), stretches, 1)
        self.found[name] = round(found.settled_per_second, 1)
        self.details[name] = {"in_flight": IN_FLIGHT, **found.summary()}
        self._bench.note_company(name, found)
        errors = sum(found.statuses.values()) - found.accepted
        if errors:
            self._bench.warnings.append(f"{name}: {errors} calls were answered with errors")
        return found


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
