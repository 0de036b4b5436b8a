"""Stacks the benchmark starts for itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.processes import cpu_seconds
from cli.process import Ports
from cli.stack import endpoints
from cli.stack.endpoints import Endpoints
from cli.stack.layout import Layout
from cli.stack.plan import Plan, plan, service_of
from cli.stack.supervisor import Program
from cli.stack.up import Stack, say
from services.environment import PREFIX, SettingError

# Variables that lead a stack to what is not its own. Some of them hold passwords.
_ELSEWHERE = ("MYSQL_URL", "REDIS_URL", "KEK_FILE")
# Every payer's bucket, for loads that few payers share; the filter does the same work as with the contract's.
NEVER_EMPTY = {"RATE_PAYMENT": "1000000/1000000/60000"}

# As for a small server of its own. The stack's own 64 MiB are meant for a laptop; a minute at 1,000 payments a second
# writes twice that, and would be measured reading pages back.
MARIADB = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=256M")
# A stack is at rest when all of it together uses no more than this share of a core.
_AT_REST_SHARE = 0.25
_AT_REST_SECONDS_MAX = 60.0
_LOOK_SECONDS = 0.5
_ANSWERS = "cluster.payment.upstream_rq_completed"


@dataclass(frozen=True)
class Variant:
    """What is different about a stack.

    Attributes:
        module: What its payment processes run.
        variables: Of all its programs, without prefix.
        mariadb: Further options of its MariaDB; the last of the same name counts.
    """

    module: str = "services.payment"
    variables: Mapping[str, str] = field(default_factory=dict)
    mariadb: Sequence[str] = ()


def check_environment() -> None:
    """See that a stack started here would be the benchmark's own.

    Raises:
        SettingError: a variable would lead it to somebody else's server, which it would fill with its own accounts.
    """
    for name in _ELSEWHERE:
        if os.environ.get(PREFIX + name):
            raise SettingError(
                f"{PREFIX}{name} is set. The benchmark fills what it measures with accounts of its own, so it runs on "
                f"servers of its own only. Unset it."
            )


def own_variables() -> dict[str, str]:
    """The `TALLYSTICK_` variables that every stack here gets; after `check_environment`, none is a secret."""
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


@contextlib.asynccontextmanager
async def running(
    directory: Path, profile: str, *, payment_processes: int, variant: Variant
) -> AsyncIterator[tuple[Endpoints, Path]]:
    """A stack for as long as the block runs: its endpoints, and its key-encryption key.

    Args:
        directory: Everything it writes goes there.
        profile: `dev` or `mysql`.
        payment_processes: How many share the work.
        variant: What is different about it.

    Raises:
        StartError: it did not start.
    """
    layout = Layout(run=directory / "run", data=directory / "data")
    with layout.claim(), Ports() as ports:
        stack = Stack(_varied(plan(layout, ports, profile, 0, payment_processes), variant))
        try:
            await stack.start()
            yield endpoints.read(layout.endpoints_file), layout.make_key_encryption_key()
        except BaseException:
            _keep_logs(layout)
            raise
        finally:
            await stack.stop()


def _keep_logs(layout: Layout) -> None:
    # The directory is about to be removed: what a person needs to see is shown now.
    for log in sorted((layout.run / "logs").glob("*.log")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if _is_trouble(line)]
        for line in lines[-3:]:
            say(f"{log.name}: {line[:500]}")


def _is_trouble(line: str) -> bool:
    return any(word in line for word in ('"ERROR"', '"CRITICAL"', "Traceback", "[critical]"))


def _varied(planned: Plan, variant: Variant) -> Plan:
    variables = {PREFIX + name: value for name, value in variant.variables.items()}

    def varied(program: Program) -> Program:
        command = list(program.command)
        if service_of(program.name) == "payment":
            command[-1] = variant.module
        return replace(program, command=command, environment={**program.environment, **variables})

    own = planned.mariadb
    if own is not None:
        command = [*own.program.command, *MARIADB, *variant.mariadb]
        program = replace(own.program, command=command)
        own = replace(own, program=program)
    return replace(
        planned,
        mariadb=own,
        services=tuple(varied(program) for program in planned.services),
        gateway=varied(planned.gateway),
    )


async def at_rest(processes: Mapping[str, int]) -> bool:
    """Wait until a stack has done what seeding left it to do; False when it has not after a minute.

    What still runs when a load begins would be counted as the load's.
    """
    deadline = time.monotonic() + _AT_REST_SECONDS_MAX
    before, since = sum(cpu_seconds(processes).values()), time.monotonic()
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
        used, now = sum(cpu_seconds(processes).values()), time.monotonic()
        if used - before <= _AT_REST_SHARE * (now - since):
            return True
        before, since = used, now
    return False


def answers_passed(envoy_admin: str) -> int:
    """How many answers of payment processes Envoy has passed on, by its own count.

    Args:
        envoy_admin: `http://host:port` of its own pages.
    """
    with urllib.request.urlopen(  # noqa: S310 - our own Envoy's, on this machine
        f"{envoy_admin}/stats?filter=^{_ANSWERS}$", timeout=5
    ) as page:
        text: str = page.read().decode()
    return int(text.rpartition(":")[2])
