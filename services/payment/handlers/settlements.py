"""SettlementService: what other services decide on."""

from __future__ import annotations

import functools
import logging
from typing import Any

import grpc
from uuid_utils import UUID

from services import names, sql, telemetry, times
from services.money import Money
from services.payment import store, wire
from services.payment.domain import offline_commands, refusals
from services.payment.domain.book import Moved, Outcome, Resolved, SettledOffline
from services.payment.domain.commands import ResolveHold
from services.payment.domain.ledger import WalletKey
from services.payment.domain.payment import Shown
from services.payment.domain.reservation import Reservation, ReservationState
from services.payment.group import Asked
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
        # A command of each item, or why it is none.
        read = [self._read(item) for item in request.items]
        asked = [each for each in read if isinstance(each, Asked)]
        answers = iter(await self._ledger.owners.submit_all(asked))
        return pb.SettleOfflineResponse(
            results=[
                _result(item, next(answers) if isinstance(each, Asked) else each)
                for item, each in zip(request.items, read, strict=True)
            ]
        )

    async def ReleaseReservations(
        self, request: pb.ReleaseReservationsRequest, context: Context
    ) -> pb.ReleaseReservationsResponse:
        async with sql.reading(self._ledger.engine) as connection:
            reservation_ids = [names.last_id(name) for name in request.names]
            payers = await store.wallets_behind(connection, reservation_ids)
        known = [name for name in request.names if names.last_id(name) in payers]
        answers = await self._ledger.owners.submit_all(
            [Asked(self._release(name, payers)) for name in known]
        )
        released = dict(zip(known, answers, strict=True))
        return pb.ReleaseReservationsResponse(
            results=[_released(name, released.get(name)) for name in request.names]
        )

    def _read(self, item: pb.OfflinePayment) -> Asked | Exception:
        try:
            if problems := validation.violations(item):
                return access_refusals.fields_invalid(problems)
            command = self._command(item)
            return Asked(command, _facts(command, item), (command.vendor_id,))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one, its neighbours go on
            return error

    def _command(self, item: pb.OfflinePayment) -> offline_commands.SettleOffline:
        vendor_id, terminal_id, site_id = _till(item.vendor, item.terminal, item.site)
        return offline_commands.SettleOffline(
            payment_id=names.last_id(item.payment),
            transfer_id=self._ledger.new_id(),
            release_id=self._ledger.new_id(),
            reservation_id=names.last_id(item.reservation),
            payer=WalletKey(names.last_id(item.payer), item.amount.currency_code),
            vendor_id=vendor_id,
            terminal_id=terminal_id,
            site_id=site_id,
            amount=Money(item.amount.minor_units, item.amount.currency_code),
            spend_time=times.instant(item.occur_time),
            position=wire.position(item.position) if item.HasField("position") else None,
            reference=item.reference,
            hold_reason=item.hold_reason,
            shown=Shown(
                code_age=item.code_age.ToTimedelta() if item.HasField("code_age") else None,
                device=item.device,
            ),
        )

    def _release(
        self, name: str, payers: dict[UUID, WalletKey]
    ) -> offline_commands.ReleaseReservation:
        reservation_id = names.last_id(name)
        return offline_commands.ReleaseReservation(
            reservation_id, self._ledger.new_id(), payers[reservation_id]
        )


@functools.lru_cache(maxsize=64)
def _till(vendor: str, terminal: str, site: str) -> tuple[UUID, UUID, UUID | None]:
    """The ids in the names. Of few terminals at a time: a call brings what they took one after the other."""
    return (
        names.last_id(vendor),
        names.last_id(terminal),
        names.last_id(site) if site else None,
    )


def _result(item: pb.OfflinePayment, answer: Outcome | Exception) -> pb.OfflineResult:
    if isinstance(answer, Exception):
        refusal = errors.refusal_for(answer)
        if refusal is None:
            log.error("item is stuck", extra={"payment": item.payment}, exc_info=answer)
            refusal = access_refusals.internal(telemetry.trace_id())
        return pb.OfflineResult(refusal=refusal_message(refusal))
    assert isinstance(answer, SettledOffline)
    return pb.OfflineResult(
        payment=pb.PaymentStanding(
            name=item.payment,
            state=int(answer.payment.state),  # type: ignore[arg-type]
            risk=wire.risk_message(answer.payment.risk),
        ),
        returned=wire.money(answer.returned, item.amount.currency_code),
    )


def _released(name: str, answer: Outcome | Exception) -> pb.ReleasedReservation:
    """None is the answer for one that there is not."""
    if isinstance(answer, Exception):
        raise answer
    if answer is None:
        return pb.ReleasedReservation(name=name, state=pb.ReleasedReservation.STATE_NOT_FOUND)
    assert isinstance(answer, Reservation)
    payment = answer.payment_id
    return pb.ReleasedReservation(
        name=name,
        state=_RELEASED[answer.state],
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
        occur_time=times.timestamp(command.spend_time),
        offline=True,
        code_age=item.code_age if item.HasField("code_age") else None,
        device=item.device,
    )
