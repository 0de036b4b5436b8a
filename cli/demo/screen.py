"""What the demo shows: acts, steps, checks that are counted, and tables of money."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.money import decimal_text
from tallystick.type.v1 import money_pb2


class CheckFailed(Exception):
    """An expectation did not hold. The message says which."""


class Screen:
    """Writes the story down as it happens.

    Attributes:
        checks: How many expectations have held.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._acts = 0
        self.checks = 0

    def title(self, text: str, subtitle: str) -> None:
        """What the whole is about."""
        self._console.print()
        self._console.print(Text(text, style="bold"))
        self._console.print(Text(subtitle, style="dim"))

    def act(self, text: str) -> None:
        """A new chapter."""
        self._acts += 1
        self._console.print()
        heading = Text.assemble((f"{self._acts} ", "bold cyan"), (text, "bold"))
        self._console.print(Rule(heading, align="left", style="cyan"))

    def step(self, text: str, outcome: str = "") -> None:
        """Something was done, and this came of it."""
        line = Text.assemble(("  → ", "cyan"), text)
        if outcome:
            line.append("  ").append(outcome, style="dim")
        self._console.print(line)

    def check(self, holds: bool, text: str, seen: object) -> None:  # noqa: FBT001 - reads as a sentence
        """Count an expectation that holds.

        Raises:
            CheckFailed: it does not; quotes what was seen instead.
        """
        if not holds:
            self.fail(text, seen)
        self.checks += 1
        self._console.print(Text.assemble(("  ✓ ", "bold green"), text))

    def fail(self, text: str, seen: object) -> NoReturn:
        """An expectation did not hold.

        Raises:
            CheckFailed: always; quotes what was seen instead.
        """
        self._console.print(Text.assemble(("  ✗ ", "bold red"), (text, "red")))
        raise CheckFailed(f"{text} (seen: {seen})")

    @contextlib.contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that moves on with every call of what it gives, and is gone afterwards."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(text, total=total)
            yield lambda: progress.advance(task)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table whose columns, but for the first, are figures."""
        table = Table(
            title=Text(title, style="dim italic"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            header_style="bold",
            pad_edge=False,
        )
        for position, column in enumerate(columns):
            table.add_column(column, justify="right" if position else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table, new_line_start=False)


def amount_text(money: money_pb2.Money) -> str:
    """`1,000.00`, with the decimals of its currency."""
    return f"{Decimal(decimal_text(money.minor_units, money.currency_code)):,}"
