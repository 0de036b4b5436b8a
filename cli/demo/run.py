"""Runs the demo: a stack of its own, the story, the laws, and nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cli import audit, process
from cli.demo.client import ApiError, Gateway, Operator
from cli.demo.screen import CheckFailed, Screen
from cli.demo.story import Story
from cli.stack.endpoints import Endpoints
from cli.stack.endpoints import read as read_endpoints

_START_SECONDS_MAX = 120
_STOP_SECONDS_MAX = 60


def run(profile: str) -> int:
    """Tell the story on a fresh stack; 1 when an expectation did not hold.

    Raises:
        StartError: the stack did not start.
    """
    console = Console(highlight=False)
    screen = Screen(console)
    screen.title(
        "Tallystick",
        "Payments that keep working when the network does not: every service, as real clients see it.",
    )
    directory = Path(tempfile.mkdtemp(prefix="tallystick-demo-"))
    try:
        _tell(profile, directory, screen, console)
    except (CheckFailed, ApiError) as failure:
        console.print()
        console.print(Text(f"Logs and data are in {directory}."))
        console.print(Text(f"demo: failed after {screen.checks} checks: {failure}", "bold red"))
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    console.print()
    console.print(Text(f"demo: {screen.checks} checks passed", style="bold green"))
    return 0


def _tell(profile: str, directory: Path, screen: Screen, console: Console) -> None:
    log = directory / "up.log"
    command = [sys.executable, "-P", "-m", "cli", "up", "--profile", profile]
    started = time.monotonic()
    stack = process.start([*command, "--run-dir", directory / "run"], log=log)
    try:
        file = directory / "run" / "endpoints.json"
        with console.status(f"Starting a stack of its own, profile {profile}"):
            process.wait_until(
                file.exists, stack, name="The stack", log=log, seconds=_START_SECONDS_MAX
            )
        endpoints = read_endpoints(file)
        seconds = time.monotonic() - started
        screen.step(f"{len(endpoints.processes)} processes, ready after {seconds:.1f} s", profile)
        asyncio.run(_act(endpoints, screen, directory))
        _stop(stack, endpoints, screen, console)
    finally:
        process.stop(stack, grace_seconds=_STOP_SECONDS_MAX)


async def _act(endpoints: Endpoints, screen: Screen, directory: Path) -> None:
    async with Gateway(endpoints.grpc, Path(endpoints.ca_file)) as gateway:
        admin = await gateway.sign_in(endpoints.admin_user, endpoints.admin_password)
        await Story(gateway, Operator.of(admin), screen, directory).tell()
    screen.act("The books: `tallystick audit` on the running stack")
    for finding in (await audit.audit_stack(endpoints)).values():
        screen.check(
            finding.holds, f"{finding.law} ({finding.checked:,} looked at)", finding.first_broken
        )


def _stop(
    stack: subprocess.Popen[bytes], endpoints: Endpoints, screen: Screen, console: Console
) -> None:
    screen.act("Everything stops")
    with console.status("Draining"):
        code = process.stop(stack, grace_seconds=_STOP_SECONDS_MAX)
    screen.check(code == 0, "the stack drained and stopped", f"exit code {code}")
    left = [name for name, pid in endpoints.processes.items() if Path(f"/proc/{pid}").exists()]
    screen.check(not left, "no process is left", left)
