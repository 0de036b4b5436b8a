"""Keeps programs running: starts them, starts again what crashed, ends them when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli import process
from cli.stack.probes import comes_true

_START_SECONDS_MAX = 60.0
_RESTART_SECONDS_FIRST = 0.5
_RESTART_SECONDS_MAX = 10.0
# Who ran this long had recovered: its next crash is a new one.
_STEADY_SECONDS = 30.0


@dataclass(frozen=True)
class Program:
    """One process of the stack.

    Attributes:
        name: What it is called in messages and endpoints.
        command: Program and arguments.
        environment: All of its variables.
        log: Where its output goes.
        stop_seconds: How long it may take to end by itself.
    """

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    stop_seconds: float = 15.0


class Supervisor:
    """Runs programs. All of its methods belong to one thread, the one that made it.

    Args:
        announce: Told in one sentence what a person at the terminal should know.
        changed: Called when a program came back with another process id.
    """

    def __init__(self, announce: Callable[[str], None], changed: Callable[[], None]) -> None:
        self._announce = announce
        self._changed = changed
        self._running: dict[str, _Kept] = {}

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: kept.process.pid for name, kept in self._running.items()}

    async def start(self, program: Program, ready: Callable[[], bool]) -> None:
        """Start a program and wait until it does its work. From then on it is kept running.

        Args:
            program: What to start.
            ready: It does its work. Called in a thread, every few milliseconds.

        Raises:
            StartError: it ended first, or took too long; quotes its log.
        """
        started = self._spawn(program)
        kept = _Kept(program, started, asyncio.create_task(self._keep(program, started)))
        self._running[program.name] = kept
        is_ready = await comes_true(
            lambda: started.poll() is not None or ready(), seconds=_START_SECONDS_MAX
        )
        if started.poll() is not None:
            raise self._ended(program, started)
        if not is_ready:
            raise process.StartError(
                f"{program.name} was not ready after {_START_SECONDS_MAX:.0f} s.\n"
                f"{process.tail(program.log)}"
            )
        kept.was_ready = True

    async def run_once(self, program: Program) -> None:
        """Run a program to its end.

        Raises:
            StartError: it failed; quotes its log.
        """
        started = self._spawn(program)
        try:
            await _exited(started)
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()
        if started.returncode != 0:
            raise self._ended(program, started)

    async def stop(self, names: Sequence[str]) -> None:
        """End programs, all at the same time; unknown names are passed over."""
        stopping = [self._running[name] for name in names if name in self._running]
        await asyncio.gather(*(self._stop(kept) for kept in stopping))
        for kept in stopping:
            del self._running[kept.program.name]

    def kill(self) -> None:
        """End everything at once, without a chance to finish."""
        for kept in self._running.values():
            kept.keeper.cancel()
            if kept.process.poll() is None:
                kept.process.kill()
            kept.process.wait()

    def _ended(self, program: Program, started: subprocess.Popen[bytes]) -> process.StartError:
        what = _ending(started.wait())
        return process.StartError(f"{program.name} {what}.\n{process.tail(program.log)}")

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        return process.start(program.command, log=program.log, environment=program.environment)

    async def _keep(self, program: Program, started: subprocess.Popen[bytes]) -> None:
        delay = _RESTART_SECONDS_FIRST
        while True:
            since = time.monotonic()
            await _exited(started)
            kept = self._running[program.name]
            if not kept.was_ready:
                return  # `start` is waiting, and reports it
            if time.monotonic() - since > _STEADY_SECONDS:
                delay = _RESTART_SECONDS_FIRST
            self._announce(
                f"{program.name} {_ending(started.wait())}; "
                f"starting it again in {delay:.1f} s. Its log: {program.log}"
            )
            await asyncio.sleep(delay)
            delay = min(_RESTART_SECONDS_MAX, delay * 2)
            started = kept.process = self._spawn(program)
            self._changed()

    async def _stop(self, kept: _Kept) -> None:
        kept.keeper.cancel()
        # Not `await kept.keeper`: its cancellation and one of ours would look the same.
        await asyncio.wait([kept.keeper])
        if kept.process.poll() is None:
            kept.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(kept.program.stop_seconds):
                    await _exited(kept.process)
            except TimeoutError:
                self._announce(
                    f"{kept.program.name} did not end within {kept.program.stop_seconds:.0f} s "
                    "and was killed."
                )
                kept.process.kill()
        kept.process.wait()


@dataclass
class _Kept:
    program: Program
    process: subprocess.Popen[bytes]
    keeper: asyncio.Task[None]
    was_ready: bool = False


async def _exited(started: subprocess.Popen[bytes]) -> None:
    """Wait for a child to end, without reaping it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        descriptor = os.pidfd_open(started.pid)
    except ProcessLookupError:  # reaped already
        return
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
