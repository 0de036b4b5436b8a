"""SettlementService: what other services decide on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import grpc

from services import names, sql, telemetry
from services.money import Money
from services.payment import store, wire
from services.payment.domain import offline_commands, refusals
from services.payment.domain.book import Moved, Resolved, SettledOffline
from services.payment.domain.commands import ResolveHold
from services.payment.domain.ledger import WalletKey
from services.payment.domain.payment import Shown
from services.payment.domain.reservation import Reservation, ReservationState
from services.payment.handlers.payments import Ledger, refusal_message
from services.payment.handlers.request import once
from services.rpc import errors, validation
from services.rpc import refusals as access_refusals
from services.rpc.identity import caller
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import settlement_service_pb2 as pb
from tallystick.payment.v1 import settlement_service_pb2_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_RELEASED = {
    ReservationState.RELEASED: pb.ReleasedReservation.STATE_RELEASED,
    ReservationState.SETTLED: pb.ReleasedReservation.STATE_SETTLED,
}


class SettlementService(settlement_service_pb2_grpc.SettlementServiceServicer):
    """Ends reviews; sets money aside behind offline codes, settles it, gives it back."""

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

    async def ReserveFunds(
        self, request: pb.ReserveFundsRequest, context: Context
    ) -> pb.ReserveFundsResponse:
        key = wire.wallet_key(request.wallet)
        command = offline_commands.ReserveFunds(
            request=once(caller(), request.request_id, request),
            transfer_id=self._ledger.new_id(),
            wallet=key,
            amounts=tuple(
                (names.last_id(new.name), new.minor_units) for new in request.reservations
            ),
        )
        outcome = await self._ledger.owners.submit(command, (key.owner_id,))
        assert isinstance(outcome, Moved)
        return pb.ReserveFundsResponse(
            wallet=wire.wallet_message(outcome.wallet),
            transfer=wire.transfer_message(outcome.transfer),
        )

    async def SettleOffline(
        self, request: pb.SettleOfflineRequest, context: Context
    ) -> pb.SettleOfflineResponse:
        results = await asyncio.gather(*map(self._settle, request.items))
        return pb.SettleOfflineResponse(results=results)

    async def ReleaseReservations(
        self, request: pb.ReleaseReservationsRequest, context: Context
    ) -> pb.ReleaseReservationsResponse:
        async with sql.reading(self._ledger.engine) as connection:
            reservation_ids = [names.last_id(name) for name in request.names]
            payers = await store.wallets_behind(connection, reservation_ids)
        results = await asyncio.gather(*(self._release(name, payers) for name in request.names))
        return pb.ReleaseReservationsResponse(results=results)

    async def _settle(self, item: pb.OfflinePayment) -> pb.OfflineResult:
        try:
            return await self._settled(item)
        except Exception as error:
            # Whatever is wrong with one, its neighbours are answered.
            refusal = errors.refusal_for(error)
            if refusal is None:
                log.exception("item is stuck", extra={"payment": item.payment})
                refusal = access_refusals.internal(telemetry.trace_id())
            return pb.OfflineResult(refusal=refusal_message(refusal))

    async def _settled(self, item: pb.OfflinePayment) -> pb.OfflineResult:
        if problems := validation.violations(item):
            raise access_refusals.fields_invalid(problems)
        command = self._command(item)
        facts = _facts(command, item)
        outcome = await self._ledger.owners.submit(command, (command.vendor_id,), facts)
        assert isinstance(outcome, SettledOffline)
        return pb.OfflineResult(
            payment=wire.payment_message(outcome.payment),
            returned=wire.money(outcome.returned, item.amount.currency_code),
        )

    def _command(self, item: pb.OfflinePayment) -> offline_commands.SettleOffline:
        return offline_commands.SettleOffline(
            payment_id=names.last_id(item.payment),
            transfer_id=self._ledger.new_id(),
            release_id=self._ledger.new_id(),
            reservation_id=names.last_id(item.reservation),
            payer=WalletKey(names.last_id(item.payer), item.amount.currency_code),
            vendor_id=names.last_id(item.vendor),
            terminal_id=names.last_id(item.terminal),
            site_id=names.last_id(item.site) if item.site else None,
            amount=Money(item.amount.minor_units, item.amount.currency_code),
            spend_time=wire.instant(item.occur_time),
            position=wire.position(item.position) if item.HasField("position") else None,
            reference=item.reference,
            hold_reason=item.hold_reason,
            shown=Shown(
                code_age=item.code_age.ToTimedelta() if item.HasField("code_age") else None,
                device=item.device,
            ),
        )

    async def _release(self, name: str, payers: dict[UUID, WalletKey]) -> pb.ReleasedReservation:
        reservation_id = names.last_id(name)
        payer = payers.get(reservation_id)
        if payer is None:
            return pb.ReleasedReservation(name=name, state=pb.ReleasedReservation.STATE_NOT_FOUND)
        command = offline_commands.ReleaseReservation(reservation_id, self._ledger.new_id(), payer)
        outcome = await self._ledger.owners.submit(command, ())
        assert isinstance(outcome, Reservation)
        payment = outcome.payment_id
        return pb.ReleasedReservation(
            name=name,
            state=_RELEASED[outcome.state],
            payment="" if payment is None else names.payment_name(payment),
        )


def _facts(
    command: offline_commands.SettleOffline, item: pb.OfflinePayment
) -> fraud_service_pb2.PaymentFacts:
    return fraud_service_pb2.PaymentFacts(
        payment=item.payment,
        payer=item.payer,
        vendor=item.vendor,
        site=item.site,
        amount=item.amount,
        position=item.position if item.HasField("position") else None,
        occur_time=wire.timestamp(command.spend_time),
        offline=True,
        code_age=item.code_age if item.HasField("code_age") else None,
        device=item.device,
    )
