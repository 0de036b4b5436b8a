"""The database alone: the very statements of the payment service, sent by nobody who has anything else to do.

What the service sent in a measured stretch (`bench.noted`) is replayed on a fresh copy of the database it was sent to,
as text that was written beforehand, by processes of their own: so what is measured is the database and not Python.

One replaying process: `python -m bench.statements NOTES PART PARTS`, with the URL on its first line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import sqlite3
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cli.process import StartError
from services import sql
from services.payment import store

_PARTS = 2
# Of a lost conflict, MySQL's and MariaDB's numbers: deadlock, lock wait time-out.
_CONFLICTS = {1213, 1205}
_ROWS_AT_ONCE = 1_000
_PREPARED_SECONDS_MAX = 60.0
_REPLAYED_SECONDS_MAX = 60.0

# Text, parameters, and whether these are many rows' parameters: as the driver is given them.
Statement = tuple[str, Any, bool]
Rows = dict[str, list[dict[str, Any]]]


@dataclass
class Transaction:
    """What was committed together.

    Attributes:
        began: Seconds since 1970.
        statements: In order, without the commit.
    """

    began: float
    statements: list[Statement]

    @property
    def payments(self) -> int:
        """How many it put on record."""
        # Rows are many parameters on SQLite, and on MySQL text of which no literal holds a bracket (`services.bulk`).
        return sum(
            len(given) if many else 1 + text.count("),(")
            for text, given, many in self.statements
            if text.startswith(f"INSERT INTO {store.payments.name} ")
        )


@dataclass(frozen=True)
class Replay:
    """What replaying found.

    Attributes:
        per_second: Payments settled a second, median of the rounds.
        rounds: Of each round, each on a fresh copy.
        payments: Replayed in each.
        group_mean: Payments in one transaction, of those that settle any.
        conflicts: Transactions that were run again, in all rounds.
        client_us_per_payment: CPU of the replaying processes: what of the figure is still Python.
    """

    per_second: float
    rounds: list[float]
    payments: int
    group_mean: float
    conflicts: int
    client_us_per_payment: float


class _Pickler(pickle.Pickler):
    """Takes the views that SQLite's driver is given bytes as, too."""

    def reducer_override(self, obj: Any) -> Any:
        return (bytes, (bytes(obj),)) if isinstance(obj, memoryview) else NotImplemented


def write(path: Path, transactions: Sequence[Transaction]) -> None:
    """Write transactions to a file."""
    with path.open("wb") as file:
        _Pickler(file).dump([(one.began, one.statements) for one in transactions])


def read(path: Path) -> list[Transaction]:
    """What `write` wrote."""
    return [Transaction(*found) for found in pickle.loads(path.read_bytes())]  # noqa: S301 - our own file


async def copy(url: str) -> Rows:
    """Every row of a payment database, by table."""
    engine = sql.create_engine(url)
    try:
        async with sql.reading(engine, snapshot=True) as connection:
            return {
                table.name: [
                    dict(row) for row in (await connection.execute(sa.select(table))).mappings()
                ]
                for table in store.metadata.sorted_tables
            }
    finally:
        await engine.dispose()


async def paste(url: str, rows: Rows) -> None:
    """Make a payment database with these rows in it."""
    await sql.migrate(url, "payment")
    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            for table in store.metadata.sorted_tables:
                # Migrations may have put rows of their own there, which the copy holds too.
                await connection.execute(sa.delete(table))
                found = rows[table.name]
                for start in range(0, len(found), _ROWS_AT_ONCE):
                    await connection.execute(sa.insert(table), found[start : start + _ROWS_AT_ONCE])
    finally:
        await engine.dispose()


