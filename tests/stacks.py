"""Stacks that tests start: `tallystick up` as a person starts it, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli import process
from cli.stack import endpoints
from cli.stack.endpoints import Endpoints

TALLYSTICK = (sys.executable, "-P", "-m", "cli")


@dataclass
class RunningStack:
    """A stack of a test's own."""

    directory: Path
    supervisor: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoints(self) -> Endpoints:
        """As its file says now."""
        return endpoints.read(self.directory / "run" / "endpoints.json")

    @property
    def output(self) -> str:
        """What it has told its terminal."""
        return self.log.read_text()

    def stop(self) -> int:
        """Ctrl-C; answers its exit code."""
        self.supervisor.send_signal(signal.SIGINT)
        return self.supervisor.wait(60)


def start(directory: Path, *options: str, environment: Mapping[str, str] | None = None):
    """Start a stack and wait until it is ready."""
    log = directory / "up.log"
    log.unlink(missing_ok=True)
    command = [*TALLYSTICK, "up", "--run-dir", directory / "run", *options]
    variables = {**os.environ, **(environment or {})}
    supervisor = process.start(command, log=log, environment=variables)
    try:
        process.wait_until(
            lambda: "Tallystick is ready" in log.read_text(),
            supervisor,
            name="The stack",
            log=log,
            seconds=90,
        )
    except BaseException:
        process.stop(supervisor, grace_seconds=30)
        raise
    return RunningStack(directory, supervisor, log)


@contextlib.contextmanager
def running(
    directory: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """A stack for as long as the block runs."""
    stack = start(directory, *options, environment=environment)
    try:
        yield stack
    finally:
        process.stop(stack.supervisor, grace_seconds=60)


def is_running(pid: int) -> bool:
    """There is such a process, and it is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
