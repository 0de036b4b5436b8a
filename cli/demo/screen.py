"""What the demo shows: acts, steps, checks that are counted, and tables of money."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text


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

    def step(self, text: str, outcome: str = "", words: str = "") -> None:
        """Something was done, this came of it, and that is what the platform said."""
        self._line(("→", "cyan"), Text.assemble(text, "  ", (outcome, "dim")))
        if words:
            self._line((" ", ""), Text(f"“{words}”", "dim italic"))

    def check(self, holds: bool, text: str, seen: object) -> None:  # noqa: FBT001 - reads as a sentence
        """Count an expectation that holds.

        Raises:
            CheckFailed: it does not; quotes what was seen instead.
        """
        if not holds:
            self.fail(text, seen)
        self.checks += 1
        self._line(("✓", "bold green"), Text(text))

    def fail(self, text: str, seen: object) -> NoReturn:
        """An expectation did not hold.

        Raises:
            CheckFailed: always; quotes what was seen instead.
        """
        self._line(("✗", "bold red"), Text(text, "red"))
        raise CheckFailed(f"{text}. Seen: {' '.join(str(seen).split())}")

    def _line(self, mark: tuple[str, str], text: Text) -> None:
        # A grid, so that a long text goes on below its own beginning.
        grid = Table.grid(padding=(0, 1))
        grid.add_row(" ", Text(*mark), text)
        self._console.print(grid)

    @contextlib.contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that moves on with every call of what it gives, and is gone afterwards."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn())
        is_shown = self._console.is_terminal
        with Progress(
            *columns, console=self._console, transient=True, disable=not is_shown
        ) as progress:
            task = progress.add_task(text, total=total)
            yield lambda: progress.advance(task)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table whose columns, but for the first, are figures."""
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for position, column in enumerate(columns):
            table.add_column(column, justify="right" if position else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print(Padding(table, (0, 0, 0, 4), expand=False))
