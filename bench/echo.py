"""The reference server: the same edge as the payment service, and nothing behind it.

`python -m bench.echo` takes the payment service's place in a stack. What a call costs here is what the gateway, TLS,
identity, validation and gRPC cost; what a payment costs beyond it is ours.
"""

from __future__ import annotations

from typing import Any

import grpc
import uvloop

from services import telemetry
from services.environment import Environment
from services.payment.handlers.payments import PaymentService
from services.payment.server import SERVICE
from services.payment.settings import Settings
from services.rpc.lifetime import until_terminated
from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc

_ANSWER = payment_service_pb2.CreatePaymentResponse(
    payment=payment_pb2.Payment(state=payment_pb2.Payment.STATE_SUCCESS)
)


class _Echo(PaymentService):
    def __init__(self) -> None:
        """Without a ledger: only CreatePayment is called."""

    async def CreatePayment(  # noqa: N802 - as the contract names it
        self,
        request: payment_service_pb2.CreatePaymentRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> payment_service_pb2.CreatePaymentResponse:
        return _ANSWER


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM."""
    server = Server(
        SERVICE,
        settings.listen,
        settings.tls,
        [
            Registration(
                payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
                payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
                _Echo(),
            ),
        ],
        Revocations(),
    )
    await server.start()
    try:
        await until_terminated()
    finally:
        await server.stop(notice_seconds=0, grace_seconds=1)


def main() -> None:
    """Run it from the payment service's settings."""
    settings = Settings.read(Environment())
    telemetry.configure(SERVICE, level=settings.log_level)
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
