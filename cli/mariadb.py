"""A private MariaDB, from Debian's mariadbd: its own data directory, port and accounts."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli import process

# What installs the two programs; `tools/install-debian-packages` does.
PACKAGES = "mariadb-server-core mariadb-client-core"

# Must be the same when the directory is made and when a server runs on it.
_LAYOUT = (
    "--innodb-log-file-size=8M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-undo-tablespaces=0",
)


@dataclass(frozen=True)
class Account:
    """Who may do what: all rights on one database, or on every one when `database` is empty."""

    user: str
    password: str
    database: str = ""


def install(directory: Path) -> None:
    """Make a data directory, 0.7 s. One that is whole stays as it is.

    Raises:
        StartError: MariaDB is not installed, or refused; the message names the package.
    """
    if directory.exists():
        return
    # Renamed when whole: no server starts on what an installation that was cut off leaves.
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    with tempfile.TemporaryDirectory(prefix="tallystick-") as scratch:
        # The script does not quote, so it never sees a path in which somebody put a space.
        alias = Path(scratch) / "data"
        alias.symlink_to(part)
        done = subprocess.run(
            [
                process.find("mariadb-install-db", package=PACKAGES),
                "--no-defaults",
                *_user(),
                # With a space in place of "=" it makes nothing and says it went well.
                f"--datadir={alias}",
                _own_tmpdir(alias),
                # root comes in by the socket only, as whoever owns the server.
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
                "--skip-name-resolve",
                *_LAYOUT,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise process.StartError(f"mariadb-install-db failed:\n{done.stdout[-2_000:]}")
    part.replace(directory)


def write_accounts(path: Path, accounts: Sequence[Account]) -> None:
    """Write what a server runs when it starts: statements that make accounts and databases."""
    statements = []
    for account in accounts:
        who = f"'{account.user}'@'127.0.0.1'"
        scope = "*.*"
        if account.database:
            statements.append(
                f"CREATE DATABASE IF NOT EXISTS `{account.database}` "
                "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;"
            )
            # In a grant "_" stands for any character.
            scope = f"`{account.database.replace('_', chr(92) + '_')}`.*"
        statements += [
            f"CREATE OR REPLACE USER {who} IDENTIFIED BY '{account.password}';",
            f"GRANT ALL ON {scope} TO {who};",
        ]
    path.touch(mode=0o600)
    path.write_text("\n".join(statements) + "\n")


def command(port: int, directory: Path, accounts: Path, *, durable: bool) -> list[str]:
    """The command line of a server on 127.0.0.1.

    Args:
        port: Where it listens.
        directory: What `install` made.
        accounts: What `write_accounts` wrote.
        durable: An acknowledged commit survives power loss. Otherwise only a crash of the server.

    Raises:
        StartError: mariadbd is not installed; the message names the package.
    """
    return [
        process.find("mariadbd", package=PACKAGES),
        # Must be first; without it the machine's own configuration, with its plugins, is read.
        "--no-defaults",
        *_user(),
        f"--datadir={directory}",
        _own_tmpdir(directory),
        # Relative to the data directory: a socket's path holds 107 bytes, and directories are deep.
        "--socket=mariadb.sock",
        "--pid-file=mariadb.pid",
        f"--port={port}",
        "--bind-address=127.0.0.1",
        f"--init-file={accounts}",
        "--skip-name-resolve",
        "--skip-log-bin",
        "--innodb-buffer-pool-size=64M",
        *_LAYOUT,
        f"--innodb-flush-log-at-trx-commit={1 if durable else 2}",
        f"--innodb-doublewrite={1 if durable else 0}",
        "--performance-schema=0",
        "--character-set-server=utf8mb4",
        "--collation-server=utf8mb4_bin",
        "--default-time-zone=+00:00",
        "--max-connections=400",
    ]


def url(port: int, account: Account) -> str:
    """The server's address for SQLAlchemy; names the account's database where it has one."""
    return f"mysql+aiomysql://{account.user}:{account.password}@127.0.0.1:{port}/{account.database}"


def answers(port: int) -> bool:
    """It greets: it has recovered and run its accounts file."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(0.2)
            greeting = connection.recv(5)
            # Three bytes of length, a sequence number, protocol version 10; a refusal has 255.
            return greeting[4:] == b"\x0a"
    except OSError:
        return False


@contextlib.contextmanager
def running(*, durable: bool = False) -> Iterator[str]:
    """A server that is fast and forgets, for as long as the block runs.

    Gives its URL, with all rights and no database.

    Raises:
        StartError: MariaDB is not installed; the message names the package.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tallystick-mariadb-") as scratch,
        process.Ports() as ports,
    ):
        directory, accounts = Path(scratch) / "data", Path(scratch) / "accounts.sql"
        log = Path(scratch) / "mariadb.log"
        account = Account("tests", secrets.token_hex(16))
        install(directory)
        write_accounts(accounts, [account])
        port = ports.take()
        server = process.start(command(port, directory, accounts, durable=durable), log=log)
        try:
            process.wait_until(lambda: answers(port), server, name="MariaDB", log=log)
            yield url(port, account)
        finally:
            process.stop(server, grace_seconds=10)


def _own_tmpdir(directory: Path) -> str:
    # A server that starts deletes what looks like its old temporary tables, and in a shared /tmp those are other
    # servers' present ones.
    return f"--tmpdir={directory}"


def _user() -> list[str]:
    # mariadbd refuses to run as root without being told so.
    return ["--user=root"] if os.geteuid() == 0 else []
