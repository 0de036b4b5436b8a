"""Composition: the fraud service from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import uvloop
from uuid_utils import UUID, uuid7

from services import sql, streams, telemetry
from services.environment import Environment
from services.event_log import Relay
from services.fraud import events, store
from services.fraud.account_feed import AccountFeed
from services.fraud.assessor import Assessor
from services.fraud.backtests import Backtests
from services.fraud.books import Books
from services.fraud.clients import Accounts
from services.fraud.domain.guard import Guard
from services.fraud.domain.sites import SiteIndex
from services.fraud.domain.tiers import TierIndex
from services.fraud.drafts import Drafts
from services.fraud.feature_lists import FeatureLists
from services.fraud.features.store import FeatureStore
from services.fraud.handlers.assessments import Desk, FraudHandlers
from services.fraud.handlers.rules import RuleHandlers, Shelf
from services.fraud.labels import Labels
from services.fraud.model.scorer import Scorer
from services.fraud.recorder import Recorder
from services.fraud.settings import Settings
from services.rpc import channel
from services.rpc.lifetime import until_terminated
from services.rpc.revocations import Revocations, follow_revocations
from services.rpc.server import Registration, Server
from services.streams import Feed
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import (
    fraud_service_pb2,
    fraud_service_pb2_grpc,
    rule_service_pb2,
    rule_service_pb2_grpc,
)

SERVICE = events.SOURCE
_GRACE_SECONDS = 5.0
_SETTLE_SECONDS = 1.0
# Most events say nothing about labels: they are passed over many at a time.
_LABELS_AT_ONCE = 200


def _utc_now() -> datetime:
    return datetime.now(UTC)


class FraudServer:
    """The fraud service in this process, from `start` until `stop`.

    Args:
        settings: Where it listens and what it uses.
        clock: Seconds that only grow.
        now: The clock.
        new_id: Ids of alerts and events; UUIDv7, so that they sort by age.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        new_id: Callable[[], UUID] = uuid7,
    ) -> None:
        self._engine = sql.create_engine(settings.database_url)
        self._redis = streams.connect(settings.redis_url)
        self._user = channel.connect(settings.user_address, "user", settings.tls)
        self._revocations = Revocations()
        self._index = SiteIndex()
        self._tiers = TierIndex()
        accounts = Accounts(self._user)
        self._feed = AccountFeed(self._engine, self._redis, accounts, self._index, self._tiers)
        self._relay = Relay(self._engine, store.event_log, self._redis, SERVICE)
        self._scorer = Scorer.load(settings.model_directory)
        self._guard = Guard(settings.decline_share_max)
        self._now = now
        self._history = history = FeatureStore(self._redis)
        self.books = Books(self._engine, self._relay, now=now, new_id=new_id)
        self.recorder = Recorder(self._engine, self._relay, self._guard, now=now, new_id=new_id)
        self.labels = Labels(
            self._engine, self._relay, history, settings.patience, now=now, new_id=new_id
        )
        self._assessor = Assessor(
            history,
            self._scorer,
            self.books.current,
            self._guard,
            settings.limits,
            now=lambda: now().timestamp(),
            clock=clock,
            history_seconds=settings.history_seconds,
        )
        self._alerts = Feed(self._redis, SERVICE)
        self._lists = FeatureLists(self._engine)
        drafts = Drafts(settings.drafts_directory)
        desk = Desk(
            index=self._index,
            tiers=self._tiers,
            accounts=accounts,
            assessor=self._assessor,
            recorder=self.recorder,
            labels=self.labels,
            engine=self._engine,
            lists=self._lists,
            feed=self._alerts,
            now=now,
            clock=clock,
        )
        backtests = Backtests(self._engine, self._lists, drafts, settings.limits)
        shelf = Shelf(self.books, self._guard, backtests, self._engine, now)
        self._server = Server(
            SERVICE,
            settings.listen,
            settings.tls,
            [
                Registration(
                    fraud_service_pb2.DESCRIPTOR.services_by_name["FraudService"],
                    fraud_service_pb2_grpc.add_FraudServiceServicer_to_server,
                    FraudHandlers(desk),
                ),
                Registration(
                    rule_service_pb2.DESCRIPTOR.services_by_name["RuleService"],
                    rule_service_pb2_grpc.add_RuleServiceServicer_to_server,
                    RuleHandlers(shelf),
                ),
            ],
            self._revocations,
        )
        self.background: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Load accounts and rules, then serve; answers the port."""
        await self._feed.load()
        await self.books.load()
        await self._lists.load()
        if not self._scorer.available:
            self.recorder.model_missing(self._scorer.problem)
        self._run(
            self._feed.follow(),
            self._feed.save(),
            self.books.follow(),
            self.recorder.run(),
            self.labels.feed(),
            self.labels.upkeep(),
            self._settle(),
            self._relay.run(),
            self._alerts.run(),
            follow_revocations(self._revocations, self._redis, self._user),
            # Replicas share the work; the order of labels is that of their times.
            streams.consume(
                self._redis,
                "payment",
                SERVICE,
                secrets.token_hex(4),
                self.labels.take,
                wanted=lambda event: events.verdict(event) is not None,
                at_once=_LABELS_AT_ONCE,
            ),
            streams.consume(
                self._redis,
                "offline",
                SERVICE,
                secrets.token_hex(4),
                self._count_incidents,
                wanted=events.is_incident,
            ),
        )
        return await self._server.start()

    async def _count_incidents(self, event: event_pb2.Event) -> None:
        await self._history.count(events.incidents(event), now=self._now().timestamp())

    async def _settle(self) -> None:
        """Let no profile wait longer than a second to learn, also when no payment comes."""
        while True:
            await asyncio.sleep(_SETTLE_SECONDS)
            await self._assessor.settle_now()

    def _run(self, *work: Coroutine[Any, Any, None]) -> None:
        self.background += [asyncio.create_task(each) for each in work]

    async def stop(self, *, notice_seconds: float = 0.0) -> None:
        """End calls, then background work, then connections. Also after a `start` that failed."""
        await self._server.stop(notice_seconds=notice_seconds, grace_seconds=_GRACE_SECONDS)
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        with contextlib.suppress(
            Exception
        ):  # the database may be away, and it must end all the same
            await self.recorder.write_now()
        await self._user.close()
        with contextlib.suppress(OSError):
            await self._redis.aclose()
        await self._engine.dispose()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    server = FraudServer(settings)
    try:
        await server.start()
        await until_terminated(*server.background)
    finally:
        await server.stop(notice_seconds=settings.drain_notice_ms / 1000)


def main() -> None:
    """Run the service from the environment's settings."""
    settings = Settings.read(Environment())
    telemetry.configure(SERVICE, level=settings.log_level)
    try:
        uvloop.run(serve(settings))
    finally:
        telemetry.shut_down()
