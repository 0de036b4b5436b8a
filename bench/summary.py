"""The reports of one run as Markdown: what docs/performance.md shows, written by `bench all` as `figures.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PERCENTILES = ("p50", "p95", "p99", "p999")
_GIB = 1 << 30


def markdown(directory: Path) -> str:
    """Tables of the reports that there are in a directory."""
    parts: list[str] = []
    for name, tables in (("online", _online), ("offline", _offline), ("scale", _scale)):
        file = directory / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            parts += [f"### {name.capitalize()}", _circumstances(found), *tables(found)]
    return "\n\n".join(parts) + "\n"


def _circumstances(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    settings = {
        name: value
        for name, value in found["settings"].items()
        if isinstance(value, int | float | str)
    }
    books = "books match" if found["books_match"] else "BOOKS DO NOT MATCH"
    return (
        f"{machine['time']}; {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_bytes'] / _GIB:.0f} GiB, load average {machine['load_average'][0]:.1f} as it began, "
        f"{machine['loops_per_cpu_second'] / 1e6:.0f} million loops a CPU second; "
        f"{', '.join(f'{name} {value}' for name, value in versions.items())}; "
        f"{', '.join(f'{name} {value}' for name, value in settings.items())}; {books}."
    )


def _online(found: Mapping[str, Any]) -> Iterable[str]:
    rows = [_load_row(f"{found['settings']['rate']:,.0f}, headline", found)]
    rows += [_load_row(f"{one['offered_per_second']:,.0f}", one) for one in found["sweep"] or ()]
    yield _table(("offered /s", "settled /s", *_PERCENTILES, "mean group", "CPU µs"), rows)
    names = {**found["references"], **found["ratios"]}
    yield _table(
        ("reference or ratio", ""),
        [
            (name.replace("_", " "), f"{value:,.2f}" if value < 100 else f"{value:,.0f}")  # noqa: PLR2004
            for name, value in names.items()
            if value
        ],
    )
    if found["overload"]:
        over = found["overload"]
        recovered = over["recovery_seconds"]
        yield _table(
            (
                "overload, offered /s",
                "accepted /s",
                "their p95 ms",
                "refused",
                "other errors",
                "recovered after",
            ),
            [
                (
                    f"{over['offered_per_second']:,.0f}",
                    f"{over['accepted_per_second']:,.0f}",
                    f"{over['latency_ms']['p95']:,.0f}",
                    f"{over['refused_share']:.0%}",
                    f"{over['other_errors_share']:.1%}",
                    "never" if recovered is None else f"{recovered:.1f} s",
                )
            ],
        )
    columns = {"headline": found["cpu_us_per_payment"]} | {
        name.removesuffix("_per_second").replace("_", " "): details["cpu_us_per_payment"]
        for name, details in found["reference_details"].items()
        if "cpu_us_per_payment" in details
    }
    yield _costs("CPU µs by process", columns)


def _offline(found: Mapping[str, Any]) -> Iterable[str]:
    one, many = found["backlog"], found["terminals"]
    yield _table(
        ("", "items", "all received, s", "all settled, s", "settled /s", "cores busy"),
        [
            (
                name,
                f"{each['items']:,}",
                f"{each['received_seconds']:.2f}",
                f"{each['seconds']:.2f}",
                f"{each['settled'] / each['seconds']:,.0f}",
                f"{each['cores_used']:.2f}",
            )
            for name, each in (("one terminal", one), ("ten terminals", many))
        ],
    )
    columns = {"one terminal": one["cpu_us_per_item"], "ten terminals": many["cpu_us_per_item"]}
    yield _costs("CPU µs an item by process", columns)


def _scale(found: Mapping[str, Any]) -> Iterable[str]:
    yield _table(
        ("wallets, payments stored", *_PERCENTILES, "CPU µs", "rows for the hot vendor's page"),
        [
            (
                size["name"],
                *_latencies(size),
                _all(size["cpu_us_per_payment"]),
                f"{size['queries']['payments of the hot vendor, newest page']['rows_examined']:,}",
            )
            for size in found["sizes"]
        ],
    )
    yield (
        f"Largest over smallest: p95 {found['p95_ratio']:.2f}, CPU {found['cpu_ratio']:.2f}. A payment takes "
        f"{sum(found['bytes_per_payment'].values()):,} bytes, indexes and events included. Loading took "
        f"{', '.join(f'{seconds:,.0f} s ({what})' for what, seconds in found['load_seconds'].items())}."
    )
    yield _table(
        ("replicas", "capacity /s", "CPU µs", "p95 ms at the rate"),
        [
            (
                one["name"],
                f"{one['capacity_per_second']:,.0f}",
                _all(one["cpu_us_per_payment"]),
                f"{one['at_rate']['latency_ms']['p95']:,.0f}",
            )
            for one in found["replicas"]
        ],
    )
    if found["soak"]:
        soak = found["soak"]
        yield _table(
            (
                f"soak of {soak['seconds']:.0f} s at {soak['rate']:,.0f}/s",
                "MiB first",
                "last",
                "growth an hour",
            ),
            [
                (
                    name,
                    f"{one['first']:,.0f}",
                    f"{one['last']:,.0f}",
                    f"{one['growth_mib_per_hour']:,.0f}",
                )
                for name, one in soak["memory_mib"].items()
            ],
        )


def _load_row(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{one['settled_per_second']:,.0f}",
        *_latencies(one),
        f"{one['group_size']['mean']:.1f}",
        _all(one["cpu_us_per_payment"]),
    )


def _latencies(one: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{one['latency_ms'][name]:,.0f}" for name in _PERCENTILES)


def _all(cpu: Mapping[str, float]) -> str:
    return f"{sum(cpu.values()):,.0f}"


def _costs(title: str, columns: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(columns.values())))
    rows = [
        (name, *(f"{column.get(name, 0):,.0f}" for column in columns.values())) for name in names
    ]
    rows.append(("all", *(_all(column) for column in columns.values())))
    return _table((title, *columns), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
