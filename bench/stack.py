"""Stacks the benchmark starts for itself, and what their processes cost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cli.process import Ports
from cli.stack import endpoints
from cli.stack.endpoints import Endpoints
from cli.stack.layout import Layout
from cli.stack.plan import Plan, plan, service_of
from cli.stack.supervisor import Program
from cli.stack.up import Stack, say

Change = Callable[[Program], Program]
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    profile: str,
    *,
    payment_processes: int,
    change: Change = lambda program: program,
) -> AsyncIterator[tuple[Endpoints, Path]]:
    """A stack of its own for as long as the block runs: its endpoints, and its key-encryption key.

    Args:
        directory: Everything it writes goes there.
        profile: `dev` or `mysql`.
        payment_processes: How many share the work.
        change: What is different about its payment processes.

    Raises:
        StartError: it did not start.
    """
    layout = Layout(run=directory / "run", data=directory / "data")
    with layout.claim(), Ports() as ports:
        planned = _changed(plan(layout, ports, profile, 0, payment_processes), change)
        stack = Stack(planned)
        try:
            await stack.start()
            yield endpoints.read(layout.endpoints_file), layout.make_key_encryption_key()
        except BaseException:
            say(f"logs were in {layout.run / 'logs'}")
            raise
        finally:
            await stack.stop()


def _changed(planned: Plan, change: Change) -> Plan:
    services = tuple(
        change(program) if service_of(program.name) == "payment" else program
        for program in planned.services
    )
    return replace(planned, services=services)


def with_variables(**variables: str) -> Change:
    """The same program with other variables."""
    return lambda program: replace(program, environment={**program.environment, **variables})


def with_module(module: str) -> Change:
    """Another program, told the same."""
    return lambda program: replace(program, command=[*program.command[:-1], module])


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """CPU each process has used since it started, its threads included; by name."""
    return {name: _cpu_seconds(pid) for name, pid in processes.items()}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
