"""OpenTelemetry traces and metrics, and JSON logs that carry trace ids."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

# What a log line of ours may carry beside the message; everything else in a LogRecord is noise.
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
}

# W3C Trace Context, level 1, section 3.2: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$")

# The trace of the RPC being handled, sampled or not: (trace id, span id, sampled).
_trace: ContextVar[SpanContext | None] = ContextVar("trace", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, message, trace_id and what `extra` holds."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id():
            line["trace_id"] = trace_id()
        line.update(
            {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        )
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(service: str, *, level: str = "INFO") -> None:
    """Send logs to standard error as JSON, and traces and metrics to OTEL_EXPORTER_OTLP_ENDPOINT where it is set.

    Sampling is decided once, at the gateway: a service records a span only inside a sampled trace.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    # Importing the exporters costs 300 ms and 20 MB, so only where they are used.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
        OTLPMetricExporter,
    )
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    resource = Resource.create({SERVICE_NAME: service})
    provider = TracerProvider(resource=resource, sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))


def shut_down() -> None:
    """Flush what is not exported yet."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        shutdown = getattr(provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def enter_trace(traceparent: str | None) -> SpanContext | None:
    """Take up the caller's trace (W3C `traceparent`, version 00) for the RPC being handled."""
    parent = _parse(traceparent) if traceparent else None
    _trace.set(parent)
    return parent


def _parse(traceparent: str) -> SpanContext | None:
    found = _TRACEPARENT.match(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def current() -> SpanContext | None:
    """The trace of the RPC being handled; None when there is none."""
    span = trace.get_current_span().get_span_context()
    return span if span.is_valid else _trace.get()


def trace_id() -> str:
    """The current trace, 32 hex digits; empty when there is none."""
    found = current()
    return "" if found is None else f"{found.trace_id:032x}"


def traceparent() -> str | None:
    """The header for calls made on behalf of the RPC being handled."""
    found = current()
    if found is None:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def server_span(parent: SpanContext, method: str) -> trace.Span:
    """Start the span of a sampled RPC; the caller makes it current and ends it."""
    service, _, name = method.lstrip("/").partition("/")
    return trace.get_tracer("tallystick.rpc").start_span(
        f"{service}/{name}",
        context=trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context()),
        kind=SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )


def shared_span(
    name: str, parents: Iterable[SpanContext | None]
) -> contextlib.AbstractContextManager[object]:
    """The span of work done for many RPCs at once: a child of the first sampled one, linked to the others.

    Nothing at all when none is sampled.
    """
    sampled = [parent for parent in parents if parent is not None and parent.trace_flags.sampled]
    if not sampled:
        return contextlib.nullcontext()
    return trace.get_tracer("tallystick.shared").start_as_current_span(
        name,
        context=trace.set_span_in_context(NonRecordingSpan(sampled[0]), otel_context.Context()),
        links=[trace.Link(parent) for parent in sampled[1:]],
    )
