"""What payments turned out to be: from reviewers, chargebacks and silence, to where it counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, names, sql, times
from services.event_log import Relay
from services.fraud import events, store, wire
from services.fraud.domain.offline_risk import Level, Standing, after_label
from services.fraud.features.derive import like_its_payer
from services.fraud.features.observation import Label, Observation
from services.fraud.features.spec import FEATURES_VERSION
from services.fraud.features.store import FeatureStore
from services.fraud.store import assessments, offline_risks
from services.fraud.store.assessments import FRAUD, HONEST, Stored
from services.fraud.store.offline_risks import Change
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb

log = logging.getLogger(__name__)

_FEED_SECONDS = 1.0
_FED_AT_ONCE = 500
_UPKEEP_SECONDS = 30.0
_KEPT_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things are waited for and kept.

    Attributes:
        undisputed: After so long without a complaint, a payment that passed was honest.
        kept: So long assessments and alerts are kept.
    """

    undisputed: timedelta = timedelta(days=7)
    kept: timedelta = timedelta(days=120)


class Labels:
    """Labels payments, and feeds what is known to counters, profiles and offline risk.

    Args:
        engine: The fraud service's database.
        relay: Woken after a commit that holds events.
        history: Counters and profiles.
        patience: How long things are waited for and kept.
        now: The clock.
        new_id: Ids of events.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        relay: Relay,
        history: FeatureStore,
        patience: Patience,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._engine = engine
        self._relay = relay
        self._history = history
        self._patience = patience
        self._now = now
        self._new_id = new_id
        self._due = asyncio.Event()

    async def take(self, event: event_pb2.Event) -> None:
        """Label a payment that a reviewer has decided; other events say nothing here."""
        verdict = events.verdict(event)
        if verdict is None:
            return
        label = pb.Label(
            fraud=verdict.fraud,
            source=pb.Label.SOURCE_REVIEW,
            reason=verdict.reason,
            actor=verdict.actor,
            time=event.occur_time,
        )
        if await self.label(names.last_id(verdict.payment), label) is None:
            log.warning("reviewed, never assessed", extra={"payment": verdict.payment})

    async def label(self, payment_id: UUID, label: pb.Label) -> pb.Label | None:
        """Label a payment; answers its label as it is then. None when no assessment of it is kept.

        The newest word counts, but the same one again changes nothing, nor does a late review undo
        what came by another way since.
        """

        async def work(connection: AsyncConnection) -> tuple[pb.Label | None, bool]:
            stored = await assessments.find(connection, payment_id, lock=True)
            if stored is None:
                return None, False
            if stored.label_record is not None:
                known = pb.Label.FromString(stored.label_record)
                late = label.time.ToNanoseconds() < known.time.ToNanoseconds()
                if late or (known.fraud == label.fraud and known.source == label.source):
                    return known, False
            kind = FRAUD if label.fraud else HONEST
            await assessments.save_label(connection, [payment_id], kind, label.SerializeToString())
            return label, await self._change_risk(connection, stored, label)

        kept, told = await sql.transact(self._engine, work)
        if told:
            self._relay.wake()
        self._due.set()
        return kept

    async def _change_risk(
        self, connection: AsyncConnection, stored: Stored, label: pb.Label
    ) -> bool:
        if not stored.features:  # its facts could not be true, so neither need the payer be
            return False
        record = pb.GetAssessmentResponse.FromString(stored.record)
        payer_id = names.last_id(record.facts.payer)
        before = (await offline_risks.read(connection, [payer_id])).get(payer_id)
        now = self._now()
        after = after_label(before, stored.payment_id, fraud=label.fraud, now=now)
        if after is None:
            return False
        reason = f"{record.facts.payment}: {label.reason}"
        await offline_risks.save(connection, [Change(payer_id, after, reason)])
        level = Level.NORMAL if before is None else before.level
        if level is after.level:
            return False
        event = events.offline_risk_changed(self._new_id(), payer_id, after.level, reason, now=now)
        await event_log.append(connection, store.event_log, [event])
        return True

    async def feed(self) -> None:
        """Have counters and profiles take labels up as they come, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_FEED_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            try:
                while await self.feed_now() == _FED_AT_ONCE:
                    pass
            except Exception as error:
                if not _is_away(error):
                    raise
                log.warning("labels wait", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_FEED_SECONDS)

    async def feed_now(self) -> int:
        """Have them take up what waits; answers how many.

        Replicas take turns, by the lock on what waits. Who dies on the way has a label taken up twice:
        it counts a little more than it should, until it has faded.

        Raises:
            RedisError, DBAPIError: what was not taken up waits for the next time.
        """

        async def work(connection: AsyncConnection) -> int:
            due = await assessments.lock_due_labels(connection, limit=_FED_AT_ONCE)
            if due:
                await self._feed(due)
                done = [stored.payment_id for stored in due]
                await assessments.delete_label_tasks(connection, done)
            return len(due)

        return await sql.transact(self._engine, work)

    async def _feed(self, due: Sequence[Stored]) -> None:
        labels: list[Label] = []
        released: list[Observation] = []
        for stored in due:
            if not stored.features:
                continue
            record = pb.GetAssessmentResponse.FromString(stored.record)
            seen = _observation(record)
            fraud = stored.label == FRAUD
            # On another list of features it cannot be told, and speaks against nobody.
            like_payer = record.features_version == FEATURES_VERSION and like_its_payer(
                wire.unpack_features(stored.features)
            )
            labels.append(Label(seen.payer, seen.vendor, fraud, seen.occur_time, like_payer))
            passed = record.assessment.decision == pb.Assessment.DECISION_ALLOW
            if not fraud and not passed:
                released.append(seen)
        if labels:
            await self._history.label(labels)
        if released:
            await self._history.settle(released, now=self._now().timestamp())

    async def upkeep(self) -> None:
        """Take silence for honesty, let risks run out, forget what is old; until cancelled."""
        while True:
            try:
                await self.keep_up_now()
            except Exception as error:
                if not _is_away(error):
                    raise
                log.warning("upkeep waits", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(_UPKEEP_SECONDS)

    async def keep_up_now(self) -> None:
        """One turn of `upkeep`.

        Raises:
            DBAPIError: the rest waits for the next turn.
        """
        now = self._now()
        for work in (self._take_silence, self._let_run_out, self._forget):
            while await sql.transact(self._engine, lambda c: work(c, now)) == _KEPT_AT_ONCE:  # noqa: B023
                pass
        self._relay.wake()
        self._due.set()

    async def _take_silence(self, connection: AsyncConnection, now: datetime) -> int:
        found = await assessments.undisputed(
            connection,
            before=now - self._patience.undisputed,
            decision=int(pb.Assessment.DECISION_ALLOW),
            limit=_KEPT_AT_ONCE,
        )
        days = self._patience.undisputed / timedelta(days=1)
        label = pb.Label(
            source=pb.Label.SOURCE_UNDISPUTED,
            reason=f"nobody has disputed it for {days:g} days",
            actor=events.PLATFORM,
        )
        label.time.CopyFrom(times.timestamp(now))
        await assessments.save_label(connection, found, HONEST, label.SerializeToString())
        return len(found)

    async def _let_run_out(self, connection: AsyncConnection, now: datetime) -> int:
        expired = await offline_risks.expired(connection, now=now, limit=_KEPT_AT_ONCE)
        reason = "nothing has happened since"
        changes = [
            Change(payer_id, Standing(Level.NORMAL, each.payment_id, now), reason)
            for payer_id, each in expired.items()
        ]
        await offline_risks.save(connection, changes)
        facts = [
            events.offline_risk_changed(
                self._new_id(), each.payer_id, Level.NORMAL, each.reason, now=now
            )
            for each in changes
        ]
        await event_log.append(connection, store.event_log, facts)
        return len(changes)

    async def _forget(self, connection: AsyncConnection, now: datetime) -> int:
        before = now - self._patience.kept
        return await assessments.forget(connection, before=before, limit=_KEPT_AT_ONCE)


def _observation(record: pb.GetAssessmentResponse) -> Observation:
    at = record.create_time.seconds + record.create_time.nanos / 1e9
    return wire.observation(record.facts, wire.facts(record.facts), None, now=at)


def _is_away(error: Exception) -> bool:
    return isinstance(error, RedisError) or sql.is_lost(error) or sql.is_conflict(error)
