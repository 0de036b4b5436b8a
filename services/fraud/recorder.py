"""Writes what was judged, off the hot path and in groups: assessments, alerts, offline risk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import metrics
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, names, sql, times
from services.event_log import Relay
from services.fraud import events, store, wire
from services.fraud.assessor import Judged
from services.fraud.domain.assessment import Decision
from services.fraud.domain.guard import Guard
from services.fraud.domain.offline_risk import after_suspicion, is_suspicious
from services.fraud.features.incidents import NO_INCIDENTS
from services.fraud.features.spec import FEATURES_VERSION
from services.fraud.store import assessments, offline_risks
from services.fraud.store.assessments import Stored, StoredAlert
from services.fraud.store.offline_risks import Change
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.user.v1 import user_pb2

log = logging.getLogger(__name__)

# From one group to the next: alerts must be seen within a second of the assessment, and pass an event log after this.
_PACE_SECONDS = 0.25
_GROUP_MAX = 500
# Payments that may wait while the database is away: twenty seconds at 1,000 a second.
_WAITING_MAX = 20_000
_RETRY_SECONDS = 0.5
_DETAIL_CHARACTERS = 300

_lost = metrics.get_meter("tallystick.fraud").create_counter(
    "tallystick.fraud.assessments.lost",
    description="Assessments not kept, because the database was away for too long.",
)


class Recorder:
    """Keeps assessments, raises alerts, and lowers the trust in payers that look like fraud.

    Args:
        engine: The fraud service's database.
        relay: Woken after a commit that holds events.
        guard: Asked which rules it has stopped.
        now: The clock.
        new_id: Ids of alerts and events; UUIDv7, because alerts are listed by age.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        relay: Relay,
        guard: Guard,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._engine = engine
        self._relay = relay
        self._guard = guard
        self._now = now
        self._new_id = new_id
        self._waiting: deque[tuple[Judged, datetime]] = deque()
        self._alerts: list[pb.Alert] = []
        self._writing = asyncio.Lock()

    def take(self, judged: Iterable[Judged]) -> None:
        """Have assessments written soon. When too many wait, the oldest that passed are lost."""
        now = self._now()
        self._waiting.extend((each, now) for each in judged)
        while len(self._waiting) > _WAITING_MAX:
            self._waiting.popleft()
            _lost.add(1)

    def model_missing(self, problem: str) -> None:
        """Have it said that payments are judged by rules only."""
        self._alerts.append(self._alert(pb.Alert.KIND_MODEL_MISSING, [], problem))

    async def run(self) -> None:
        """Write what has come, until cancelled."""
        while True:
            await asyncio.sleep(_PACE_SECONDS)
            try:
                await self.write_now()
            except Exception as error:
                if not (sql.is_lost(error) or sql.is_conflict(error)):
                    raise
                log.warning("assessments wait", extra={"cause": repr(error)[:300]})
                await asyncio.sleep(_RETRY_SECONDS)

    async def write_now(self) -> None:
        """Write all that waits.

        Raises:
            DBAPIError: it could not be written; it is kept for the next time.
        """
        async with self._writing:
            for rule in self._guard.take_news():
                log.error("rule declines too much: it only reviews now", extra={"rule": rule})
                share = f"{self._guard.share_max:.0%}"
                detail = (
                    f"{rule} declined more than {share} of recent payments; it only reviews now"
                )
                self._alerts.append(self._alert(pb.Alert.KIND_GUARD_TRIPPED, [rule], detail))
            while self._waiting or self._alerts:
                size = min(len(self._waiting), _GROUP_MAX)
                group = [self._waiting[at] for at in range(size)]
                alerts = list(self._alerts)
                told = await sql.transact(
                    self._engine,
                    lambda connection: self._write(connection, group, alerts),  # noqa: B023
                )
                # Only `take` takes from the left meanwhile, when too much waits.
                for each in group:
                    if self._waiting and self._waiting[0] is each:
                        self._waiting.popleft()
                del self._alerts[: len(alerts)]
                if told:
                    self._relay.wake()

    async def _write(
        self,
        connection: AsyncConnection,
        group: Sequence[tuple[Judged, datetime]],
        alerts: Sequence[pb.Alert],
    ) -> bool:
        rows = {row.payment_id: (row, each) for each, row in _rows(group)}
        # A payment may be asked for again, such as by a retry: the first answer was acted upon.
        for payment_id in await assessments.known(connection, list(rows)) if rows else ():
            del rows[payment_id]
        await assessments.insert(connection, [row for row, _ in rows.values()])
        raised = [*alerts]
        suspected: dict[UUID, tuple[UUID, Judged]] = {}
        for payment_id, (row, each) in rows.items():
            if each.assessment.decision is Decision.ALLOW:
                continue
            raised.append(self._about_payment(each, row.create_time))
            if each.case is not None and is_suspicious(each.assessment):
                suspected[names.last_id(each.payment.payer)] = payment_id, each
        await assessments.insert_alerts(connection, [_stored(alert) for alert in raised])
        facts = [events.alert_raised(self._new_id(), alert) for alert in raised]
        facts += await self._lower(connection, suspected)
        await event_log.append(connection, store.event_log, facts)
        return bool(facts)

    async def _lower(
        self, connection: AsyncConnection, suspected: dict[UUID, tuple[UUID, Judged]]
    ) -> list[event_pb2.Event]:
        now = self._now()
        standings = await offline_risks.read(connection, suspected)
        changes: list[Change] = []
        facts: list[event_pb2.Event] = []
        for payer_id, (payment_id, each) in suspected.items():
            before = standings.get(payer_id)
            after = after_suspicion(before, payment_id, now)
            if after is None:
                continue
            reason = f"{each.payment.payment}: {each.assessment.signals[0].detail}"[
                :_DETAIL_CHARACTERS
            ]
            changes.append(Change(payer_id, after, reason))
            if before is None or before.level is not after.level:
                facts.append(
                    events.offline_risk_changed(
                        self._new_id(), payer_id, after.level, reason, now=now
                    )
                )
        await offline_risks.save(connection, changes)
        return facts

    def _about_payment(self, each: Judged, time: datetime) -> pb.Alert:
        assessment = each.assessment
        alert = self._alert(
            pb.Alert.KIND_PAYMENT,
            list(dict.fromkeys(signal.reason for signal in assessment.signals)),
            assessment.signals[0].detail[:_DETAIL_CHARACTERS],
        )
        alert.payment = each.payment.payment
        if each.case is not None:
            alert.payer, alert.vendor = each.payment.payer, each.payment.vendor
        alert.decision = wire.DECISIONS[assessment.decision]
        alert.score = assessment.score
        alert.create_time.CopyFrom(times.timestamp(time))
        return alert

    def _alert(self, kind: pb.Alert.Kind.ValueType, reasons: list[str], detail: str) -> pb.Alert:
        alert = pb.Alert(name=f"alerts/{self._new_id()}", kind=kind, reasons=reasons, detail=detail)
        alert.create_time.CopyFrom(times.timestamp(self._now()))
        return alert


