"""A thousand simulated days of offline trade: whatever the network, the clocks and the kills do, the laws hold."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from services.offline.domain.item import Reason
from tests.offline_simulation import Simulation, digest

DAYS = 10
# A journal syncs with every sale: in memory, where there is such a place, that takes no time.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


async def simulate(seed):
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        simulation = Simulation(seed, Path(directory), days=DAYS)
        try:
            await simulation.run()
            simulation.check()
        finally:
            simulation.close()
        return simulation


@pytest.mark.timeout(0)
async def test_the_laws_hold_through_a_thousand_days(pytestconfig):
    reasons = Counter()
    runs = max(pytestconfig.getoption("--simulated-days") // DAYS, 1)
    first = pytestconfig.getoption("--simulation-seed")
    for seed in range(first, first + runs):
        try:
            simulation = await simulate(seed)
        except BaseException as error:
            error.add_note(
                f"seed {seed}: pytest tests/test_offline_simulation.py --simulation-seed {seed} "
                f"--simulated-days {DAYS}"
            )
            raise
        reasons.update(entry.reason for entry in simulation.server.entries.values())

    # It would prove little if these had not happened.
    assert reasons[Reason.SETTLED] + reasons[Reason.PARTIALLY_SETTLED] > 10 * runs
    if runs >= 100:
        for reason in ("DUPLICATE_CODE", "REVIEW_REJECTED", "REVOKED_BEFORE_SPEND"):
            assert reasons[Reason[reason]] > 0, reason


async def test_a_seed_gives_the_same_days_again():
    assert digest(await simulate(7)) == digest(await simulate(7))
