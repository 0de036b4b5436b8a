"""The services this one asks, each with its deadline: payment for money, user for terminals and vendors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import grpc
from uuid_utils import UUID

from services import names
from services.money import Money
from services.offline.domain import refusals
from services.offline.domain.terminal import Terminal
from services.offline.events import terminal as read_terminal
from services.refusal import Refusal
from services.rpc import errors
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import settlement_service_pb2 as settlement
from tallystick.payment.v1 import settlement_service_pb2_grpc
from tallystick.user.v1 import (
    party_service_pb2,
    party_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_pb2,
)

# Payment answers after its group's commit, well within a second.
_RESERVE_SECONDS = 2.0
# Five hundred items are two groups, behind others.
_SETTLE_SECONDS = 10.0
_USER_SECONDS = 2.0


class Payment:
    """The ledger, as far as codes go."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = settlement_service_pb2_grpc.SettlementServiceStub(channel)

    async def reserve(
        self, issue_id: UUID, owner_id: UUID, values: Sequence[tuple[UUID, Money]]
    ) -> None:
        """Set money aside behind codes, by a request that is always the same for the issue.

        Raises:
            Refusal: wallet_not_active, insufficient_funds; nothing was set aside.
            AioRpcError: no answer that tells.
        """
        currency_code = values[0][1].currency_code
        wallet = names.wallet_name(owner_id, currency_code)
        request = settlement.ReserveFundsRequest(
            request_id=str(issue_id),
            wallet=wallet,
            reservations=[
                settlement.NewReservation(
                    name=names.reservation_name(code_id), minor_units=value.minor_units
                )
                for code_id, value in values
            ],
        )
        try:
            await self._stub.ReserveFunds(request, timeout=_RESERVE_SECONDS)
        except grpc.aio.AioRpcError as error:
            asked = sum(value.minor_units for _, value in values)
            refusal = _refusal(error, wallet, Money(asked, currency_code))
            if refusal is None:
                raise
            raise refusal from error

    async def settle(
        self, items: Sequence[settlement.OfflinePayment]
    ) -> Sequence[settlement.OfflineResult]:
        """Turn reservations into payments; one answer for each, in order.

        Raises:
            AioRpcError: no answer. Asking again is harmless.
        """
        request = settlement.SettleOfflineRequest(items=items)
        answer = await self._stub.SettleOffline(request, timeout=_SETTLE_SECONDS)
        assert len(answer.results) == len(items)
        return answer.results

    async def release(
        self, code_ids: Collection[UUID]
    ) -> dict[UUID, settlement.ReleasedReservation.State.ValueType]:
        """Give the money behind codes back; what each reservation is then.

        Raises:
            AioRpcError: no answer. Asking again is harmless.
        """
        request = settlement.ReleaseReservationsRequest(
            names=[names.reservation_name(code_id) for code_id in code_ids]
        )
        answer = await self._stub.ReleaseReservations(request, timeout=_SETTLE_SECONDS)
        return {names.last_id(result.name): result.state for result in answer.results}


def _refusal(error: grpc.aio.AioRpcError, wallet: str, asked: Money) -> Refusal | None:
    info = errors.info(error)
    if info.domain != "payment.tallystick":
        return None
    if info.reason in {"WALLET_NOT_FOUND", "WALLET_NOT_ACTIVE"}:
        return refusals.wallet_not_active(wallet)
    if info.reason == "INSUFFICIENT_FUNDS":
        return refusals.insufficient_funds(asked, int(info.metadata["availableMinorUnits"]))
    return None


class Users:
    """Terminals and vendors whose events have not arrived yet."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._terminals = terminal_service_pb2_grpc.TerminalServiceStub(channel)
        self._parties = party_service_pb2_grpc.PartyServiceStub(channel)

    async def terminal(self, name: str) -> Terminal | None:
        """A terminal by its name; None when there is none.

        Raises:
            AioRpcError: no answer.
        """
        request = terminal_service_pb2.BatchGetTerminalsRequest(names=[name])
        answer = await self._terminals.BatchGetTerminals(request, timeout=_USER_SECONDS)
        return next((read_terminal(found) for found in answer.terminals), None)

    async def vendor(self, vendor_id: UUID) -> user_pb2.User | None:
        """A vendor by its id; None when there is none.

        Raises:
            AioRpcError: no answer.
        """
        request = party_service_pb2.BatchGetPartiesRequest(names=[names.user_name(vendor_id)])
        answer = await self._parties.BatchGetParties(request, timeout=_USER_SECONDS)
        users = (party.user for party in answer.parties)
        return next((user for user in users if user.role == access_pb2.ROLE_VENDOR), None)
