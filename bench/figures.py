"""Figures of a load: arithmetic only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import grpc

from bench.http2 import NO_STATUS
from bench.load import MACHINE, Outcome, Stretch
from services.payment.domain.payment import State

# What a payment that is settled has come to: the money moved, or is held.
_SETTLED = frozenset({State.SUCCESS, State.FLAGGED})
_STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode} | {
    NO_STATUS: "NO_ANSWER"
}
_OK = 0
# A stretch after an overload is looked at in windows this long; it has recovered when this many in a row are well.
_WINDOW_SECONDS = 0.5
_WELL_WINDOWS = 2
# What is well: nobody refused, and a p95 of at most twice what it was before, or this where that is more.
_WELL_SECONDS = 0.2


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of them do not exceed (nearest rank); 0 for none."""
    if not ordered:
        return 0.0
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def latency_ms(latencies: Sequence[float]) -> dict[str, float]:
    """Milliseconds from seconds: p50, p95, p99, p999, max.

    Exact, by nearest rank over every call. An HDR histogram would keep three digits of what is here in full: the books
    need every call anyway, so there is nothing to save by one.
    """
    ordered = sorted(latencies)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: round(percentile(ordered, share) * 1000, 2) for name, share in shares.items()}


def sizes(found: Mapping[int, int]) -> dict[str, float]:
    """Mean, p95 and max of groups, from how many there are of each size."""
    members = sorted(Counter(found).elements())
    return {
        "mean": round(sum(members) / max(1, sum(found.values())), 2),
        "p95": percentile(members, 0.95),
        "max": max(found, default=0),
    }


@dataclass(frozen=True)
class Figures:
    """What one stretch of a load came to.

    Attributes:
        offered: Calls that were due.
        not_made: Of these, calls the gateway left no room for.
        settled: Payments SUCCESS or FLAGGED, as their clients were told.
        settled_per_second: From the first due time to the last answer, and at least the stretch's own time.
        accepted: Calls that were answered OK.
        latencies: Seconds from due to answered, of calls answered OK. Calls that were never answered or never made
            stand there with as long as they had waited in the end: less than it would have been.
        refused: Seconds from due to answered, of calls answered with an error.
        statuses: Calls by the name of their gRPC status; NO_ANSWER where there was none.
        states: Payments by the state their clients were told.
        lags: Seconds from due to made: the generator's own lateness.
        cpu_seconds: CPU of every process, by service, and of the client.
        machine_seconds: CPU of everything on the machine.
        seconds: What `settled_per_second` divides by.
    """

    offered: int
    not_made: int
    settled: int
    settled_per_second: float
    accepted: int
    latencies: list[float]
    refused: list[float]
    statuses: dict[str, int]
    states: dict[str, int]
    lags: list[float]
    cpu_seconds: dict[str, float]
    machine_seconds: float
    seconds: float

    @property
    def cores_used(self) -> float:
        """Cores the whole stack and the client kept busy, on average."""
        return sum(self.cpu_seconds.values()) / self.seconds

    @property
    def cores_of_others(self) -> float:
        """Cores that were busy with anything else: the kernel's own work, and whoever shares the machine."""
        return max(0.0, self.machine_seconds / self.seconds - self.cores_used)

    def cpu_us_per_payment(self) -> dict[str, float]:
        """CPU of every process for one call that was answered OK; what refused ones cost is in it too."""
        return {
            name: round(used / max(1, self.accepted) * 1e6, 1)
            for name, used in sorted(self.cpu_seconds.items(), key=lambda item: -item[1])
        }

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "offered": self.offered,
            "not_made": self.not_made,
            "accepted_per_second": round(self.accepted / self.seconds, 1),
            "statuses": self.statuses,
            "states": self.states,
            "latency_ms": latency_ms(self.latencies),
            "cpu_us_per_payment": self.cpu_us_per_payment(),
            "cores_used": round(self.cores_used, 2),
            "cores_of_others": round(self.cores_of_others, 2),
        }


