"""The services payment calls, each with its deadline."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import grpc
from uuid_utils import UUID

from services import names
from tallystick.fraud.v1 import fraud_service_pb2, fraud_service_pb2_grpc
from tallystick.user.v1 import party_service_pb2, party_service_pb2_grpc

log = logging.getLogger(__name__)

_PARTIES_SECONDS = 1.0


class Fraud:
    """Judges groups of payments."""

    def __init__(self, channel: grpc.aio.Channel, budget_seconds: float) -> None:
        self._stub = fraud_service_pb2_grpc.FraudServiceStub(channel)
        self._budget_seconds = budget_seconds

    async def assess(
        self, payments: Sequence[fraud_service_pb2.PaymentFacts]
    ) -> Sequence[fraud_service_pb2.Assessment] | None:
        """One assessment per payment, in order; None when the service does not answer in its budget."""
        request = fraud_service_pb2.AssessPaymentsRequest(payments=payments)
        try:
            answer = await self._stub.AssessPayments(request, timeout=self._budget_seconds)
        except grpc.aio.AioRpcError as error:
            log.warning("fraud service does not answer", extra={"code": error.code().name})
            return None
        if [found.payment for found in answer.assessments] != [each.payment for each in payments]:
            log.error("fraud service answered for other payments")
            return None
        return answer.assessments


class Parties:
    """Asks the user service about accounts whose events have not arrived yet."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = party_service_pb2_grpc.PartyServiceStub(channel)

    async def get(self, user_ids: Iterable[UUID]) -> Sequence[party_service_pb2.Party]:
        """The accounts found; none when the service does not answer, which the caller treats as unknown."""
        request = party_service_pb2.BatchGetPartiesRequest(
            names=[names.user_name(user_id) for user_id in user_ids]
        )
        try:
            answer = await self._stub.BatchGetParties(request, timeout=_PARTIES_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("user service does not answer", extra={"code": error.code().name})
            return []
        return answer.parties
