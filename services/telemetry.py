"""OpenTelemetry traces and metrics, and JSON logs that carry trace ids."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
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
    parts = traceparent.split("-")
    if len(parts) != 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None
    try:
        return SpanContext(
            int(parts[1], 16),
            int(parts[2], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(parts[3], 16)),
        )
    except ValueError:
        return None


def trace_id() -> str:
    """The trace of the RPC being handled, 32 hex digits; empty when there is none."""
    span = trace.get_current_span().get_span_context()
    current = span if span.is_valid else _trace.get()
    return f"{current.trace_id:032x}" if current is not None and current.is_valid else ""


def traceparent() -> str | None:
    """The header for calls made on behalf of the RPC being handled."""
    span = trace.get_current_span().get_span_context()
    current = span if span.is_valid else _trace.get()
    if current is None or not current.is_valid:
        return None
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def server_span(parent: SpanContext, method: str) -> trace.Span:
    """Start the span of a sampled RPC; the caller makes it current and ends it."""
    service, _, name = method.lstrip("/").partition("/")
    return trace.get_tracer("tallystick.rpc").start_span(
        f"{service}/{name}",
        context=trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context()),
        kind=SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )


def links(parents: Iterable[SpanContext]) -> Sequence[trace.Link]:
    """Links from work done for many RPCs at once to the spans of those that are sampled."""
    return [trace.Link(parent) for parent in parents if parent.trace_flags.sampled]
