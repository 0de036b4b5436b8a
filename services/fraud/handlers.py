"""AssessPayments: facts from the wire through the checks and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from grpc.aio import AioRpcError

from services.fraud.clients import Parties
from services.fraud.domain import assessment
from services.fraud.domain.assessment import Assessment, Decision, Facts, Limits, Position
from services.fraud.domain.sites import SiteIndex
from services.money import Money
from services.rpc.server import Context
from services.rpc.validation import violations
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import fraud_service_pb2_grpc

log = logging.getLogger(__name__)

# Payment waits 150 ms for a batch; what user does not answer in half of that is done without.
_PARTIES_DEADLINE_SECONDS = 0.075
# After it failed to answer: every batch would wait that long while the user service is away.
_PARTIES_PAUSE_SECONDS = 1.0

_DECISIONS = {
    Decision.ALLOW: pb.Assessment.DECISION_ALLOW,
    Decision.REVIEW: pb.Assessment.DECISION_REVIEW,
    Decision.DECLINE: pb.Assessment.DECISION_DECLINE,
}
_CODES = {code: pb.Signal.Code.Value(f"CODE_{code.value}") for code in assessment.Code}


class FraudHandlers(fraud_service_pb2_grpc.FraudServiceServicer):
    """Serves fraud.v1.FraudService.

    Args:
        index: The vendors' sites.
        parties: Whom to ask about vendors the index does not know.
        limits: Where payments stop passing unseen.
        clock: Seconds that only grow.
    """

    def __init__(
        self, index: SiteIndex, parties: Parties, limits: Limits, clock: Callable[[], float]
    ) -> None:
        self._index = index
        self._parties = parties
        self._limits = limits
        self._clock = clock
        self._ask_again_at = 0.0

    async def AssessPayments(
        self, request: pb.AssessPaymentsRequest, context: Context
    ) -> pb.AssessPaymentsResponse:
        problems = [violations(payment) for payment in request.payments]
        vendors = {
            payment.vendor
            for payment, found in zip(request.payments, problems, strict=True)
            if not found
        }
        await self._learn(vendors, context.time_remaining())
        return pb.AssessPaymentsResponse(
            assessments=[
                _to_proto(payment.payment, self._assess(payment, found))
                for payment, found in zip(request.payments, problems, strict=True)
            ]
        )

    def _assess(self, payment: pb.PaymentFacts, found: Sequence[tuple[str, str]]) -> Assessment:
        if found:
            return assessment.not_assessable([f"{field}: {what}" for field, what in found])
        sites = self._index.find(payment.vendor)
        return assessment.assess(_facts(payment), sites, self._limits)

    async def _learn(self, vendors: set[str], seconds_left: float | None) -> None:
        """Ask the user service, once, about vendors whose registration has not arrived yet."""
        at = self._clock()
        unknown = self._index.unknown(vendors, at=at)
        if not unknown or at < self._ask_again_at:
            return
        deadline = _PARTIES_DEADLINE_SECONDS
        if seconds_left is not None:
            deadline = min(deadline, seconds_left / 2)
        try:
            found = await self._parties.find(unknown, deadline_seconds=deadline)
        except AioRpcError as error:
            self._ask_again_at = self._clock() + _PARTIES_PAUSE_SECONDS
            cause = {"vendors": len(unknown), "cause": error.code().name}
            log.warning("sites unknown, user does not answer", extra=cause)
            return
        for vendor, sites in found.items():
            self._index.apply(vendor, sites)
        self._index.mark_absent(unknown - found.keys(), at=self._clock())


def _facts(payment: pb.PaymentFacts) -> Facts:
    amount = Money(payment.amount.minor_units, payment.amount.currency_code)
    position = None
    if payment.HasField("position"):
        said = payment.position
        position = Position(said.latitude, said.longitude, said.accuracy_meters, said.mocked)
    return Facts(amount, payment.site, position)


def _to_proto(payment: str, found: Assessment) -> pb.Assessment:
    return pb.Assessment(
        payment=payment,
        decision=_DECISIONS[found.decision],
        score=found.score,
        signals=[
            pb.Signal(code=_CODES[signal.code], detail=signal.detail) for signal in found.signals
        ],
    )
