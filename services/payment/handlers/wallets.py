"""WalletService."""

from __future__ import annotations

from typing import Any

import grpc

from services import names, paging, sql
from services.money import Money
from services.payment import store, wire
from services.payment.domain import refusals
from services.payment.domain.book import Moved
from services.payment.domain.ledger import (
    SYSTEM_NAMES,
    TRANSFER_MINOR_UNITS_MAX,
    Bucket,
    Purpose,
    WalletKey,
)
from services.payment.domain.wallet_commands import MoveFunds
from services.payment.handlers.payments import Ledger
from services.payment.handlers.request import once
from services.rpc.identity import Caller, caller
from tallystick.payment.v1 import wallet_service_pb2 as pb
from tallystick.payment.v1 import wallet_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class WalletService(wallet_service_pb2_grpc.WalletServiceServicer):
    """Wallets and the money that moves in, within and out of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def GetWallet(
        self, request: pb.GetWalletRequest, context: Context
    ) -> pb.GetWalletResponse:
        key = _visible(caller(), request.name)
        async with sql.reading(self._ledger.engine) as connection:
            wallet = await store.read_wallet(connection, key)
        if wallet is None:
            raise refusals.wallet_not_found(request.name)
        return pb.GetWalletResponse(wallet=wire.wallet_message(wallet))

    async def TopUp(self, request: pb.TopUpRequest, context: Context) -> pb.TopUpResponse:
        who = caller()
        key = wire.wallet_key(request.wallet)
        amount = _money(request)
        if amount.currency_code != key.currency_code:
            raise refusals.currency_mismatch(amount.currency_code, key.currency_code)
        if amount.minor_units > TRANSFER_MINOR_UNITS_MAX:
            raise refusals.amount_over_limit(amount, TRANSFER_MINOR_UNITS_MAX)
        moved = await self._move(
            MoveFunds(
                request=once(who, request.request_id, request),
                transfer_id=self._ledger.new_id(),
                wallet=key,
                purpose=Purpose.TOP_UP,
                source=None,
                target=Bucket.ONLINE,
                amount=amount,
                reference=request.reference,
                actor=who.subject,
            )
        )
        return pb.TopUpResponse(
            wallet=wire.wallet_message(moved.wallet), transfer=wire.transfer_message(moved.transfer)
        )

    async def MoveBalance(
        self, request: pb.MoveBalanceRequest, context: Context
    ) -> pb.MoveBalanceResponse:
        who = caller()
        key = _own(who, request.wallet)
        to_offline = request.direction == pb.MoveBalanceRequest.DIRECTION_TO_OFFLINE
        moved = await self._move(
            MoveFunds(
                request=once(who, request.request_id, request),
                transfer_id=self._ledger.new_id(),
                wallet=key,
                purpose=Purpose.MOVE_BALANCE,
                source=Bucket.ONLINE if to_offline else Bucket.OFFLINE,
                target=Bucket.OFFLINE if to_offline else Bucket.ONLINE,
                amount=_money(request),
                reference="",
                actor=who.subject,
            )
        )
        return pb.MoveBalanceResponse(
            wallet=wire.wallet_message(moved.wallet), transfer=wire.transfer_message(moved.transfer)
        )

    async def Payout(self, request: pb.PayoutRequest, context: Context) -> pb.PayoutResponse:
        who = caller()
        key = _own(who, request.wallet)
        moved = await self._move(
            MoveFunds(
                request=once(who, request.request_id, request),
                transfer_id=self._ledger.new_id(),
                wallet=key,
                purpose=Purpose.PAYOUT,
                source=Bucket.ONLINE,
                target=None,
                amount=_money(request),
                reference=request.reference,
                actor=who.subject,
            )
        )
        return pb.PayoutResponse(
            wallet=wire.wallet_message(moved.wallet), transfer=wire.transfer_message(moved.transfer)
        )

    async def _move(self, command: MoveFunds) -> Moved:
        moved = await self._ledger.owners.submit(command, (command.wallet.owner_id,))
        assert isinstance(moved, Moved)
        return moved

    async def ListTransfers(
        self, request: pb.ListTransfersRequest, context: Context
    ) -> pb.ListTransfersResponse:
        key = _visible(caller(), request.parent)
        size = paging.page_size(request.page_size)
        before = None
        if request.page_token:
            before = paging.redeem_id(request.page_token, request.parent)
        async with sql.reading(self._ledger.engine) as connection:
            if await store.read_wallet(connection, key) is None:
                raise refusals.wallet_not_found(request.parent)
            found = await store.list_transfers(connection, key, before=before, limit=size + 1)
        page = found[:size]
        more = len(found) > size
        token = paging.issue(page[-1].transfer_id.bytes, request.parent) if more else ""
        return pb.ListTransfersResponse(
            transfers=[wire.transfer_message(transfer) for transfer in page],
            next_page_token=token,
        )


def _money(request: pb.TopUpRequest | pb.MoveBalanceRequest | pb.PayoutRequest) -> Money:
    return Money(request.amount.minor_units, request.amount.currency_code)


def _own(who: Caller, name: str) -> WalletKey:
    key = wire.wallet_key(name)
    if names.user_name(key.owner_id) != who.subject:
        raise refusals.wallet_not_found(name)
    return key


def _visible(who: Caller, name: str) -> WalletKey:
    if not who.is_admin:
        return _own(who, name)
    key = wire.wallet_key(name)
    if key.owner_id in SYSTEM_NAMES:
        raise refusals.wallet_not_found(name)
    return key
