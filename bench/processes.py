"""What processes have cost so far, as the kernel counts it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ZOMBIE = "Z"


class ProcessGoneError(Exception):
    """A process ended while it was measured. The message names it."""


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """CPU each process has used since it started, its threads included; by name. In steps of 10 ms.

    Raises:
        ProcessGoneError: one has ended.
    """
    return {name: _cpu_seconds(name, pid) for name, pid in processes.items()}


def memory_bytes(processes: Mapping[str, int]) -> dict[str, int]:
    """Memory each process has resident now; by name. Pages that two share count for both.

    Raises:
        ProcessGoneError: one has ended.
    """
    return {name: _memory_bytes(name, pid) for name, pid in processes.items()}


def machine_seconds() -> float:
    """CPU everything on this machine has used since it started, what a hypervisor gave to others included."""
    with Path("/proc/stat").open() as file:
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already.
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_SECOND


def _memory_bytes(name: str, pid: int) -> int:
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        resident = 0
    if not resident:
        raise ProcessGoneError(f"{name} (process {pid}) ended while it was measured.")
    return resident * _PAGE_BYTES


def _cpu_seconds(name: str, pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        stat = ""
    # What stands before is the command's name, which may hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[0] == _ZOMBIE:
        raise ProcessGoneError(f"{name} (process {pid}) ended while it was measured.")
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
