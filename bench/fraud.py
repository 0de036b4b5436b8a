"""`tallystick bench fraud`: what judging a payment costs, with counters and profiles in a real Valkey."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis
from rich.console import Console
from uuid_utils import UUID, uuid7

from cli import valkey
from services import sql, streams
from services.event_log import Relay
from services.fraud import store
from services.fraud.assessor import Assessor, Judged
from services.fraud.domain.assessment import Decision, Limits, Site
from services.fraud.domain.guard import Guard
from services.fraud.domain.rulebook import RuleBook
from services.fraud.domain.rules import built_in
from services.fraud.domain.tiers import Standing, Tier, TierIndex
from services.fraud.features.store import FeatureStore
from services.fraud.model.scorer import Scorer
from services.fraud.recorder import Recorder
from services.rpc.validation import violations
from tallystick.fraud.v1 import fraud_service_pb2 as pb

_BATCH = 64
_BATCHES = 200
_SINGLES = 2_000
_WARM_BATCHES = 40
_PAYERS = 5_000
_VENDORS = 400
# What a payment may cost in a batch, in microseconds of CPU: the target.
_TARGET = 150.0
_HOT_RATE = 1_000
_FAILED = 1


@dataclass(frozen=True)
class _World:
    """Payers, vendors and where they are."""

    payers: Sequence[str]
    vendors: Sequence[str]
    sites: dict[str, tuple[Site, ...]]
    tiers: TierIndex
    random: random.Random

    def request(self, size: int, at: float) -> bytes:
        """A batch, as payment would send it."""
        request = pb.AssessPaymentsRequest()
        for number in range(size):
            payer = self.random.randrange(len(self.payers))
            # One of the four vendors nearby: people do not cross the country between two payments.
            vendor = self.vendors[(payer * 4 + self.random.randrange(4)) % len(self.vendors)]
            (site,) = self.sites[vendor]
            facts = request.payments.add(
                payment=f"payments/{uuid7()}", payer=self.payers[payer], vendor=vendor
            )
            facts.amount.minor_units = self.random.randint(10_00, 300_00)
            facts.amount.currency_code = "INR"
            facts.position.latitude = site.latitude + self.random.gauss(0, 0.001)
            facts.position.longitude = site.longitude + self.random.gauss(0, 0.001)
            facts.position.accuracy_meters = 10.0
            facts.occur_time.FromNanoseconds(int((at + number * 0.001) * 1e9))
        return request.SerializeToString()


def run(json_file: Path | None) -> int:
    """Measure, print, write JSON where asked; 1 when a batch costs more than it may."""
    report = uvloop.run(measure())
    console = Console()
    cost = report["cpu_us_per_payment"]
    console.print(
        f"fraud: {cost['batch64']} µs CPU a payment in batches of {_BATCH} (target {_TARGET:.0f}), "
        f"{cost['single']} alone; Valkey {report['valkey_us_per_payment']['batch64']}; "
        f"recording, off the hot path, {report['recording_us_per_payment']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"A batch of {_BATCH} is answered in {report['batch64_ms']['p50']} ms (p95 {report['batch64_ms']['p95']}). "
        f"At {_HOT_RATE:,} payments a second that is {report['hot_path']['cores']:.1%} of a core for the answers.",
        highlight=False,
        soft_wrap=True,
    )
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if cost["batch64"] <= _TARGET else _FAILED


async def measure() -> dict[str, Any]:
    """Everything a call costs from its bytes to the answer's, but for gRPC itself."""
    world = _world()
    with valkey.running() as port, tempfile.TemporaryDirectory() as directory:
        redis = streams.connect(valkey.url(port))
        try:
            async with _recorder(directory, redis) as recorder:
                return await _measure(world, redis, recorder)
        finally:
            await redis.aclose()


@asynccontextmanager
async def _recorder(directory: str, redis: Redis) -> AsyncIterator[Recorder]:
    url = f"sqlite+aiosqlite:///{directory}/fraud.db"
    await asyncio.to_thread(asyncio.run, sql.migrate(url, "fraud"))
    engine = sql.create_engine(url)
    relay = Relay(engine, store.event_log, redis, "fraud")
    try:
        yield Recorder(engine, relay, Guard(), now=lambda: datetime.now(UTC), new_id=uuid7)
    finally:
        await engine.dispose()


