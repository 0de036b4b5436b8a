"""The services that bring decisions into effect: user and payment."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc

from services import names
from services.admin.domain.case import Case, Decision, Outcome, Owner, outcome_of_refusal
from services.rpc import errors
from tallystick.payment.v1 import settlement_service_pb2, settlement_service_pb2_grpc
from tallystick.user.v1 import user_service_pb2, user_service_pb2_grpc

log = logging.getLogger(__name__)

# Payment answers after its group's commit, well within a second.
_DEADLINE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an owner said. `cause` is its reason where it refused; else empty."""

    outcome: Outcome
    cause: str = ""


class Owners:
    """Asks the service that owns what a case is about to bring its decision into effect.

    Asking again is harmless: payment knows the request by its id, a user's state moves once.
    """

    def __init__(self, user: grpc.aio.Channel, payment: grpc.aio.Channel) -> None:
        self._users = user_service_pb2_grpc.UserServiceStub(user)
        self._settlements = settlement_service_pb2_grpc.SettlementServiceStub(payment)

    async def ask(self, case: Case) -> Answer:
        """Ask once, within the deadline. `case` is DECIDING."""
        try:
            if case.owner is Owner.PAYMENT:
                await self._resolve_hold(case)
            else:
                await self._decide_registration(case)
        except grpc.aio.AioRpcError as error:
            return _answer(case, error)
        return Answer(Outcome.IN_EFFECT)

    async def _resolve_hold(self, case: Case) -> None:
        pb = settlement_service_pb2.ResolveHoldRequest
        approve = case.decision is Decision.APPROVE
        request = pb(
            request_id=str(case.request_id),
            payment=names.payment_name(case.subject_id),
            decision=pb.DECISION_APPROVE if approve else pb.DECISION_REJECT,
            actor=case.decider,
            reason=case.reason,
        )
        await self._settlements.ResolveHold(request, timeout=_DEADLINE_SECONDS)

    async def _decide_registration(self, case: Case) -> None:
        name = names.user_name(case.subject_id)
        if case.decision is Decision.APPROVE:
            approve = user_service_pb2.ApproveUserRequest(
                name=name, reason=case.reason, actor=case.decider
            )
            await self._users.ApproveUser(approve, timeout=_DEADLINE_SECONDS)
        else:
            reject = user_service_pb2.RejectUserRequest(
                name=name, reason=case.reason, actor=case.decider
            )
            await self._users.RejectUser(reject, timeout=_DEADLINE_SECONDS)


def _answer(case: Case, error: grpc.aio.AioRpcError) -> Answer:
    assert case.owner is not None
    info = errors.info(error)
    # A refusal of the platform (not allowed, overloaded, a defect) says nothing about the decision.
    ours = info.domain == f"{case.owner.value}.tallystick"
    reason = info.reason if ours else ""
    outcome = outcome_of_refusal(case, reason, info.metadata.get("state", ""))
    log.warning(
        "decision not taken up",
        extra={
            "case": str(case.case_id),
            "dependency": case.owner.value,
            "code": error.code().name,
            "reason": info.reason,
            "outcome": outcome.value,
        },
    )
    return Answer(outcome, reason)