async def replay(
    notes: Path,
    rows: Rows,
    fresh: Sequence[str],
    *,
    since: float,
    directory: Path,
    parts: int = _PARTS,
) -> Replay:
    """Replay a stretch.

    Args:
        notes: What the service noted.
        rows: The database as it was when the stretch began.
        fresh: A database for each round, that may be made and filled.
        since: When the stretch began, seconds since 1970; what the service did before is left out.
        directory: For files on the way.
        parts: Processes that replay at once, every so-manieth transaction each; SQLite takes one. With more than
            one, two transactions may change places: the same work, but a wallet both wrote may keep the older row.

    Raises:
        StartError: a replaying process failed, or took too long.
    """
    stretch = [found for found in read(notes) if found.began >= since]
    file = directory / "stretch.pickle"
    write(file, stretch)
    sizes = [found.payments for found in stretch if found.payments]
    payments = sum(sizes)
    rates: list[float] = []
    conflicts, client_seconds = 0, 0.0
    for url in fresh:
        await paste(url, rows)
        # SQLite has one writer at a time: a second one would only wait.
        is_sqlite = make_url(url).get_backend_name() == "sqlite"
        found = await _round(file, url, 1 if is_sqlite else parts)
        rates.append(payments / max(part["seconds"] for part in found))
        conflicts += sum(part["conflicts"] for part in found)
        client_seconds += sum(part["cpu_seconds"] for part in found)
    return Replay(
        per_second=round(statistics.median(rates), 1),
        rounds=[round(rate, 1) for rate in rates],
        payments=payments,
        group_mean=round(statistics.fmean(sizes), 2),
        conflicts=conflicts,
        client_us_per_payment=round(client_seconds / len(fresh) / payments * 1e6, 1),
    )


async def _round(file: Path, url: str, parts: int) -> list[dict[str, Any]]:
    async with contextlib.AsyncExitStack() as running:
        processes = [
            await running.enter_async_context(_replaying(file, url, part, parts))
            for part in range(parts)
        ]
        try:
            async with asyncio.timeout(_PREPARED_SECONDS_MAX):
                await asyncio.gather(*(_line(process) for process in processes))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            async with asyncio.timeout(_REPLAYED_SECONDS_MAX):
                return [json.loads(await _line(process)) for process in processes]
        except TimeoutError:
            raise StartError("Replaying the statements took too long.") from None


@contextlib.asynccontextmanager
async def _replaying(file: Path, url: str, part: int, parts: int) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "bench.statements", file, str(part), str(parts)),
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(url.encode() + b"\n")  # not an argument: it holds a password
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _line(process: Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise StartError("A process that replays statements failed; what it said stands above.")
    return line


def _sqlite(path: str, transactions: Sequence[Transaction]) -> list[Callable[[], None]]:
    connection = sqlite3.connect(path, isolation_level=None)
    # As the service has it: a commit is on disk when it is answered.
    connection.execute("PRAGMA synchronous=FULL")

    def work(transaction: Transaction) -> None:
        for text, given, many in transaction.statements:
            if many:
                connection.executemany(text, given)
            else:
                connection.execute(text, given).fetchall()
        connection.execute("COMMIT")

    return [lambda found=found: work(found) for found in transactions]  # type: ignore[misc]


def _mysql(url: sa.URL, transactions: Sequence[Transaction]) -> list[Callable[[], None]]:
    connection: Any = pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        database=url.database,
        charset="utf8mb4",
        init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )
    # The same code that the service's driver writes rows out with, up to the same length of a statement.
    writer = _Writer(connection)

    def work(texts: Sequence[str]) -> None:
        for text in texts:
            connection.query(text)
        connection.commit()

    prepared = [writer.texts_of(found) for found in transactions]
    return [lambda texts=texts: work(texts) for texts in prepared]  # type: ignore[misc]


class _Writer(pymysql.cursors.Cursor):
    """Writes statements out instead of sending them."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._texts: list[str] = []

    def texts_of(self, transaction: Transaction) -> list[str]:
        self._texts = []
        for text, given, many in transaction.statements:
            if many:
                self.executemany(text, given)
            else:
                self.execute(text, given)
        return self._texts

    def _query(self, q: str) -> int:
        self._texts.append(q)
        return 0


def main() -> None:
    """Say when all is prepared, replay this process's part when told to, and say how long it took."""
    url = make_url(sys.stdin.readline().strip())
    file, part, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    transactions = read(file)[part::parts]
    is_sqlite = url.get_backend_name() == "sqlite"
    work = _sqlite(str(url.database), transactions) if is_sqlite else _mysql(url, transactions)
    _say("ready")
    sys.stdin.readline()
    conflicts, cpu, started = 0, time.process_time(), time.perf_counter()
    for transaction in work:
        while True:
            try:
                transaction()
                break
            except pymysql.err.OperationalError as error:
                if error.args[0] not in _CONFLICTS:
                    raise
                conflicts += 1
    _say(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "conflicts": conflicts,
            }
        )
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
