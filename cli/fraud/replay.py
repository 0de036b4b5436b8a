"""Replays a world in event time through the code that serves AssessPayments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cli.fraud.worlds import World
from services.fraud.features.derive import FeatureBatch, like_its_payer
from services.fraud.features.observation import Label, Observation
from services.fraud.features.store import FeatureStore

BATCH = 64

# Payments and their features -> which of them are not let through.
Judge = Callable[[Sequence[Observation], FeatureBatch], NDArray[np.bool_]]


async def replay(store: FeatureStore, world: World, label_delay: float, judge: Judge) -> None:
    """Show every payment of a world to a judge, in time order, in batches.

    What a payment was becomes known `label_delay` seconds after it happened, and not before. A
    payment the judge lets through teaches its payer's profile at once; one it stops, only when it is
    known to have been honest.

    Args:
        store: With nothing in it.
        world: Its payments.
        label_delay: Seconds.
        judge: Called once for each batch, in order.
    """
    stopped, like_payer = np.zeros(len(world), bool), np.ones(len(world), bool)
    known = 0
    passed: list[Observation] = []
    for start in range(0, len(world), BATCH):
        end = min(start + BATCH, len(world))
        until = int(np.searchsorted(world.time, world.time[start] - label_delay, side="right"))
        until = min(until, start)
        if until > known:
            await store.label(_labels(world, like_payer, known, until))
            passed += [
                world.observations(row, row + 1)[0]
                for row in range(known, until)
                if stopped[row] and world.scenario[row] == 0
            ]
            known = until
        observed = world.observations(start, end)
        features = await store.observe(observed, now=float(world.time[end - 1]), settled=passed)
        stopped[start:end] = judge(observed, features)
        like_payer[start:end] = [like_its_payer(row) for row in features.matrix.tolist()]
        passed = [
            seen
            for seen, stop in zip(observed, stopped[start:end].tolist(), strict=True)
            if not stop
        ]


def _labels(world: World, like_payer: NDArray[np.bool_], start: int, end: int) -> list[Label]:
    rows = slice(start, end)
    return [
        Label(f"users/{payer}", f"users/v{vendor}", scenario != 0, at, like)
        for payer, vendor, scenario, at, like in zip(
            world.payer[rows].tolist(),
            world.vendor[rows].tolist(),
            world.scenario[rows].tolist(),
            world.time[rows].tolist(),
            like_payer[rows].tolist(),
            strict=True,
        )
    ]
