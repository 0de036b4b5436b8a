"""Where each RPC leads, and under which conditions: the contract's rules as an Envoy route table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.extensions.filters.http.cors import v3 as cors
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any, Struct

from services.gateway.domain import limits, replies
from services.gateway.domain.access import Route
from services.gateway.domain.authentication import (
    JWT_FILTER,
    RBAC_FILTER,
    no_token_needed,
    permission,
)
from services.gateway.domain.edge import Edge
from services.gateway.domain.messages import header
from services.rpc import refusals as access

ROUTES = "public"
CORS_FILTER = "envoy.filters.http.cors"
BUFFER_FILTER = "envoy.filters.http.buffer"
STATS_FILTER = "envoy.filters.http.grpc_stats"

# What the services read, and browsers' forms of it. Whatever else reached them they would drop without an answer, which
# counts against the replica.
_CONTENT_TYPE = r"application/grpc(-web(-text)?)?(\+proto)?( *;.*)?"
_ENCODING = "identity|gzip|deflate"
_RETRIES = 2
_TRY_SECONDS_MAX = 5
_PREFLIGHT_SECONDS = 86_400


def route_table(
    routes: Sequence[Route], edge: Edge, encode: replies.Encode
) -> envoy_route.RouteConfiguration:
    """One exact path per RPC; everything else is answered with UNIMPLEMENTED."""
    return envoy_route.RouteConfiguration(
        name=ROUTES,
        virtual_hosts=[
            envoy_route.VirtualHost(
                name=ROUTES,
                domains=["*"],
                routes=[
                    _wrong("content-type", _CONTENT_TYPE, required=True),
                    _wrong("grpc-encoding", _ENCODING, required=False),
                    *(_route(route, edge, encode) for route in routes),
                    _unknown(),
                ],
                typed_per_filter_config={CORS_FILTER: Any.pack(_cors(edge.web_origins))},
            )
        ],
        # The services get the verified claims; no token, verified or not, goes further than this. Nor does a deadline,
        # which Envoy keeps itself: one that gRPC cannot read would spoil the connection (see `listener`).
        request_headers_to_remove=["authorization", "grpc-timeout"],
        # Without it gRPC drops the call.
        request_headers_to_add=[header("te", "trailers")],
    )


def _route(route: Route, edge: Edge, encode: replies.Encode) -> envoy_route.Route:
    filters = {RBAC_FILTER: permission(route)}
    if route.public:
        filters[JWT_FILTER] = no_token_needed()
    facts = limits.metadata(route, edge.buckets, encode)
    facts[replies.FORBIDDEN] = replies.metadata(encode(access.caller_not_allowed(route.path)))
    return envoy_route.Route(
        name=route.path,
        match=envoy_route.RouteMatch(path=route.path),
        metadata=core.Metadata(filter_metadata={replies.ROUTE_METADATA: Struct.from_dict(facts)}),
        typed_per_filter_config=filters,
        route=_action(route),
    )


def _action(route: Route) -> envoy_route.RouteAction:
    action = envoy_route.RouteAction(
        cluster=route.service,
        # Streams have room of their own: see `clusters`.
        priority=core.RoutingPriority.HIGH if route.streams else core.RoutingPriority.DEFAULT,
        # The whole call, also one without a deadline of its own and one with a longer deadline.
        max_stream_duration=envoy_route.RouteActionMaxStreamDuration(
            max_stream_duration=route.timeout, grpc_timeout_header_max=route.timeout
        ),
        # Nothing may happen on a stream for as long as it may last.
        idle_timeout=route.timeout,
    )
    if route.idempotent:
        action.retry_policy = _retry(route)
    return action


def _retry(route: Route) -> envoy_route.RetryPolicy:
    policy = envoy_route.RetryPolicy(
        retry_on="unavailable,reset,connect-failure,refused-stream,reset-before-request",
        num_retries=_RETRIES,
        retry_back_off=envoy_route.RetryPolicyRetryBackOff(
            base_interval=timedelta(milliseconds=25), max_interval=timedelta(milliseconds=250)
        ),
        # Another replica, not the one that just failed.
        retry_host_predicate=[
            envoy_route.RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=Any.pack(previous_hosts.PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=3,
    )
    if not route.streams:
        policy.per_try_timeout = min(route.timeout, timedelta(seconds=_TRY_SECONDS_MAX))
    return policy


def _wrong(name: str, pattern: str, *, required: bool) -> envoy_route.Route:
    """Refuses calls whose header is not of a form, or is missing though required."""
    other = envoy_route.HeaderMatcher(
        name=name,
        string_match=matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern)),
        invert_match=True,
        treat_missing_header_as_empty=required,
    )
    # A browser that asks first has nothing to say about a content yet.
    no_preflight = envoy_route.HeaderMatcher(
        name=":method",
        string_match=matcher.StringMatcher(exact="OPTIONS"),
        invert_match=True,
    )
    match = envoy_route.RouteMatch(prefix="/tallystick.", headers=[no_preflight, other])
    return _refusal(f"wrong-{name}", match, 415)


def _unknown() -> envoy_route.Route:
    """The contract is no secret, and a client newer than the server should learn just that."""
    return _refusal("unknown", envoy_route.RouteMatch(prefix="/"), 404)


def _refusal(name: str, match: envoy_route.RouteMatch, http_status: int) -> envoy_route.Route:
    """No token is asked for and no bucket drawn from: refusing is cheaper than anything that could protect it.

    Statistics by method stay out, or anybody could fill the memory with names.
    """
    off = Any.pack(envoy_route.FilterConfig(disabled=True))
    filters = dict.fromkeys(
        (JWT_FILTER, RBAC_FILTER, limits.LIMIT_FILTER, BUFFER_FILTER, STATS_FILTER), off
    )
    return envoy_route.Route(
        name=name,
        match=match,
        direct_response=envoy_route.DirectResponseAction(status=http_status),
        typed_per_filter_config=filters,
    )


def _cors(origins: Sequence[str]) -> cors.CorsPolicy:
    return cors.CorsPolicy(
        allow_origin_string_match=[matcher.StringMatcher(exact=origin) for origin in origins],
        allow_methods="POST, OPTIONS",
        allow_headers="authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent",
        expose_headers="grpc-message,grpc-status,grpc-status-details-bin,retry-after,"
        "x-ratelimit-limit,x-ratelimit-remaining,x-ratelimit-reset",
        max_age=str(_PREFLIGHT_SECONDS),
    )
