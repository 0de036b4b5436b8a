"""Child processes that have a log of their own and never outlive the one that started them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

_LOG_TAIL_BYTES = 2_000
# Not seeded: tests that seed the shared one would all draw the same ports.
_random = random.SystemRandom()


# Run after the kernel was told to kill the child when its parent dies, because a parent that was
# gone by then never dies again.
_UNLESS_ORPHAN = 'if [ "$PPID" = "$0" ]; then exec "$@"; fi'

# SCHED_BATCH: a program that wakes up does not push aside the one that runs, where a dozen servers wake each other up
# for every message: 900 payments a second on two cores then take 128 ms at the 95th percentile, and not 150.
_BATCH = ("--batch", "0")


class StartError(Exception):
    """Something could not be started. The message says what, and the way out."""


def start(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program whose output is appended to `log`.

    The kernel kills it when the thread that called this ends, however that ends: call from a thread
    that lasts. It has a process group of its own, because Ctrl-C in a terminal goes to the whole
    group of the foreground process, and in what order a stack stops is for its supervisor to say.

    Args:
        command: Program and arguments.
        log: Made readable by its owner only.
        environment: All of it; the caller's own when left out.

    Raises:
        StartError: the program, or `setpriv` or `chrt` (Debian package util-linux), is not installed.
    """
    setpriv, chrt = (find(name, package="util-linux") for name in ("setpriv", "chrt"))
    unless_orphan = ["/bin/sh", "-c", _UNLESS_ORPHAN, str(os.getpid())]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [setpriv, "--pdeathsig", "KILL", "--", *unless_orphan, chrt, *_BATCH, *command],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=environment,
            process_group=0,
        )
    finally:
        os.close(descriptor)


def stop(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """End a process with SIGTERM, after the grace with SIGKILL. Answers its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    *,
    name: str,
    log: Path,
    seconds: float = 30,
) -> None:
    """Wait for a process to do its work.

    Raises:
        StartError: it ended, or was not ready in time; quotes the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise StartError(f"{name} ended with code {process.returncode}.\n{tail(log)}")
        if time.monotonic() > deadline:
            raise StartError(f"{name} was not ready after {seconds:.0f} s.\n{tail(log)}")
        time.sleep(0.01)


def tail(log: Path) -> str:
    """The end of a log, headed by where it lies."""
    content = log.read_bytes() if log.exists() else b""
    return f"{log} ends:\n{content[-_LOG_TAIL_BYTES:].decode(errors='replace')}".rstrip()


def find(program: str, *, package: str) -> str:
    """The path of a program.

    Raises:
        StartError: it is not installed; names the Debian package that holds it.
    """
    # Where Debian puts servers is not on every user's path.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=path)
    if found is None:
        raise StartError(
            f"{program} is not installed. "
            f"As root: apt-get install --no-install-recommends {package}"
        )
    return found


class Ports:
    """Ports on 127.0.0.1 that nobody else takes before their servers listen. A context manager.

    A port is held by a socket that is bound and does not listen: no other `Ports` gets it, and a
    server that sets SO_REUSEADDR, as servers do, listens on it beside that socket, also when it
    comes back after a crash.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held:
            held.close()

    def take(self) -> int:
        """A free port.

        Taken from below the range (32768 and up on Linux) that outgoing connections draw theirs
        from: between this answer and the moment a server listens, hundreds of those may be opened.

        Raises:
            StartError: there is none.
        """
        for _ in range(100):
            port = _random.randrange(20_000, 32_000)
            held = socket.socket()
            try:
                held.bind(("127.0.0.1", port))
            except OSError:
                held.close()
                continue
            # Only now: with it, two sockets that do not listen may be bound to one port.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.append(held)
            return port
        raise StartError("No free port found between 20000 and 32000 on 127.0.0.1.")


def free_port() -> int:
    """A port that nobody listens on now. Nothing keeps others from it: prefer `Ports`."""
    with Ports() as ports:
        return ports.take()


def is_free(port: int) -> bool:
    """Nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: connections that ended a minute ago do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
