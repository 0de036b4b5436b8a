"""Stand-ins for what the review desk asks of the payment and user services. They keep to the contracts."""

from __future__ import annotations

import grpc

from services.money import Money
from services.payment.domain import refusals as payment_refusals
from services.user.domain import refusals as user_refusals
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import settlement_service_pb2 as settlement
from tallystick.user.v1 import user_pb2, user_service_pb2


class _Owner:
    """What both can be told to do wrong.

    Attributes:
        answers_to_lose: So many calls do their work and then fail to say so.
        asked: Every request that arrived.
    """

    def __init__(self):
        self.answers_to_lose = 0
        self.asked = []

    async def _answered(self, context, answer):
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer


class Holds(_Owner):
    """`payment.v1.SettlementService`: ends the review of flagged payments, exactly once by `request_id`.

    Attributes:
        states: Of payments, by name.
        moves: (payment, state it moved to): one for every time money moved.
        vendor_is_full: Nothing can be paid to vendors.
    """

    PATH = "/tallystick.payment.v1.SettlementService/ResolveHold"

    def __init__(self):
        super().__init__()
        self.states = {}
        self.moves = []
        self.vendor_is_full = False
        self._answered_before = {}

    async def resolve(self, request, context):
        self.asked.append(request)
        return await self._answered(context, self._resolve(request))

    def _resolve(self, request):
        if request.payment not in self.states:
            raise payment_refusals.payment_not_found(request.payment)
        if request.request_id in self._answered_before:
            body, answer = self._answered_before[request.request_id]
            if body != request:
                raise payment_refusals.request_id_reused(request.request_id)
            return answer
        state = self.states[request.payment]
        if state != payment_pb2.Payment.STATE_FLAGGED:
            raise payment_refusals.payment_not_flagged(payment_pb2.Payment.State.Name(state))
        approve = request.decision == settlement.ResolveHoldRequest.DECISION_APPROVE
        if approve and self.vendor_is_full:
            raise payment_refusals.balance_over_limit(Money(10**12, "INR"))
        to = payment_pb2.Payment.STATE_SUCCESS if approve else payment_pb2.Payment.STATE_FAILED
        self.states[request.payment] = to
        self.moves.append((request.payment, to))
        answer = settlement.ResolveHoldResponse(
            payment=payment_pb2.Payment(name=request.payment, state=to)
        )
        self._answered_before[request.request_id] = (request, answer)
        return answer


class Accounts(_Owner):
    """`user.v1.UserService`: approves and rejects registrations.

    Attributes:
        states: Of accounts, by name.
    """

    APPROVE_PATH = "/tallystick.user.v1.UserService/ApproveUser"
    REJECT_PATH = "/tallystick.user.v1.UserService/RejectUser"

    def __init__(self):
        super().__init__()
        self.states = {}

    async def approve(self, request, context):
        self.asked.append(request)
        state = self._state(request.name)
        if state != user_pb2.User.STATE_ACTIVE:
            self._move(request.name, user_pb2.User.STATE_ACTIVE)
        user = user_pb2.User(name=request.name, state=user_pb2.User.STATE_ACTIVE)
        return await self._answered(context, user_service_pb2.ApproveUserResponse(user=user))

    async def reject(self, request, context):
        self.asked.append(request)
        self._state(request.name)
        self._move(request.name, user_pb2.User.STATE_REJECTED)
        user = user_pb2.User(name=request.name, state=user_pb2.User.STATE_REJECTED)
        return await self._answered(context, user_service_pb2.RejectUserResponse(user=user))

    def _state(self, name):
        if name not in self.states:
            raise user_refusals.user_not_found(name)
        return self.states[name]

    def _move(self, name, to):
        state = self.states[name]
        if state != user_pb2.User.STATE_PENDING_APPROVAL:
            said = user_pb2.User.State.Name(state).removeprefix("STATE_")
            raise user_refusals.user_state_wrong(said, "PENDING_APPROVAL")
        self.states[name] = to
