"""Refusals and failures as `google.rpc.Status` with exactly one ErrorInfo (AIP-193)."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc.aio import AioRpcError
from grpc_status import rpc_status
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.refusal import Kind, Refusal
from services.rpc import refusals

CODES: dict[Kind, int] = {
    Kind.INVALID: code_pb2.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    Kind.FORBIDDEN: code_pb2.PERMISSION_DENIED,
    Kind.NOT_FOUND: code_pb2.NOT_FOUND,
    Kind.ALREADY_EXISTS: code_pb2.ALREADY_EXISTS,
    Kind.PRECONDITION: code_pb2.FAILED_PRECONDITION,
    Kind.EXHAUSTED: code_pb2.RESOURCE_EXHAUSTED,
    Kind.OUT_OF_RANGE: code_pb2.OUT_OF_RANGE,
    Kind.UNAVAILABLE: code_pb2.UNAVAILABLE,
    Kind.DEADLINE: code_pb2.DEADLINE_EXCEEDED,
    Kind.UNIMPLEMENTED: code_pb2.UNIMPLEMENTED,
    Kind.INTERNAL: code_pb2.INTERNAL,
}


def status(refusal: Refusal, service: str) -> status_pb2.Status:
    """The wire form of a refusal by `service`."""
    domain = (
        refusals.DOMAIN if isinstance(refusal, refusals.AccessRefusal) else f"{service}.tallystick"
    )
    details: list[AnyMessage] = []
    _add(
        details,
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain=domain, metadata=refusal.metadata
        ),
    )
    if refusal.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(refusal.retry_after)
        _add(details, retry)
    if isinstance(refusal, refusals.FieldsInvalid):
        bad = error_details_pb2.BadRequest()
        for field, description in refusal.violations:
            bad.field_violations.add(field=field, description=description)
        _add(details, bad)
    return status_pb2.Status(code=CODES[refusal.kind], message=refusal.message, details=details)


def _add(details: list[AnyMessage], detail: object) -> None:
    packed = AnyMessage()
    # The same refusal is the same bytes in every process: the gateway compares what it is built from.
    packed.Pack(detail, deterministic=True)  # type: ignore[arg-type]
    details.append(packed)


def info(error: AioRpcError) -> error_details_pb2.ErrorInfo:
    """What a call of ours to another service was refused for; empty when it never reached the service."""
    found = error_details_pb2.ErrorInfo()
    # Such a call has no status of the service's making.
    said = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in () if said is None else said.details:
        if detail.Unpack(found):
            break
    return found


def refusal_for(error: Exception) -> Refusal | None:
    """The refusal behind a failure of something we depend on; None when it is a defect of ours."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, AioRpcError):
        return refusals.dependency_unavailable("service")
    if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
        return refusals.dependency_unavailable("redis")
    # SQLAlchemy takes 20 MB and half a second, which a process without a database need not spend.
    from services import sql

    if sql.is_lost(error) or sql.is_conflict(error):
        return refusals.dependency_unavailable("database")
    return None