def _rows(
    group: Sequence[tuple[Judged, datetime]],
) -> Iterable[tuple[Judged, Stored]]:
    for time, taken in groupby(group, key=itemgetter(1)):
        stamp = times.timestamp(time)
        for each, _ in taken:
            try:
                payment_id = names.last_id(each.payment.payment)
            except ValueError:
                # A caller's mistake, answered REVIEW; there is no name to keep it under.
                log.warning("payment without an id", extra={"payment": each.payment.payment[:100]})
                continue
            yield each, _row(payment_id, each, time, stamp)


def _row(payment_id: UUID, each: Judged, time: datetime, stamp: Timestamp) -> Stored:
    assessment, case = each.assessment, each.case
    score = -1.0 if case is None else case.model_score
    record = pb.GetAssessmentResponse(
        assessment=each.answer,
        facts=each.payment,
        shadow_signals=wire.signals(assessment.shadow),
        model_score=score,
        model_version=each.model_version if score >= 0 else "",
        rules_revision=each.rules_revision,
        history_known=case is not None and case.history_known,
        features_version=FEATURES_VERSION if case is not None and case.features else "",
        model_silent=assessment.model_silent,
        create_time=stamp,
        payer_tier=user_pb2.User.TIER_UNSPECIFIED if case is None else wire.TIERS[case.tier],
    )
    if case is not None and case.incidents != NO_INCIDENTS:
        record.incidents.CopyFrom(wire.incidents_message(case.incidents))
    return Stored(
        payment_id=payment_id,
        create_time=time,
        decision=int(each.answer.decision),
        model_score=int(score),
        signalled=bool(assessment.signals or assessment.shadow),
        record=record.SerializeToString(),
        features=b"" if case is None else wire.pack(case.measures, case.features),
    )


def _stored(alert: pb.Alert) -> StoredAlert:
    return StoredAlert(
        alert_id=names.last_id(alert.name),
        create_time=times.instant(alert.create_time),
        kind=int(alert.kind),
        decision=int(alert.decision),
        score=alert.score,
        payer_id=names.last_id(alert.payer) if alert.payer else None,
        vendor_id=names.last_id(alert.vendor) if alert.vendor else None,
        reasons=alert.reasons,
        record=alert.SerializeToString(),
    )