async def _measure(world: _World, redis: Redis, recorder: Recorder) -> dict[str, Any]:
    book = RuleBook(built_in())
    assessor = Assessor(
        FeatureStore(redis),
        Scorer.load(),
        lambda: book,
        Guard(),
        Limits(),
        now=time.time,
        clock=time.monotonic,
        # On a busy machine too, what is measured is all of it.
        history_seconds=5.0,
    )
    report: dict[str, Any] = {"cpu_us_per_payment": {}, "valkey_us_per_payment": {}}
    start, reviewed = time.time() - 3_600.0, 0
    for number in range(_WARM_BATCHES):
        await _call(assessor, world, world.request(_BATCH, start + number))
    for name, size, calls in (("batch64", _BATCH, _BATCHES), ("single", 1, _SINGLES)):
        requests = [world.request(size, start + 60 + number) for number in range(calls)]
        server = await _server_cpu(redis)
        took: list[float] = []
        began = time.process_time()
        for request in requests:
            called = time.perf_counter()
            judged = await _call(assessor, world, request)
            took.append(time.perf_counter() - called)
            recorder.take(judged)
            reviewed += size > 1 and sum(
                each.assessment.decision is not Decision.ALLOW for each in judged
            )
        spent = time.process_time() - began
        report["cpu_us_per_payment"][name] = round(spent / (size * calls) * 1e6, 1)
        server = await _server_cpu(redis) - server
        report["valkey_us_per_payment"][name] = round(server / (size * calls) * 1e6, 1)
        took.sort()
        report[f"{name}_ms"] = {
            "p50": round(took[len(took) // 2] * 1e3, 2),
            "p95": round(took[int(len(took) * 0.95)] * 1e3, 2),
        }
    report["reviewed"] = round(reviewed / (_BATCH * _BATCHES), 4)
    began = time.process_time()
    await recorder.write_now()
    spent = time.process_time() - began
    written = _BATCH * _BATCHES + _SINGLES
    report["recording_us_per_payment"] = round(spent / written * 1e6, 1)
    report["hot_path"] = {
        "payments_per_second": _HOT_RATE,
        "cores": round(report["cpu_us_per_payment"]["batch64"] * _HOT_RATE / 1e6, 4),
    }
    return report


async def _call(assessor: Assessor, world: _World, request: bytes) -> list[Judged]:
    asked = pb.AssessPaymentsRequest.FromString(request)
    payments = list(asked.payments)
    problems = [violations(payment) for payment in payments]
    judged = await assessor.assess(payments, problems, world.sites.__getitem__, world.tiers.find)
    pb.AssessPaymentsResponse(assessments=[each.answer for each in judged]).SerializeToString()
    return judged


async def _server_cpu(redis: Redis) -> float:
    said: Any = await redis.info("cpu")
    return float(said["used_cpu_sys"] + said["used_cpu_user"])


def _world() -> _World:
    dice = random.Random(1)  # noqa: S311
    names = [f"users/{UUID(int=dice.getrandbits(128))}" for _ in range(_PAYERS + _VENDORS)]
    vendors = names[_PAYERS:]
    sites: dict[str, tuple[Site, ...]] = {}
    town = (0.0, 0.0)
    for number, vendor in enumerate(vendors):
        if number % 4 == 0:
            town = dice.uniform(8.0, 30.0), dice.uniform(70.0, 90.0)
        place = town[0] + dice.gauss(0, 0.01), town[1] + dice.gauss(0, 0.01)
        sites[vendor] = (Site(f"{vendor}/sites/{UUID(int=1)}", *place, open=True),)
    tiers = TierIndex()
    tiers.load({payer: Standing(1, Tier.PLUS) for payer in names[:_PAYERS:10]})
    return _World(names[:_PAYERS], vendors, sites, tiers, dice)