def figures(outcome: Outcome, stretches: Sequence[Stretch], index: int) -> Figures:
    """Figures of the stretch at an index."""
    start: float = sum(stretch.seconds for stretch in stretches[:index])
    stretch = stretches[index]
    calls = [number for number, found in enumerate(outcome.stretches) if found == index]
    latencies: list[float] = []
    refused: list[float] = []
    last = start
    for number in calls:
        latency, due = outcome.latencies[number], outcome.dues[number]
        if latency is None:
            latencies.append(outcome.ended - due)
            continue
        last = max(last, due + latency)
        (latencies if outcome.statuses[number] == _OK else refused).append(latency)
    not_made = outcome.not_made[index]
    latencies += [
        outcome.ended - (start + number / stretch.rate)
        for number in range(stretch.planned - not_made, stretch.planned)
    ]
    statuses = Counter(_STATUS_NAMES[outcome.statuses[number]] for number in calls)
    states = Counter(outcome.states[number] for number in calls)
    settled = sum(states[state] for state in _SETTLED)
    seconds = max(stretch.seconds, last - start)
    cpu = _cpu(outcome.cpu_seconds[index], outcome.cpu_seconds[index + 1])
    machine = cpu.pop(MACHINE)
    return Figures(
        offered=len(calls) + not_made,
        not_made=not_made,
        settled=settled,
        settled_per_second=settled / seconds,
        accepted=statuses[_STATUS_NAMES[_OK]],
        latencies=latencies,
        refused=refused,
        statuses=dict(statuses),
        states={State(state).name: count for state, count in states.items() if state},
        lags=[outcome.lags[number] for number in calls],
        cpu_seconds=cpu,
        machine_seconds=machine,
        seconds=seconds,
    )


def _cpu(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    used: dict[str, float] = defaultdict(float)
    for name, seconds in after.items():
        # `payment-2` is payment too.
        used[name.partition("-")[0]] += seconds - before[name]
    return dict(used)


def overload(
    outcome: Outcome, stretches: Sequence[Stretch], *, before: int, during: int, after: int
) -> dict[str, Any]:
    """What an overload did, from three stretches by index: before it, during it, after it."""
    found = figures(outcome, stretches, during)
    usual = percentile(sorted(figures(outcome, stretches, before).latencies), 0.95)
    answered = max(1, sum(found.statuses.values()))
    return {
        "offered_per_second": stretches[during].rate,
        "seconds": stretches[during].seconds,
        **found.summary(),
        "refused_latency_ms": latency_ms(found.refused),
        "refused_share": round(found.statuses.get("RESOURCE_EXHAUSTED", 0) / answered, 4),
        "other_errors_share": round(
            sum(
                count
                for name, count in found.statuses.items()
                if name not in {"OK", "RESOURCE_EXHAUSTED"}
            )
            / answered,
            4,
        ),
        "p95_before_ms": round(usual * 1000, 2),
        "recovery_seconds": recovery_seconds(
            outcome, stretches, after, well_seconds=max(_WELL_SECONDS, 2 * usual)
        ),
    }


def recovery_seconds(
    outcome: Outcome, stretches: Sequence[Stretch], index: int, *, well_seconds: float
) -> float | None:
    """How far into a stretch things are well again; None when they never are. In steps of half a second.

    Well is a window in which every call was answered OK with a p95 of at most `well_seconds`, followed by another.
    """
    start: float = sum(stretch.seconds for stretch in stretches[:index])
    count = int(stretches[index].seconds / _WINDOW_SECONDS)
    windows: list[list[float]] = [[] for _ in range(count)]
    ill = [outcome.not_made[index] > 0] * count
    for number, found in enumerate(outcome.stretches):
        if found != index:
            continue
        window = min(count - 1, int((outcome.dues[number] - start) / _WINDOW_SECONDS))
        latency = outcome.latencies[number]
        if latency is None or outcome.statuses[number] != _OK:
            ill[window] = True
        else:
            windows[window].append(latency)
    well = [
        not is_ill and bool(latencies) and percentile(sorted(latencies), 0.95) <= well_seconds
        for is_ill, latencies in zip(ill, windows, strict=True)
    ]
    for window in range(count - _WELL_WINDOWS + 1):
        if all(well[window : window + _WELL_WINDOWS]):
            return window * _WINDOW_SECONDS
    return None
