"""Figures: percentiles, the table, the JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of them do not exceed (nearest rank); 0 for none."""
    if not ordered:
        return 0.0
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def latency_ms(latencies: Sequence[float]) -> dict[str, float]:
    """Milliseconds from seconds: p50, p95, p99, p999, max. Exact, not from a histogram."""
    ordered = sorted(latencies)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: round(percentile(ordered, share) * 1000, 2) for name, share in shares.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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
        "python": platform.python_version(),
        "system": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The report, for a person."""
    latency, references = report["latency_ms"], report["references"]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("online payments")
    table.add_column("", justify="right")
    table.add_row("offered /s", f"{report['settings']['rate']:,.0f}")
    table.add_row("settled /s", f"{report['settled_per_second']:,.0f}")
    for name, value in latency.items():
        table.add_row(f"latency {name}", f"{value:,.1f} ms")
    table.add_row("group size, mean / max", "{mean:.1f} / {max}".format(**report["group_size"]))
    table.add_row("capacity /s, closed loop", f"{references['capacity_per_second']:,.0f}")
    table.add_row("echo through the same gateway /s", f"{references['echo_per_second']:,.0f}")
    table.add_row("groups of one /s", f"{references['groups_of_one_per_second']:,.0f}")
    table.add_row("database alone /s", f"{references['database_alone_per_second']:,.0f}")
    for name, value in report["ratios"].items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    console.print(table)
    costs = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    costs.add_column("process")
    costs.add_column("CPU µs per payment", justify="right")
    for name, value in sorted(report["cpu_us_per_payment"].items(), key=lambda item: -item[1]):
        costs.add_row(name, f"{value:,.0f}")
    console.print(costs)
    console.print(f"answers: {report['statuses']}; stored: {report['stored']}")
    for wrong in report["books_wrong"]:
        console.print(f"[bold red]the books do not match:[/] {wrong}")
    if report["books_match"]:
        console.print("[bold green]the books match what clients were told[/]")
