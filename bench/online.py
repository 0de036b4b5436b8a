"""`tallystick bench online`: the headline, its references, and the books."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import plot, report, stack
from bench.figures import figures, latency_ms, sizes
from bench.load import Stretch
from bench.measured import CONNECTIONS, IN_FLIGHT, VENDORS, WARM_UP_SECONDS, Bench
from bench.references import References
from bench.seed import payers_needed
from bench.stack import NEVER_EMPTY, Variant
from services.environment import SettingError

# A token lives 15 minutes, and one is made for each payer before the load begins.
SECONDS_MAX = 600.0
_REFERENCE_SECONDS = 8.0
# Above this the generator, not the gateway, decided when calls were made.
_LAG_SECONDS_MAX = 0.02
# Shares of the rate that was asked for, up to where things break.
_SWEEP = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_SWEEP_SECONDS = 6.0
# Between two rates, for what the first left waiting.
_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        profile: `dev` or `mysql`.
        rate: Payments offered a second.
        seconds: For how long, at most SECONDS_MAX.
        payment_processes: How many share the work.
        references: Measure them too; without, the report has only the headline.
        overload: Offer twice the capacity too.
        sweep: Offer shares of the rate one after the other too, from a tenth to one and a half.
        json_file: Where the report goes as JSON; None for nowhere.
        plots: A directory for plots; None for none.
    """

    profile: str
    rate: float
    seconds: float
    payment_processes: int
    references: bool
    overload: bool
    sweep: bool
    json_file: Path | None
    plots: Path | None


def run(options: Options) -> int:
    """Measure, print, write; 1 when the books do not match what clients were told.

    Raises:
        SettingError: it cannot be measured so.
        StartError: a stack did not start, or a process of it ended.
    """
    stack.check_environment()
    if options.seconds > SECONDS_MAX:
        raise SettingError(
            f"--seconds {options.seconds:g} is longer than the tokens live that payers are given before. "
            f"Give at most {SECONDS_MAX:g}."
        )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-") as directory:
        bench = Bench(options.profile, options.payment_processes, Path(directory), console)
        found = asyncio.run(_measure(options, bench))
    report.write(found, options.json_file, options.plots, _plots(found))
    report.show(found, console)
    return 0 if found["books_match"] else 1


async def _measure(options: Options, bench: Bench) -> dict[str, Any]:
    headline = await _headline(options, bench)
    sweep = await _sweep(options, bench) if options.sweep else None
    references = References(bench, seconds=_REFERENCE_SECONDS)
    overloaded = None
    if options.references or options.overload:
        capacity = await references.capacity()
        if options.overload:
            overloaded = await references.overload(capacity)
    if options.references:
        await references.groups_of_one()
        await references.echo()
        await references.database_alone(options.rate)
        await references.yardsticks()
    return {
        **headline,
        "sweep": sweep,
        "references": references.found,
        "reference_details": references.details,
        "ratios": references.ratios(),
        "overload": overloaded,
        **bench.circumstances(),
    }


async def _headline(options: Options, bench: Bench) -> dict[str, Any]:
    bench.say(f"{options.rate:,.0f} payments a second for {options.seconds:.0f} s")
    payers = payers_needed(options.rate, options.seconds + WARM_UP_SECONDS)
    stretches = [
        Stretch("warm-up", WARM_UP_SECONDS, rate=options.rate),
        Stretch("online", options.seconds, rate=options.rate),
    ]
    async with bench.stack("headline", Variant(), payers=payers) as measured:
        outcome = await measured.offer(stretches)
        found = await bench.checked("headline", measured)
    online = figures(outcome, stretches, 1)
    bench.note_company("online", online)
    lag = latency_ms(online.lags)
    if lag["p99"] > _LAG_SECONDS_MAX * 1000:
        bench.warnings.append(
            f"the generator made one call in a hundred {lag['p99']:.0f} ms late or more: part of the latency is "
            "the machine's, not the system's"
        )
    return {
        "settled_per_second": round(online.settled_per_second, 1),
        "latency_ms": latency_ms(online.latencies),
        "refused_latency_ms": latency_ms(online.refused),
        "generator_lag_ms": lag,
        "offered": online.offered,
        "not_made": online.not_made,
        "statuses": online.statuses,
        "states": online.states,
        "cpu_us_per_payment": online.cpu_us_per_payment(),
        "cores_used": round(online.cores_used, 2),
        "cores_of_others": round(online.cores_of_others, 2),
        "connections_lost": outcome.connections_lost,
        "group_size": sizes(found.group_sizes(outcome.requests(1))),
        "stored": found.states,
        "laws": found.laws,
        "settings": {
            "profile": options.profile,
            "rate": options.rate,
            "seconds": options.seconds,
            "warm_up_seconds": WARM_UP_SECONDS,
            "payment_processes": options.payment_processes,
            "payers": payers,
            "vendors": VENDORS,
            "connections": CONNECTIONS,
            "reference_seconds": _REFERENCE_SECONDS,
            "reference_in_flight": IN_FLIGHT,
            "variables": stack.own_variables(),
        },
    }


async def _sweep(options: Options, bench: Bench) -> list[dict[str, Any]]:
    """Latency and cost by offered rate, on one stack, with a pause after each rate."""
    rates = [options.rate * share for share in _SWEEP]
    bench.say(f"sweep: {', '.join(f'{rate:,.0f}' for rate in rates)} payments a second")
    seconds = min(_SWEEP_SECONDS, options.seconds)
    stretches = [Stretch("warm-up", WARM_UP_SECONDS, rate=rates[0])]
    for rate in rates:
        stretches.append(Stretch("sweep", seconds, rate=rate))
        stretches.append(Stretch("pause", _PAUSE_SECONDS))
    async with bench.stack("sweep", Variant(variables=NEVER_EMPTY)) as measured:
        outcome = await measured.offer(stretches)
        books = await bench.checked("sweep", measured)
    points = []
    for index, stretch in enumerate(stretches):
        if stretch.name == "sweep":
            found = figures(outcome, stretches, index)
            points.append(
                {
                    "offered_per_second": stretch.rate,
                    "settled_per_second": round(found.settled_per_second, 1),
                    "group_size": sizes(books.group_sizes(outcome.requests(index))),
                    **found.summary(),
                }
            )
    return points


def _plots(found: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name."""
    sweep: Sequence[Mapping[str, Any]] = found["sweep"] or ()
    drawn = {}
    if sweep:
        drawn["online-latency.svg"] = plot.lines(
            "Latency of online payments by offered rate, from when each was due",
            "payments offered a second",
            "ms, logarithmic",
            {
                name: [(one["offered_per_second"], one["latency_ms"][name]) for one in sweep]
                for name in ("p50", "p95", "p99", "p999")
            },
            log_y=True,
        )
    stacks = {f"{one['offered_per_second']:,.0f}/s": one["cpu_us_per_payment"] for one in sweep}
    stacks |= {
        name.removesuffix("_per_second").replace("_", " "): details["cpu_us_per_payment"]
        for name, details in found["reference_details"].items()
        # A bar seven times as high as the others would hide what these are made of.
        if "cpu_us_per_payment" in details and name != "groups_of_one_per_second"
    }
    if not sweep:
        stacks = {"online": found["cpu_us_per_payment"], **stacks}
    # The same order, and so the same colour, in every bar.
    order = list(found["cpu_us_per_payment"])
    drawn["online-cost.svg"] = plot.bars(
        "CPU of one online payment by process",
        "µs",
        {
            name: {part: parts[part] for part in order if parts.get(part)}
            for name, parts in stacks.items()
        },
    )
    return drawn
