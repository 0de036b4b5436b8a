"""The payment service, noting every statement it sends: `python -m bench.noted`.

For the reference of the database alone, which replays them. Noting costs CPU: no figure is measured here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.statements import Transaction, write
from services.environment import Environment
from services.payment.server import main

# Where the notes go when the service ends.
FILE_VARIABLE = "BENCH_NOTES_FILE"
_OPEN = "bench_transaction"


class Notes:
    """Statements of every transaction, in the order they were committed. Those rolled back are not kept."""

    def __init__(self) -> None:
        self.committed: list[Transaction] = []

    def listen(self, target: Any) -> None:
        """Note what an engine, or every engine for the class `sa.Engine`, sends from now on."""
        sa.event.listen(target, "before_cursor_execute", self._executing)
        sa.event.listen(target, "commit", self._committing)
        sa.event.listen(target, "rollback", self._rolling_back)

    def _executing(
        self,
        connection: sa.Connection,
        _cursor: Any,
        text: str,
        given: Any,
        _context: Any,
        many: bool,  # noqa: FBT001 - as SQLAlchemy calls it
    ) -> None:
        # `info` belongs to the pooled connection, which one transaction has at a time.
        begun = connection.info.setdefault(_OPEN, Transaction(time.time(), []))
        begun.statements.append((text, given, many))

    def _committing(self, connection: sa.Connection) -> None:
        begun = connection.info.pop(_OPEN, None)
        if begun is not None:
            self.committed.append(begun)

    def _rolling_back(self, connection: sa.Connection) -> None:
        connection.info.pop(_OPEN, None)


if __name__ == "__main__":
    notes = Notes()
    notes.listen(sa.Engine)
    try:
        main()
    finally:
        write(Path(Environment().text(FILE_VARIABLE)), notes.committed)
