"""kill -9 at random moments: a terminal, any service, Envoy, Valkey. Every code taken is paid, and paid once."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from uuid_utils import uuid4

from cli import audit
from cli.demo.client import ApiError
from pos.enrolment import enroll
from pos.errors import PosError
from tallystick.offline.v1 import offline_pb2
from tests import offline_world
from tests.eventually import eventually
from tests.offline_world import inr

ROOT = Path(__file__).parents[1]
VALUE = 10_00
CODES = 2
SERVICES = ("offline", "payment", "envoy", "valkey")
# Everybody signs in once a visit, and a token ends after 15 minutes: so many runs take six.
RUNS_PER_VISIT = 100
# A vendor may have 100 terminals, and each run has a new one.
RUNS_PER_SHOP = 50
# Fraud holds what somebody pays from the tenth payment of a minute on; who is not killed pays that fast.
RUNS_PER_PAYER = 4
# A till takes half a second to start and less to sell and sync: the kills fall on every part of it.
LATEST_KILL_SECONDS = 1.2


class Runs:
    """Runs on one stack, each seeded: which process dies when, and what the till took."""

    def __init__(self, world, directory):
        self.world = world
        self.directory = directory
        self.taken = {}
        self.shops = []
        self.payers = []

    async def prepare(self, count):
        shops = range(-(-count // RUNS_PER_SHOP))
        self.shops = [await self.world.person(vendor=True) for _ in shops]
        self.payers = [await self.world.payer() for _ in range(-(-count // RUNS_PER_PAYER))]

    async def run(self, number, seed):
        rng = random.Random(seed)
        victim = rng.choice(("till", "till", "till", *SERVICES))
        after = rng.uniform(0, LATEST_KILL_SECONDS)
        codes = await self.take_codes(self.payers[number // RUNS_PER_PAYER])
        directory = await self.till(seed)
        minor_units = rng.randrange(1, VALUE + 1)
        killed = None
        for _ in range(40):
            till = await self.start(directory, minor_units, codes)
            if killed is None:
                await asyncio.sleep(after)
                killed = self.kill(victim, till)
            _, said = await till.communicate()
            if till.returncode == 0:
                break
        else:
            pytest.fail(f"seed {seed}: {victim} killed after {after:.3f} s: {said.decode()}")
        self.taken.update(dict.fromkeys(codes, minor_units))

    def kill(self, victim, till):
        pid = till.pid if victim == "till" else self.world.stack.endpoints.processes[victim]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    async def take_codes(self, payer):
        request_id = uuid4()

        async def issued():
            # While services come back: the same request again, as a client must. Another one each time would leave
            # codes behind that nobody was shown, until the payer has as many as they may.
            with contextlib.suppress(ApiError, PosError):
                return await payer.client.issue_codes([VALUE] * CODES, "INR", request_id=request_id)

        codes = [each.symbols for each in await eventually(issued, seconds=30)]
        if (await self.world.balances(payer))[1] < 2 * CODES * VALUE:
            await payer.client.move_offline(inr(1_000_00))
        return codes

    async def till(self, seed):
        directory = self.directory / f"till-{seed}"
        world, shop = self.world, self.shops[seed % len(self.shops)]

        async def enrolled():
            with contextlib.suppress(ApiError, PosError):
                (site,) = await shop.client.sites()
                vendor = await world.platform.sign_in_vendor(shop.username, shop.password)
                return await enroll(
                    directory, world.platform, vendor, site=site.name, display_name="Till"
                )

        await eventually(enrolled, seconds=30)
        return directory

    async def start(self, directory, minor_units, codes):
        at = self.world.stack.endpoints
        arguments = [str(directory), at.grpc, at.ca_file, str(minor_units), *codes]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.till",
            *arguments,
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )

    async def check(self):
        """Payments settled = codes taken; none lost, none twice; the laws hold."""

        async def is_whole():
            with contextlib.suppress(ApiError, PosError):
                paid = [(await self.world.balances(shop))[0] for shop in self.shops]
                return sum(paid) == sum(self.taken.values())

        await eventually(is_whole, seconds=30)
        sold = [item async for item in self.items()]
        assert len(sold) == len(self.taken)
        assert {item.state for item in sold} == {offline_pb2.Item.STATE_SETTLED}
        assert len({item.payment for item in sold}) == len(sold)
        findings = await audit.audit_stack(self.world.stack.endpoints)
        assert [found.first_broken for found in findings.values() if not found.holds] == []

    async def items(self):
        for directory in sorted(self.directory.iterdir()):
            if (directory / "terminal.json").exists():
                name = (directory / "terminal.json").read_text().split('"')[3]
                for item in await eventually(lambda name=name: self.of_till(name), seconds=30):
                    yield item

    async def of_till(self, name):
        # The last kill may have been a moment ago.
        with contextlib.suppress(ApiError):
            return await self.world.operator.offline_items(name)


async def hold(directory, seeds):
    with offline_world.running(directory / "stack") as stack:
        for start in range(0, len(seeds), RUNS_PER_VISIT):
            part = seeds[start : start + RUNS_PER_VISIT]
            async with offline_world.visiting(stack) as world:
                runs = Runs(world, directory / f"tills-{part[0]}")
                runs.directory.mkdir()
                await runs.prepare(len(part))
                for number, seed in enumerate(part):
                    await runs.run(number, seed)
                await runs.check()


async def test_killed_at_random_every_code_taken_is_paid_once(tmp_path):
    (tmp_path / "stack").mkdir()
    await hold(tmp_path, range(12))


@pytest.mark.slow
@pytest.mark.timeout(3000)
async def test_killed_at_random_three_hundred_times(tmp_path):
    (tmp_path / "stack").mkdir()
    await hold(tmp_path, range(1000, 1300))
