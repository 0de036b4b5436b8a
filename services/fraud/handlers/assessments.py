"""FraudService: assessments, alerts and labels."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from grpc.aio import AioRpcError
from sqlalchemy.ext.asyncio import AsyncEngine

from services import names, paging, sql, times
from services.fraud import reports, wire
from services.fraud.assessor import Assessor
from services.fraud.clients import Accounts
from services.fraud.domain import refusals
from services.fraud.domain.sites import SiteIndex
from services.fraud.domain.tiers import TierIndex
from services.fraud.feature_lists import FeatureLists
from services.fraud.labels import Labels
from services.fraud.recorder import Recorder
from services.fraud.store import assessments
from services.fraud.store.assessments import AlertQuery
from services.rpc.identity import caller
from services.rpc.server import Context
from services.rpc.validation import violations
from services.streams import Feed
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import fraud_service_pb2_grpc, rule_service_pb2

log = logging.getLogger(__name__)

# Payment waits 150 ms for a batch; what user does not answer in half of that is done without.
_PARTIES_DEADLINE_SECONDS = 0.075
# After it failed to answer: every batch would wait that long while the user service is away.
_PARTIES_PAUSE_SECONDS = 1.0

_PRECISION_DAYS = 30


@dataclass(frozen=True)
class Desk:
    """What the handlers work with.

    Attributes:
        index: The vendors' sites.
        tiers: The payers' tiers.
        accounts: Whom to ask about vendors the index does not know.
        assessor: Judges payments.
        recorder: Keeps what was judged.
        labels: Keeps what payments turned out to be.
        engine: For reads.
        lists: Which features assessments were kept with.
        feed: This service's own events, live.
        now: The clock.
        clock: Seconds that only grow.
    """

    index: SiteIndex
    tiers: TierIndex
    accounts: Accounts
    assessor: Assessor
    recorder: Recorder
    labels: Labels
    engine: AsyncEngine
    lists: FeatureLists
    feed: Feed
    now: Callable[[], datetime]
    clock: Callable[[], float]


class FraudHandlers(fraud_service_pb2_grpc.FraudServiceServicer):
    """Serves fraud.v1.FraudService."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ask_again_at = 0.0

    async def AssessPayments(
        self, request: pb.AssessPaymentsRequest, context: Context
    ) -> pb.AssessPaymentsResponse:
        payments = list(request.payments)
        problems = [violations(payment) for payment in payments]
        vendors = {
            payment.vendor for payment, found in zip(payments, problems, strict=True) if not found
        }
        await self._learn(vendors, context.time_remaining())
        judged = await self._desk.assessor.assess(
            payments, problems, self._desk.index.find, self._desk.tiers.find
        )
        self._desk.recorder.take(judged)
        return pb.AssessPaymentsResponse(assessments=[each.answer for each in judged])

    async def GetAssessment(
        self, request: pb.GetAssessmentRequest, context: Context
    ) -> pb.GetAssessmentResponse:
        async with sql.reading(self._desk.engine) as connection:
            stored = await assessments.find(connection, names.last_id(request.payment))
        if stored is None:
            raise refusals.assessment_not_found(request.payment)
        answer = pb.GetAssessmentResponse.FromString(stored.record)
        if answer.features_version:
            features = await self._desk.lists.find(answer.features_version) or ()
            values = wire.unpack_features(stored.features) if features else ()
            for feature, value in zip(features, values, strict=True):
                answer.features.add(
                    name=feature.name, unit=feature.unit, meaning=feature.meaning, value=value
                )
        if stored.label_record is not None:
            answer.label.ParseFromString(stored.label_record)
        return answer

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Context
    ) -> pb.ListAlertsResponse:
        query = request.filter.SerializeToString(deterministic=True)
        before = paging.redeem_id(request.page_token, query) if request.page_token else None
        size = paging.page_size(request.page_size)
        async with sql.reading(self._desk.engine) as connection:
            found = await assessments.list_alerts(
                connection, _query(request.filter), before=before, limit=size + 1
            )
        page = found[:size]
        token = paging.issue(page[-1][0].bytes, query) if len(found) > size else ""
        return pb.ListAlertsResponse(
            alerts=[pb.Alert.FromString(record) for _, record in page], next_page_token=token
        )

    async def WatchAlerts(
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAlertsResponse]:
        asked = request.filter

        def wanted(event: event_pb2.Event) -> bool:
            return event.WhichOneof("fact") == "alert_raised" and _matches(
                event.alert_raised.alert, asked
            )

        async for cursor, event in self._desk.feed.watch(request.cursor, wanted):
            alert = None if event is None else event.alert_raised.alert
            yield pb.WatchAlertsResponse(alert=alert, cursor=cursor)

    async def LabelPayment(
        self, request: pb.LabelPaymentRequest, context: Context
    ) -> pb.LabelPaymentResponse:
        label = pb.Label(
            fraud=request.fraud,
            source=request.source,
            reason=request.reason,
            actor=caller().subject,
        )
        label.time.CopyFrom(times.timestamp(self._desk.now()))
        # It may have been assessed a moment ago.
        await self._desk.recorder.write_now()
        kept = await self._desk.labels.label(names.last_id(request.payment), label)
        if kept is None:
            raise refusals.assessment_not_found(request.payment)
        return pb.LabelPaymentResponse(label=kept)

    async def GetPrecision(
        self, request: pb.GetPrecisionRequest, context: Context
    ) -> pb.GetPrecisionResponse:
        start, end = period(request, self._desk.now(), timedelta(days=_PRECISION_DAYS))
        return await reports.precision(self._desk.engine, start, end)

    async def _learn(self, vendors: set[str], seconds_left: float | None) -> None:
        """Ask the user service, once, about vendors whose registration has not arrived yet."""
        at = self._desk.clock()
        unknown = self._desk.index.unknown(vendors, at=at)
        if not unknown or at < self._ask_again_at:
            return
        deadline = _PARTIES_DEADLINE_SECONDS
        if seconds_left is not None:
            deadline = min(deadline, seconds_left / 2)
        try:
            found = await self._desk.accounts.vendors(unknown, deadline_seconds=deadline)
        except AioRpcError as error:
            self._ask_again_at = self._desk.clock() + _PARTIES_PAUSE_SECONDS
            cause = {"vendors": len(unknown), "cause": error.code().name}
            log.warning("sites unknown, user does not answer", extra=cause)
            return
        for vendor, sites in found.items():
            self._desk.index.apply(vendor, sites)
        self._desk.index.mark_absent(unknown - found.keys(), at=self._desk.clock())


def period(
    request: pb.GetPrecisionRequest
    | rule_service_pb2.BacktestRuleRequest
    | rule_service_pb2.BacktestModelRequest,
    now: datetime,
    default: timedelta,
) -> tuple[datetime, datetime]:
    """The time a report is about: what was asked for, else what ends now."""
    end = times.instant(request.end_time) if request.HasField("end_time") else now
    if request.HasField("start_time"):
        return times.instant(request.start_time), end
    return end - default, end


def _query(asked: pb.AlertFilter) -> AlertQuery:
    return AlertQuery(
        kind=int(asked.kind),
        decision=int(asked.decision),
        score_min=asked.score_min,
        reason=asked.reason,
        user_id=names.last_id(asked.user) if asked.user else None,
    )


def _matches(alert: pb.Alert, asked: pb.AlertFilter) -> bool:
    return (
        (not asked.kind or alert.kind == asked.kind)
        and (not asked.decision or alert.decision == asked.decision)
        and alert.score >= asked.score_min
        and (not asked.reason or asked.reason in alert.reasons)
        and (not asked.user or asked.user in (alert.payer, alert.vendor))
    )
