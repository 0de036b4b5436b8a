"""What Envoy answers by itself, in the words and the wire form of a service's refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher

from services.gateway.domain import refusals
from services.gateway.domain.messages import header, literal
from services.refusal import Refusal
from services.rpc import refusals as access

# As large a message as the services take.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Where a route keeps what this module and the limits need to know of it.
ROUTE_METADATA = "tallystick"
RATE_LIMITED = "rate_limited"
FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class Reply:
    """A refusal on the wire.

    Attributes:
        code: A `google.rpc.Code`.
        message: For `grpc-message`.
        details: For `grpc-status-details-bin`: a `google.rpc.Status` in base64.
    """

    code: int
    message: str
    details: str


Encode = Callable[[Refusal], Reply]


def local_replies(encode: Encode) -> hcm.LocalReplyConfig:
    """Answers to gRPC and gRPC-Web calls that never reached a service.

    Left alone, Envoy gives no details, and to gRPC-Web only an HTTP error, from which a client guesses a gRPC code:
    429 becomes UNAVAILABLE. Callers that speak neither get the HTTP error as it is.
    """
    return hcm.LocalReplyConfig(
        mappers=[
            _same(400, encode(refusals.request_malformed())),
            _same(401, encode(access.unauthenticated())),
            _by_route(403, FORBIDDEN, encode(access.caller_not_allowed("-"))),
            _same(404, encode(refusals.method_unknown())),
            _same(408, encode(refusals.call_timed_out())),
            _same(413, encode(refusals.message_too_large(MESSAGE_BYTES_MAX))),
            _by_route(429, RATE_LIMITED, encode(access.overloaded(_NEVER_SENT))),
            _same(431, encode(refusals.request_malformed())),
            _same(502, encode(access.dependency_unavailable("service"))),
            _same(503, encode(access.dependency_unavailable("service"))),
            _same(504, encode(refusals.call_timed_out())),
        ]
    )
