"""A yardstick people know, where sysbench is installed: its `oltp_write_only` on a MariaDB like the stack's.

Two updates by key, a delete and an insert in a transaction, on one table, a durable commit each. It is no rival: it
says what this machine, its disk and this database give to somebody who has nothing else to do.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pymysql
from sqlalchemy.engine import make_url

from cli import mariadb
from cli.process import StartError

_TEST = "oltp_write_only"
_DATABASE = "sbtest"
_ROWS = 100_000
_THREADS = 8
_SECONDS_MAX = 120.0
_RATE = re.compile(r"transactions:\s+\d+\s+\(([\d.]+) per sec\.\)")


def per_second(*, seconds: float) -> float | None:
    """Transactions a second over some seconds; None where sysbench is not installed.

    Raises:
        StartError: it is installed and does not run, or MariaDB is not.
    """
    program = shutil.which("sysbench")
    if program is None:
        return None
    with mariadb.running(durable=True) as server:
        url = make_url(server)
        assert url.host is not None
        assert url.username is not None
        assert url.port is not None
        connection = pymysql.connect(
            host=url.host, port=url.port, user=url.username, password=url.password or ""
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {_DATABASE}")
        command = [
            program,
            _TEST,
            f"--mysql-host={url.host}",
            f"--mysql-port={url.port}",
            f"--mysql-user={url.username}",
            # Of a server that lives as long as this function.
            f"--mysql-password={url.password}",
            f"--mysql-db={_DATABASE}",
            "--tables=1",
            f"--table-size={_ROWS}",
            f"--threads={_THREADS}",
            f"--time={seconds:.0f}",
        ]
        _run([*command, "prepare"])
        found = _RATE.search(_run([*command, "run"]))
    return None if found is None else round(float(found[1]), 1)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a program people know, with arguments of our own making
            command, capture_output=True, text=True, timeout=_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise StartError(f"sysbench took longer than {_SECONDS_MAX:.0f} s.") from None
    if done.returncode != 0:
        raise StartError(f"sysbench is installed and did not run:\n{done.stdout[-2_000:]}")
    return done.stdout
