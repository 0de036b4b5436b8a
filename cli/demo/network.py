"""Terminals of the demo: `tallystick pos`, run as a shop runs it, with a network or without one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_SECONDS_MAX = 60
# A network namespace of its own has nothing but a loopback device that is down: no program in it reaches anything. The
# second form needs no rights, where the kernel lets anybody make user namespaces.
_NAMESPACES = (("unshare", "--net", "--"), ("unshare", "--user", "--map-root-user", "--net", "--"))
# Where there are no namespaces: an address that nobody answers at.
_NOWHERE = "127.0.0.1:9"


@lru_cache(maxsize=1)
def namespace() -> tuple[str, ...]:
    """What runs a program without any network here; empty where the machine does not allow it."""
    for prefix in _NAMESPACES:
        try:
            done = subprocess.run([*prefix, "true"], check=False, capture_output=True)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return prefix
    return ()


@dataclass(frozen=True)
class Said:
    """What a command answered: its exit code, its JSON, and what it told a person."""

    code: int
    answer: Mapping[str, Any]
    words: str


@dataclass
class Terminal:
    """A terminal on a shop's counter.

    Attributes:
        directory: Where it keeps its key and its journal.
        address: The platform, `host:port`.
        ca_file: Who signed the platform's certificate.
        has_network: False while it is cut off.
    """

    directory: Path
    address: str
    ca_file: Path
    has_network: bool = True

    async def run(self, command: str, *arguments: str) -> Said:
        """Run `tallystick pos COMMAND`, in a network namespace of its own while the terminal is cut off."""
        address = self.address
        prefix: tuple[str, ...] = ()
        if not self.has_network:
            prefix = namespace()
            address = self.address if prefix else _NOWHERE
        program = [sys.executable, "-P", "-m", "cli", "pos", command, "--json"]
        place = ["--directory", str(self.directory), "--address", address]
        place += ["--ca-file", str(self.ca_file)]
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *program,
            *place,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NO_COLOR": "1"},
        )
        async with asyncio.timeout(_SECONDS_MAX):
            out, err = await process.communicate()
        assert process.returncode is not None
        lines = out.decode().strip().splitlines()
        answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return Said(process.returncode, answer, err.decode().strip())
