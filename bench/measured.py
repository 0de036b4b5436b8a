"""What every figure is measured with: stacks with a world in them, loads, books, and a note of what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import books, report, stack
from bench.books import Books, Told
from bench.figures import Figures
from bench.load import Outcome, Spec, Stretch
from bench.seed import CURRENCY, World, seed
from bench.stack import Variant
from cli.process import StartError
from cli.stack.endpoints import Endpoints

VENDORS = 50
CONNECTIONS = 4
WARM_UP_SECONDS = 3.0
# Payers of loads whose buckets are made to last.
REFERENCE_PAYERS = 1_000
# Enough that a group forms while another commits, and fewer than the gateway refuses.
IN_FLIGHT = 256
# As long as the gateway lets a payment take: by then every call has been answered.
_PATIENCE_SECONDS = 16.0
# For the generator to start and to write what came of it.
_GENERATOR_SECONDS = 60.0
# Cores that others may keep busy before a figure says so; the kernel's own work takes some too.
_COMPANY_CORES_MAX = 0.3


@dataclass
class Measured:
    """A stack with a world in it, at rest, and what was offered to it.

    Attributes:
        endpoints: The stack.
        key_file: What its keys are encrypted with.
        world: Who pays whom in it.
        directory: Its own.
        outcomes: What was offered so far, and what came of it.
    """

    endpoints: Endpoints
    key_file: Path
    world: World
    directory: Path
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def ledger_url(self) -> str:
        """The payment service's database."""
        return self.endpoints.services["payment"].database_url

    async def offer(self, stretches: Sequence[Stretch], *, hot_every: int = 5) -> Outcome:
        """Offer a load and wait for its end. Every `hot_every`th payment goes to the first vendor.

        Raises:
            StartError: the generator failed.
        """
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
            connections=CONNECTIONS,
            # Another one each time, or the second load would repeat the first one's request ids.
            seed=len(self.outcomes) + 1,
            processes=self.endpoints.processes,
            hot_every=hot_every,
        )
        given, told = self.directory / "spec.json", self.directory / "outcome.json"
        given.write_text(spec.to_json())
        await _generate(given, told, sum(stretch.seconds for stretch in stretches))
        outcome = Outcome(**json.loads(told.read_text()))
        self.outcomes.append(outcome)
        return outcome

    async def check(self) -> Books:
        """Hold the books against everything that was offered."""
        return await books.check(self.ledger_url, Told.by(self.outcomes, self.world), self.world)


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


class Bench:
    """One run: where its stacks live, and what a reader must know of it.

    Args:
        profile: `dev` or `mysql`.
        payment_processes: How many share the work, where nothing else is said.
        directory: For everything that is written on the way.
        console: Where progress is told.

    Attributes:
        wrong: Where books do not match; empty is what everybody hopes for.
        warnings: What makes a figure softer than it looks.
    """

    def __init__(
        self, profile: str, payment_processes: int, directory: Path, console: Console
    ) -> None:
        self.profile = profile
        self.payment_processes = payment_processes
        self.directory = directory
        self.wrong: list[str] = []
        self.warnings: list[str] = []
        self._console = console
        self._machine = report.machine()

    @contextlib.asynccontextmanager
    async def stack(
        self,
        name: str,
        variant: Variant,
        *,
        payers: int = REFERENCE_PAYERS,
        ledger: bool = True,
        processes: int | None = None,
    ) -> AsyncIterator[Measured]:
        """A stack of its own with a world in it, for as long as the block runs.

        Args:
            name: What warnings call it.
            variant: What is different about it.
            payers: How many, with money.
            ledger: There is a payment service.
            processes: How many payment processes, where not as many as the run has.

        Raises:
            StartError: it did not start.
        """
        directory = self.directory / name.replace(" ", "-")
        async with stack.running(
            directory,
            self.profile,
            payment_processes=processes or self.payment_processes,
            variant=variant,
        ) as (endpoints, key_file):
            world = await seed(endpoints, key_file, payers=payers, vendors=VENDORS, ledger=ledger)
            await self.rest(name, endpoints)
            yield Measured(endpoints, key_file, world, directory)

    async def vendors(self, endpoints: Endpoints, key_file: Path) -> World:
        """Register vendors on a stack, and nobody who pays."""
        return await seed(endpoints, key_file, payers=0, vendors=VENDORS)

    async def rest(self, name: str, endpoints: Endpoints) -> None:
        """Wait until a stack has nothing left to do, and warn when that does not come."""
        if not await stack.at_rest(endpoints.processes):
            self.warnings.append(f"{name}: the stack was not at rest when the load began")

    async def checked(self, name: str, measured: Measured) -> Books:
        """Check the books of a stack, and note what is wrong with them."""
        found = await measured.check()
        self.note_books(name, found)
        return found

    def note_books(self, name: str, found: Books) -> None:
        """Note what is wrong with some books."""
        self.wrong += [f"{name}: {wrong}" for wrong in found.wrong]
        if found.wrong_count > len(found.wrong):
            self.wrong.append(f"{name}: and {found.wrong_count - len(found.wrong)} more")

    def note_company(self, name: str, found: Figures) -> None:
        """Warn when others were at work while something was measured."""
        if found.cores_of_others > _COMPANY_CORES_MAX:
            self.warnings.append(
                f"{name}: {found.cores_of_others:.1f} cores were busy with other work meanwhile"
            )

    def say(self, sentence: str) -> None:
        """Tell how far it is."""
        self._console.print(f"[dim]{sentence}[/]")

    def circumstances(self) -> dict[str, Any]:
        """For the end of a report: whether the books match, and what it was measured on."""
        return {
            "books_match": not self.wrong,
            "books_wrong": self.wrong,
            "warnings": self.warnings,
            "machine": self._machine,
            "versions": report.versions(self.profile),
        }
