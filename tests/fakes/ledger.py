"""A man in the middle: the real payment service, with a line to it that fails when a test says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import grpc

from services.rpc import channel
from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server
from tallystick.payment.v1 import settlement_service_pb2 as pb
from tallystick.payment.v1 import settlement_service_pb2_grpc


class Line(settlement_service_pb2_grpc.SettlementServiceServicer):
    """Hands every call on to the real service.

    Attributes:
        cut: Nothing gets through.
        lost: So many answers get lost on their way back, by RPC: the work was done.
        refusals: What it says of items instead of asking, by the payment's vendor: (reason, message).
        too_much: Vendors whose items make the whole call fail, as a defect would.
        asked: Every request, by RPC.
        open: Cleared, calls wait before they are handed on.
    """

    def __init__(self, real):
        self._real = real
        self.cut = False
        self.lost = Counter()
        self.refusals = {}
        self.too_much = set()
        self.asked = {"ReserveFunds": [], "SettleOffline": [], "ReleaseReservations": []}
        self.open = asyncio.Event()
        self.open.set()

    async def _call(self, rpc, request, context):
        self.asked[rpc].append(request)
        await self.open.wait()
        if self.cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line is cut")
        try:
            answer = await getattr(self._real, rpc)(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            metadata = tuple(error.trailing_metadata() or ())
            await context.abort(error.code(), error.details() or "", metadata)
        if self.lost[rpc]:
            self.lost[rpc] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer

    async def ReserveFunds(self, request, context):
        return await self._call("ReserveFunds", request, context)

    async def ReleaseReservations(self, request, context):
        return await self._call("ReleaseReservations", request, context)

    async def SettleOffline(self, request, context):
        if any(item.vendor in self.too_much for item in request.items):
            await context.abort(grpc.StatusCode.INTERNAL, "a defect")
        passed = [item for item in request.items if item.vendor not in self.refusals]
        answers = iter(())
        if passed:
            handed = pb.SettleOfflineRequest(items=passed)
            answers = iter((await self._call("SettleOffline", handed, context)).results)
        answer = pb.SettleOfflineResponse()
        for item in request.items:
            if item.vendor in self.refusals:
                reason, message = self.refusals[item.vendor]
                answer.results.add().refusal.MergeFrom(
                    pb.OfflineResult(refusal={"reason": reason, "message": message}).refusal
                )
            else:
                answer.results.append(next(answers))
        return answer


@asynccontextmanager
async def line_to(address, tls_for):
    """(the line, its address) to the payment service at an address."""
    async with channel.connect(address, "payment", tls_for("offline")) as calls:
        line = Line(settlement_service_pb2_grpc.SettlementServiceStub(calls))
        registration = Registration(
            pb.DESCRIPTOR.services_by_name["SettlementService"],
            settlement_service_pb2_grpc.add_SettlementServiceServicer_to_server,
            line,
        )
        server = Server("payment", "127.0.0.1:0", tls_for("payment"), [registration], Revocations())
        port = await server.start()
        try:
            yield line, f"127.0.0.1:{port}"
        finally:
            await server.stop(notice_seconds=0, grace_seconds=0)
