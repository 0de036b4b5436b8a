"""SettlementService: what other services decide on."""

from __future__ import annotations

from typing import Any

import grpc

from services import names, sql
from services.payment import store, wire
from services.payment.domain import refusals
from services.payment.domain.book import Resolved
from services.payment.domain.commands import ResolveHold
from services.payment.handlers.payments import Ledger
from services.payment.handlers.request import once
from services.rpc.identity import caller
from tallystick.payment.v1 import settlement_service_pb2 as pb
from tallystick.payment.v1 import settlement_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class SettlementService(settlement_service_pb2_grpc.SettlementServiceServicer):
    """Ends reviews."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def ResolveHold(
        self, request: pb.ResolveHoldRequest, context: Context
    ) -> pb.ResolveHoldResponse:
        payment_id = names.last_id(request.payment)
        async with sql.reading(self._ledger.engine) as connection:
            payment = (await store.read_payments(connection, [payment_id])).get(payment_id)
        if payment is None:
            raise refusals.payment_not_found(request.payment)
        command = ResolveHold(
            request=once(caller(), request.request_id, request),
            payment_id=payment_id,
            transfer_id=self._ledger.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            approve=request.decision == pb.ResolveHoldRequest.DECISION_APPROVE,
            actor=request.actor,
            reason=request.reason,
        )
        resolved = await self._ledger.owners.submit(command, ())
        assert isinstance(resolved, Resolved)
        return pb.ResolveHoldResponse(payment=wire.payment_message(resolved.payment))
