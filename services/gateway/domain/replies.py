"""What Envoy answers by itself, in the words and the wire form of a service's refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher

from services.gateway.domain import refusals
from services.gateway.domain.authentication import JWT_FILTER, PAYLOAD
from services.gateway.domain.messages import header, literal
from services.refusal import Refusal
from services.rpc import refusals as access

# As large a message as the services take.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Where a route keeps what Envoy must know of it beside where it leads.
ROUTE_METADATA = "tallystick"
RATE_LIMITED = "rate_limited"
FORBIDDEN = "forbidden"
# Envoy's flag for a call refused by the circuit breaker: the replicas have too much in hand.
_OVERFLOW = "UO"
_OVERLOAD_RETRY = timedelta(seconds=1)


@dataclass(frozen=True)
class Reply:
    """A refusal on the wire.

    Attributes:
        code: A `google.rpc.Code`.
        message: For `grpc-message`, printable ASCII.
        details: For `grpc-status-details-bin`: a `google.rpc.Status` in base64.
    """

    code: int
    message: str
    details: str


Encode = Callable[[Refusal], Reply]


def local_replies(encode: Encode) -> hcm.LocalReplyConfig:
    """Answers to gRPC and gRPC-Web calls that never reached a service, or whose service is gone.

    Left alone, Envoy gives no details, and to gRPC-Web only an HTTP error, from which a client guesses a gRPC code:
    429 becomes UNAVAILABLE. Callers that speak neither get the HTTP error as it is.
    """
    unavailable = encode(access.dependency_unavailable("service"))
    timed_out = encode(refusals.call_timed_out())
    return hcm.LocalReplyConfig(
        mappers=[
            _same(400, encode(refusals.request_malformed())),
            _same(401, encode(access.unauthenticated())),
            # What Envoy says of a token for another audience. Who has no verified claims is nobody, not the wrong one.
            _same(403, encode(access.unauthenticated()), when=_no_claims()),
            _by_route(403, FORBIDDEN),
            _same(404, encode(refusals.method_unknown())),
            _same(408, timed_out),
            _same(413, encode(refusals.message_too_large(MESSAGE_BYTES_MAX))),
            _same(415, encode(refusals.encoding_unsupported())),
            _by_route(429, RATE_LIMITED),
            _same(502, unavailable),
            _same(503, encode(access.overloaded(_OVERLOAD_RETRY)), when=_flagged(_OVERFLOW)),
            _same(503, unavailable),
            _same(504, timed_out),
        ]
    )


def metadata(reply: Reply) -> dict[str, str]:
    """A reply as a route keeps it, for `_by_route` to read."""
    return {"code": str(reply.code), "message": reply.message, "details": reply.details}


def _same(
    http_status: int, reply: Reply, *, when: accesslog.AccessLogFilter | None = None
) -> hcm.ResponseMapper:
    """One reply for every RPC; with a condition, only where that holds."""
    code, message, details = str(reply.code), literal(reply.message), literal(reply.details)
    return _mapper(http_status, code, message, details, when=when)


def _by_route(http_status: int, key: str) -> hcm.ResponseMapper:
    """The reply that the RPC's own route keeps."""
    return _mapper(
        http_status,
        *(
            f"%METADATA(ROUTE:{ROUTE_METADATA}:{key}:{part})%"
            for part in ("code", "message", "details")
        ),
    )


def _mapper(
    http_status: int,
    code: str,
    message: str,
    details: str,
    *,
    when: accesslog.AccessLogFilter | None = None,
) -> hcm.ResponseMapper:
    condition = accesslog.AccessLogFilter(
        and_filter=accesslog.AndFilter(
            filters=[
                *([when] if when is not None else []),
                accesslog.AccessLogFilter(status_code_filter=_equals(http_status)),
                accesslog.AccessLogFilter(
                    header_filter=accesslog.HeaderFilter(
                        header=envoy_route.HeaderMatcher(
                            name="content-type",
                            string_match=matcher.StringMatcher(prefix="application/grpc"),
                        )
                    )
                ),
            ]
        )
    )
    return hcm.ResponseMapper(
        filter=condition,
        status_code=200,
        # With a body, Envoy would take that for the message.
        body=core.DataSource(inline_string=""),
        headers_to_add=[
            header("grpc-status", code),
            header("grpc-message", message),
            header("grpc-status-details-bin", details),
            # For gRPC-Web; a reply to gRPC gets its own type after this.
            header("content-type", "application/grpc-web+proto"),
        ],
    )


def _flagged(flag: str) -> accesslog.AccessLogFilter:
    return accesslog.AccessLogFilter(
        response_flag_filter=accesslog.ResponseFlagFilter(flags=[flag])
    )


def _no_claims() -> accesslog.AccessLogFilter:
    """No token was verified."""
    null = matcher.MetadataMatcher(
        filter=JWT_FILTER,
        path=[matcher.MetadataMatcherPathSegment(key=key) for key in (PAYLOAD, "iss")],
        # Here Envoy heeds no `invert`; a claim that is there is no null.
        value=matcher.ValueMatcher(null_match=matcher.ValueMatcherNullMatch()),
    )
    return accesslog.AccessLogFilter(
        metadata_filter=accesslog.MetadataFilter(matcher=null, match_if_key_not_found=True)
    )


def _equals(http_status: int) -> accesslog.StatusCodeFilter:
    return accesslog.StatusCodeFilter(
        comparison=accesslog.ComparisonFilter(
            op=accesslog.ComparisonFilterOp.EQ,
            value=core.RuntimeUInt32(
                default_value=http_status,
                # Envoy wants a name by which the number could be changed while it runs.
                runtime_key=f"tallystick.local_reply.{http_status}",
            ),
        )
    )
