"""PaymentService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from services import names, paging, sql, times
from services.money import Money
from services.payment import store, wire
from services.payment.domain import refusals
from services.payment.domain.book import Policy, Refunded
from services.payment.domain.commands import CreatePayment, Refund
from services.payment.domain.ledger import TRANSFER_MINOR_UNITS_MAX, WalletKey
from services.payment.domain.payment import Payment, State
from services.payment.follow_up import FollowUp
from services.payment.handlers.request import once, scope
from services.payment.owners import Owners
from services.refusal import Refusal
from services.rpc import errors, validation
from services.rpc import refusals as access_refusals
from services.rpc.identity import Caller, caller
from services.streams import Feed
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2_grpc
from tallystick.payment.v1 import payment_service_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

_PAYMENT_FACTS = frozenset(
    {
        "payment_created",
        "payment_processing",
        "payment_succeeded",
        "payment_failed",
        "payment_flagged",
        "payment_refunded",
    }
)


@dataclass(frozen=True)
class Ledger:
    """What the handlers work with.

    Attributes:
        engine: For reads.
        owners: The way of commands to the ledger.
        follow_up: Settles what is not waited for.
        feed: The service's own events.
        policy: What this deployment allows.
        now: The clock.
        new_id: Ids of payments and transfers.
    """

    engine: AsyncEngine
    owners: Owners
    follow_up: FollowUp
    feed: Feed
    policy: Policy
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]


class PaymentService(payment_service_pb2_grpc.PaymentServiceServicer):
    """Payments."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def CreatePayment(
        self, request: pb.CreatePaymentRequest, context: Context
    ) -> pb.CreatePaymentResponse:
        wait = request.wait if request.HasField("wait") else True
        payment = await self._create(caller(), request, wait=wait)
        return pb.CreatePaymentResponse(payment=wire.payment_message(payment))

    async def BatchCreatePayments(
        self, request: pb.BatchCreatePaymentsRequest, context: Context
    ) -> pb.BatchCreatePaymentsResponse:
        who = caller()
        results = await asyncio.gather(
            *(self._create_one_of_batch(who, item) for item in request.requests)
        )
        return pb.BatchCreatePaymentsResponse(results=results)

    async def _create_one_of_batch(
        self, who: Caller, request: pb.CreatePaymentRequest
    ) -> pb.BatchCreatePaymentsResult:
        try:
            if violations := validation.violations(request):
                raise access_refusals.fields_invalid(violations)
            payment = await self._create(who, request, wait=False)
        except Refusal as refusal:
            return pb.BatchCreatePaymentsResult(refusal=refusal_message(refusal))
        return pb.BatchCreatePaymentsResult(payment=wire.payment_message(payment))

    async def _create(
        self, who: Caller, request: pb.CreatePaymentRequest, *, wait: bool
    ) -> Payment:
        ledger = self._ledger
        payer_id, vendor_id = who.user_id, names.last_id(request.vendor)
        if payer_id == vendor_id:
            raise refusals.self_payment()
        amount = Money(request.amount.minor_units, request.amount.currency_code)
        if amount.currency_code not in ledger.policy.currencies:
            raise refusals.currency_unsupported(amount.currency_code, ledger.policy.currencies)
        if amount.minor_units > TRANSFER_MINOR_UNITS_MAX:
            raise refusals.amount_over_limit(amount, TRANSFER_MINOR_UNITS_MAX)
        payment_id = ledger.new_id()
        # Waiting or not is how the answer is wanted, not what is asked.
        request.ClearField("wait")
        command = CreatePayment(
            request=once(who, request.request_id, request),
            payment_id=payment_id,
            transfer_id=ledger.new_id(),
            payer=WalletKey(payer_id, amount.currency_code),
            vendor_id=vendor_id,
            site_id=names.last_id(request.site) if request.site else None,
            amount=amount.minor_units,
            position=wire.position(request.position) if request.HasField("position") else None,
            reference=request.reference,
            wait=wait,
        )
        facts = None
        if wait:
            facts = fraud_service_pb2.PaymentFacts(
                payment=names.payment_name(payment_id),
                payer=who.subject,
                vendor=request.vendor,
                site=request.site,
                amount=request.amount,
                position=request.position if request.HasField("position") else None,
                occur_time=times.timestamp(ledger.now()),
                device=request.device_id,
            )
        payment = await ledger.owners.submit(command, (payer_id, vendor_id), facts)
        assert isinstance(payment, Payment)
        if (
            payment.state is State.PENDING and wait
        ):  # the same request came before, and did not wait
            return await ledger.follow_up.settle(payment)
        if payment.state is State.PENDING and payment.payment_id == payment_id:
            ledger.follow_up.settle_soon(payment)
        return payment

    async def GetPayment(
        self, request: pb.GetPaymentRequest, context: Context
    ) -> pb.GetPaymentResponse:
        who = caller()
        async with sql.reading(self._ledger.engine) as connection:
            if request.WhichOneof("key") == "request_id":
                key = scope(who) + UUID(request.request_id).bytes
                payment_id = await store.find_payment_of_request(connection, key)
                asked = f"of request {request.request_id}"
            else:
                payment_id = names.last_id(request.name)
                asked = request.name
            found = await store.read_payments(connection, [payment_id] if payment_id else [])
        payment = found.get(payment_id) if payment_id else None
        if payment is None or not _may_see(who, payment):
            raise refusals.payment_not_found(asked)
        return pb.GetPaymentResponse(payment=wire.payment_message(payment))

    async def ListPayments(
        self, request: pb.ListPaymentsRequest, context: Context
    ) -> pb.ListPaymentsResponse:
        who = caller()
        key = WalletKey(names.last_id(request.parent), request.currency_code)
        if request.parent != who.subject and not who.is_admin:
            raise refusals.wallet_not_found(names.wallet_name(*key))
        size = paging.page_size(request.page_size)
        query = (request.parent, request.currency_code, request.side)
        before = None
        if request.page_token:
            before = paging.redeem_id(request.page_token, *query)
        async with sql.reading(self._ledger.engine) as connection:
            found = await store.list_payments(
                connection,
                key,
                as_payer=request.side != pb.ListPaymentsRequest.SIDE_VENDOR,
                as_vendor=request.side != pb.ListPaymentsRequest.SIDE_PAYER,
                before=before,
                limit=size + 1,
            )
        page = found[:size]
        token = paging.issue(page[-1].payment_id.bytes, *query) if len(found) > size else ""
        return pb.ListPaymentsResponse(
            payments=[wire.payment_message(payment) for payment in page], next_page_token=token
        )

    async def WatchPayments(
        self, request: pb.WatchPaymentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchPaymentsResponse]:
        who = caller()

        def wanted(event: event_pb2.Event) -> bool:
            return event.WhichOneof("fact") in _PAYMENT_FACTS and (
                who.is_admin or who.subject in event.audience
            )

        async for cursor, event in self._ledger.feed.watch(request.cursor, wanted):
            if event is None:
                yield pb.WatchPaymentsResponse(cursor=cursor)
            else:
                payment = await self._as_left_by(event)
                yield pb.WatchPaymentsResponse(
                    payment=payment, event_id=event.event_id, cursor=cursor
                )

    async def _as_left_by(self, event: event_pb2.Event) -> payment_pb2.Payment:
        fact = event.WhichOneof("fact")
        if fact == "payment_created":
            return event.payment_created.payment
        if fact == "payment_flagged":
            return event.payment_flagged.payment
        payment_id = names.last_id(event.subject)
        async with sql.reading(self._ledger.engine) as connection:
            payment = (await store.read_payments(connection, [payment_id]))[payment_id]
        message = wire.payment_message(payment)
        # Who resumes hears of changes that others have followed since.
        message.update_time.CopyFrom(event.occur_time)
        if fact == "payment_refunded":
            message.refunded.CopyFrom(event.payment_refunded.refunded)
        else:
            message.refunded.minor_units = 0
        if fact == "payment_processing":
            message.state = payment_pb2.Payment.STATE_PROCESSING
            message.ClearField("failure_reason")
        return message

    async def RefundPayment(
        self, request: pb.RefundPaymentRequest, context: Context
    ) -> pb.RefundPaymentResponse:
        who = caller()
        payment_id = names.last_id(request.name)
        async with sql.reading(self._ledger.engine) as connection:
            payment = (await store.read_payments(connection, [payment_id])).get(payment_id)
        if payment is None or not (who.is_admin or who.user_id == payment.vendor_id):
            raise refusals.payment_not_found(request.name)
        command = Refund(
            request=once(who, request.request_id, request),
            payment_id=payment_id,
            transfer_id=self._ledger.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            amount=Money(request.amount.minor_units, request.amount.currency_code),
            actor=who.subject,
            reason=request.reason,
        )
        outcome = await self._ledger.owners.submit(command, ())
        assert isinstance(outcome, Refunded)
        return pb.RefundPaymentResponse(
            payment=wire.payment_message(outcome.payment),
            transfer=wire.transfer_message(outcome.transfer),
        )


def _may_see(who: Caller, payment: Payment) -> bool:
    if who.service or who.is_admin:
        return True
    return who.user_id in (payment.payer.owner_id, payment.vendor_id)


def refusal_message(refusal: Refusal) -> pb.PaymentRefusal:
    """A refusal inside an answer."""
    message = pb.PaymentRefusal(
        code=errors.CODES[refusal.kind],
        reason=refusal.reason,
        message=refusal.message,
        metadata=refusal.metadata,
    )
    if refusal.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(refusal.retry_after)
        message.retry_delay.CopyFrom(delay)
    return message
