"""A yardstick people know, where PostgreSQL is installed: pgbench's TPC-B-like transaction on this machine.

It is no rival: three updates, a select and an insert, one transaction each, by 32 clients that do nothing else. It says
how fast the machine and its disk are.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from cli import process

_SCALE = 10
_CLIENTS = 32
_THREADS = 2
_INSTALLED = "/usr/lib/postgresql"
# PostgreSQL refuses to run as root; Debian's package makes this account.
_ACCOUNT = "postgres"
_SECONDS_MAX = 60.0
_RATE = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)


def per_second(*, seconds: float) -> float | None:
    """Transactions a second over some seconds; None where PostgreSQL is not installed.

    Raises:
        StartError: it is installed and does not start.
    """
    programs = _programs()
    as_account = _as_account()
    if programs is None or as_account is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tallystick-pgbench-") as scratch:
        directory, data, log = Path(scratch), Path(scratch) / "data", Path(scratch) / "server.log"
        if as_account:
            shutil.chown(directory, _ACCOUNT, _ACCOUNT)

        def command(program: str, *arguments: str) -> list[str]:
            return [*as_account, str(programs / program), *arguments]

        _run(command("initdb", "--pgdata", str(data), "--auth=trust", "--username=bench"))
        # Its default settings: a commit is on disk when it is answered.
        settings = ("-k", str(directory), "-c", "listen_addresses=")
        server = process.start(command("postgres", "-D", str(data), *settings), log=log)
        at = ("--host", str(directory), "--username", "bench")
        ready = command("pg_isready", *at, "--dbname=postgres", "--quiet")
        try:
            process.wait_until(
                lambda: subprocess.run(ready, check=False).returncode == 0,  # noqa: S603
                server,
                name="PostgreSQL",
                log=log,
            )
            _run(command("pgbench", *at, "--initialize", f"--scale={_SCALE}", "postgres"))
            load = (f"--client={_CLIENTS}", f"--jobs={_THREADS}", f"--time={seconds:.0f}")
            said = _run(command("pgbench", *at, "--no-vacuum", *load, "postgres"))
        finally:
            process.stop(server, grace_seconds=10)
    found = _RATE.search(said)
    return None if found is None else round(float(found[1]), 1)


def _programs() -> Path | None:
    found = [path.parent for path in Path(_INSTALLED).glob("*/bin/pgbench")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


def _as_account() -> list[str] | None:
    if os.geteuid() != 0:
        return []
    try:
        pwd.getpwnam(_ACCOUNT)
    except KeyError:
        return None
    # The wish to die with its parent is lost with a change of account, and made again after it.
    setpriv = process.find("setpriv", package="util-linux")
    change = (f"--reuid={_ACCOUNT}", f"--regid={_ACCOUNT}", "--init-groups")
    return [setpriv, *change, "--pdeathsig", "KILL", "--"]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - programs of PostgreSQL, with arguments of our own making
            command, capture_output=True, text=True, timeout=_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise process.StartError(f"{command[0]} took longer than {_SECONDS_MAX:.0f} s.") from None
    if done.returncode != 0:
        raise process.StartError(
            f"PostgreSQL is installed and did not run:\n{done.stderr[-2_000:]}"
        )
    return done.stdout
