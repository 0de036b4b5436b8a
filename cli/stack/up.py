"""`tallystick up`: starts a stack in order, keeps it running, stops it in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from rich.console import Console

from cli import mariadb, valkey
from cli.process import Ports, StartError, tail
from cli.stack.endpoints import Endpoints, Service
from cli.stack.layout import Layout
from cli.stack.plan import HOST, Plan, plan, service_of
from cli.stack.probes import Envoy, comes_true, listens, serves
from cli.stack.supervisor import Program, Supervisor

_INTERRUPTED = 130
# What clients get to finish in, after they were asked to leave.
_DRAIN_SECONDS_MAX = 5.0
_SERVED_SECONDS_MAX = 60.0


def run(layout: Layout, profile: str, port: int, payment_processes: int) -> int:
    """Run a stack until SIGINT or SIGTERM; a second one kills it. Answers the exit code.

    Args:
        layout: Its directories.
        profile: `dev` or `mysql`.
        port: Where clients connect on 127.0.0.1; 0 takes a free one.
        payment_processes: At least 1.

    Raises:
        StartError: something did not start; everything that did is stopped again.
        SettingError: a variable that profile mysql reads is wrong.
    """
    with layout.claim(), Ports() as ports:
        planned = plan(layout, ports, profile, port, payment_processes)
        return asyncio.run(_run(Stack(planned)))


def say(sentence: str) -> None:
    """Tell the person at the terminal."""
    print(f"tallystick: {sentence}", file=sys.stderr, flush=True)


async def _run(stack: Stack) -> int:
    told, again = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (again if told.is_set() else told).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    try:
        with Console(stderr=True).status("Starting the stack"):
            is_ready = await _unless(told, stack.start())
        if is_ready:
            print(stack.ready_line(), flush=True)
            await told.wait()
            say("stopping; Ctrl-C again kills.")
    finally:
        told.set()
        if not await _unless(again, stack.stop()):
            stack.kill()
    return _INTERRUPTED if again.is_set() else 0


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work, or give it up when the event comes first. True when it was done."""
    task, interrupt = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait({task, interrupt}, return_when=asyncio.FIRST_COMPLETED)
    interrupt.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, StartError):
        await task
    return False


class Stack:
    """A planned stack, from `start` until `stop`."""

    def __init__(self, planned: Plan) -> None:
        self._plan = planned
        self._envoy = Envoy(planned.envoy_port)
        self._supervisor = Supervisor(say, self._write_endpoints)
        self._since = time.monotonic()

    async def start(self) -> None:
        """Start everything and wait until a call through the gateway is answered.

        Raises:
            StartError: something did not start. Whatever did is running until `stop`.
        """
        # Python's imports are most of it, so whatever can start at the same time does.
        await _together(self._start_services(), self._start_gateway())
        await self._until_served()
        self._write_endpoints()

    async def stop(self) -> None:
        """Let clients finish, then end everything, each after those that need it."""
        running = self._supervisor.pids()
        if "envoy" in running:
            await self._drain()
        await self._supervisor.stop(["envoy"])
        await self._supervisor.stop([*(program.name for program in self._plan.services), "gateway"])
        await self._supervisor.stop(["valkey", "mariadb"])

    def kill(self) -> None:
        """End everything at once."""
        self._supervisor.kill()

    def ready_line(self) -> str:
        """Where the stack is, for a person."""
        return (
            f"Tallystick is ready after {time.monotonic() - self._since:.1f} s: "
            f"{HOST}:{self._plan.port} (gRPC and gRPC-Web, TLS), "
            f"{_short(self._plan.layout.endpoints_file)}. Ctrl-C stops it."
        )

    async def _start_services(self) -> None:
        planned = self._plan
        await _together(self._start_valkey(), self._start_databases())
        await _together(*(self._start_program(program) for program in planned.services))

    async def _start_program(self, program: Program) -> None:
        port = self._plan.service_port(program.name)
        await self._supervisor.start(program, lambda: listens(port))

    async def _start_valkey(self) -> None:
        own = self._plan.valkey
        if own is not None:
            await self._supervisor.start(own.program, lambda: valkey.answers(own.port))

    async def _start_databases(self) -> None:
        own = self._plan.mariadb
        if own is not None:
            await asyncio.to_thread(mariadb.install, self._plan.layout.mariadb)
            await self._supervisor.start(own.program, lambda: mariadb.answers(own.port))
        await self._supervisor.run_once(self._plan.prepare)

    async def _start_gateway(self) -> None:
        envoy, port = self._plan.envoy, self._plan.envoy_port
        await _together(
            self._start_program(self._plan.gateway),
            self._supervisor.start(envoy, lambda: listens(port)),
        )

    async def _until_served(self) -> None:
        planned, ca_file = self._plan, Path(self._plan.ca_file)
        backends = len(planned.services)
        if not await comes_true(
            lambda: self._envoy.has_healthy(backends) and serves(planned.port, ca_file),
            seconds=_SERVED_SECONDS_MAX,
        ):
            raise StartError(
                f"No call came through the gateway for {_SERVED_SECONDS_MAX:.0f} s.\n"
                f"{tail(planned.gateway.log)}\n{tail(planned.envoy.log)}"
            )

    async def _drain(self) -> None:
        await asyncio.to_thread(self._envoy.drain)
        await comes_true(lambda: self._envoy.connections() == 0, seconds=_DRAIN_SECONDS_MAX)

    def _write_endpoints(self) -> None:
        planned, pids = self._plan, self._supervisor.pids()
        layout = planned.layout
        Endpoints(
            grpc=f"{HOST}:{planned.port}",
            grpc_web=f"https://{HOST}:{planned.port}",
            ca_file=planned.ca_file,
            admin_user=layout.admin_user(),
            admin_password_file=str(layout.admin_password_file),
            services={
                program.name: Service(
                    address=planned.addresses[program.name],
                    database_url=planned.database_urls.get(service_of(program.name), ""),
                    pid=pids[program.name],
                    log_file=str(program.log),
                )
                for program in (*planned.services, planned.gateway)
            },
            processes={"supervisor": os.getpid(), **pids},
            redis_url=planned.redis_url,
            envoy_admin=f"http://{HOST}:{planned.envoy_port}",
            profile=planned.profile,
        ).write(layout.endpoints_file)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it at the same time. The first failure ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
