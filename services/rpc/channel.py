"""Channels to other services, over mutual TLS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc.aio import (
    ClientCallDetails,
    Metadata,
    UnaryUnaryCall,
    UnaryUnaryClientInterceptor,
)

from services import telemetry
from services.environment import Tls


class _TraceForward(UnaryUnaryClientInterceptor):
    """Sends the current trace along."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Awaitable[UnaryUnaryCall[Any, Any]]],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> UnaryUnaryCall[Any, Any]:
        parent = telemetry.traceparent()
        if parent is not None:
            metadata = client_call_details.metadata or Metadata()
            metadata.add("traceparent", parent)
            client_call_details = client_call_details._replace(metadata=metadata)  # type: ignore[attr-defined]
        return await continuation(client_call_details, request)


def connect(address: str, service: str, tls: Tls) -> grpc.aio.Channel:
    """A channel to `service`, whose certificate must carry its name. The caller closes it."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca_file.read_bytes(),
        private_key=tls.key_file.read_bytes(),
        certificate_chain=tls.certificate_file.read_bytes(),
    )
    return grpc.aio.secure_channel(
        address,
        credentials,
        options=[
            ("grpc.ssl_target_name_override", f"{service}.tallystick.internal"),
            ("grpc.max_receive_message_length", 16 * 1024 * 1024),
            # A restarted peer must be found again within its health check's interval, not after gRPC's 20 s default.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ],
        interceptors=[_TraceForward()],
    )
