"""The gRPC server every service runs: one edge that identifies, admits, validates, traces and translates errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import trace

from services import telemetry
from services.environment import Tls
from services.rpc import errors, identity, refusals, validation
from services.rpc.contract import Rule, rules
from services.rpc.revocations import Revocations

log = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Health checks and reflection serve any peer with a certificate of ours, and carry no access option.
_UNRULED = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class Registration:
    """A servicer and what is needed to serve it: `Registration(DESCRIPTOR.services_by_name[...], add_…, servicer)`."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object


class _Edge(grpc.aio.ServerInterceptor):
    """Wraps every handler once; a call then pays for its own checks only."""

    def __init__(self, service: str, found: list[Rule], revocations: Revocations) -> None:
        self._service = service
        self._rules = {rule.path: rule for rule in found}
        self._revocations = revocations
        self._wrapped: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_UNRULED):
            return handler
        wrapped = self._wrap(handler, self._rules[method])
        self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, handler: _Handler, rule: Rule) -> _Handler:
        # Served as if requests were streams, which on the wire they are: a call that ends before its message, or in the
        # middle of it, never reaches a handler of one message, and gRPC then leaves its caller without an answer.
        if rule.streams:
            stream: Any = handler.unary_stream

            async def serve_stream(_: object, context: Context) -> AsyncIterator[Message]:
                span = None
                try:
                    request = _parse(handler, await context.read())
                    span = self._admit(request, context, rule)
                    async with contextlib.aclosing(stream(request, context)) as answers:
                        async for answer in answers:
                            # A stream may outlive its token: a token revoked meanwhile gets no more.
                            self._revocations.check(identity.caller())
                            yield answer
                except Exception as error:  # noqa: BLE001 - the edge: everything leaves as a status
                    await self._abort(context, error, rule)
                finally:
                    if span is not None:
                        span.end()

            return grpc.stream_stream_rpc_method_handler(
                serve_stream,
                response_serializer=handler.response_serializer,
            )

        unary: Any = handler.unary_unary
        timeout = rule.timeout.total_seconds()

        async def serve(_: object, context: Context) -> Message | None:
            span = None
            try:
                request = _parse(handler, await context.read())
                span = self._admit(request, context, rule)
                if context.time_remaining() is not None:  # gRPC ends the call itself
                    return await unary(request, context)  # type: ignore[no-any-return]
                async with asyncio.timeout(timeout):
                    return await unary(request, context)  # type: ignore[no-any-return]
            except Exception as error:  # noqa: BLE001 - the edge: everything leaves as a status
                await self._abort(context, error, rule)
                return None
            finally:
                if span is not None:
                    span.end()

        return grpc.stream_unary_rpc_method_handler(
            serve,
            response_serializer=handler.response_serializer,
        )

    def _admit(self, request: Message, context: Context, rule: Rule) -> trace.Span | None:
        """Trace, identify, check access, validate, in this order. A span only when the trace is sampled."""
        metadata = dict(context.invocation_metadata() or ())
        span = None
        header = metadata.get("traceparent")
        parent = telemetry.enter_trace(header if isinstance(header, str) else None)
        if parent is not None and parent.trace_flags.sampled:
            span = telemetry.server_span(parent, rule.path)
            otel_context.attach(trace.set_span_in_context(span))
        caller = identity.establish(context)
        identity.set_caller(caller)
        if caller.service:
            if caller.service not in rule.callers:
                raise refusals.caller_not_allowed(rule.path)
        elif not rule.public:
            if not caller.subject:
                raise refusals.unauthenticated()
            if not (caller.roles & rule.roles):
                raise refusals.caller_not_allowed(rule.path)
        self._revocations.check(caller)
        if violations := validation.violations(request):
            raise refusals.fields_invalid(violations)
        return span

    async def _abort(self, context: Context, error: Exception, rule: Rule) -> None:
        if isinstance(error, TimeoutError):
            log.warning("call ran out of time", extra={"method": rule.path})
        refusal = errors.refusal_for(error)
        if refusal is None:
            if isinstance(error, grpc.aio.AbortError):
                raise error
            log.error("defect", extra={"method": rule.path}, exc_info=error)
            refusal = refusals.internal(telemetry.trace_id())
        elif refusal is not error:
            log.warning(
                "dependency failed",
                extra={"method": rule.path, "cause": repr(error)[:500]},
            )
        await context.abort_with_status(rpc_status.to_status(errors.status(refusal, self._service)))


def _parse(handler: _Handler, raw: object) -> Message:
    """Read a request here and not in gRPC, which would answer UNKNOWN with the name of a Python class.

    Raises:
        Refusal: fields_invalid.
    """
    assert handler.request_deserializer is not None
    if not isinstance(raw, bytes):  # the end of the call
        raise refusals.fields_invalid([("", "is missing or cut off")])
    try:
        return handler.request_deserializer(raw)  # type: ignore[no-any-return]
    except DecodeError as error:
        raise refusals.fields_invalid([("", "is not the message this method takes")]) from error


class Server:
    """A service's gRPC server. Serves from `start` until `stop`.

    Args:
        service: Its name: `payment`, `user`, …
        listen: `host:port`; port 0 takes a free one, which `start` returns.
        tls: Its certificate; every peer must show one of the same authority.
        registrations: What it serves.
        revocations: Tokens to refuse.
    """

    def __init__(
        self,
        service: str,
        listen: str,
        tls: Tls,
        registrations: list[Registration],
        revocations: Revocations,
    ) -> None:
        found = rules(registration.descriptor for registration in registrations)
        self._service = service
        self._listen = listen
        self._server = grpc.aio.server(
            interceptors=[_Edge(service, found, revocations)],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),
                # Beyond 1,000 calls that Python has not taken up yet gRPC starts to cancel some, which says nothing to
                # their callers. The gateway's circuit breaker refuses earlier, and says what to do.
                ("grpc.server.max_pending_requests", 10_000),
                ("grpc.server.max_pending_requests_hard_limit", 20_000),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [registration.descriptor.full_name for registration in registrations]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        for registration in registrations:
            registration.add(registration.servicer, self._server)
        self._names = names
        credentials = grpc.ssl_server_credentials(
            [(tls.key_file.read_bytes(), tls.certificate_file.read_bytes())],
            root_certificates=tls.ca_file.read_bytes(),
            require_client_auth=True,
        )
        self._port = self._server.add_secure_port(listen, credentials)

    async def start(self) -> int:
        """Serve; answers the port."""
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", extra={"port": self._port})
        return self._port

    async def stop(self, *, notice_seconds: float, grace_seconds: float) -> None:
        """Say NOT_SERVING, give the gateway time to notice, then end calls within the grace."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(notice_seconds)
        await self._server.stop(grace_seconds)
        log.info("stopped")
