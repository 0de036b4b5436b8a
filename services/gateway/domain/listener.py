"""Where clients connect, and what happens to a request before it is routed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.common.mutation_rules import v3 as mutation_rules
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as envoy_listener
from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.config.trace import v3 as trace
from envoy_data_plane.envoy.extensions.access_loggers.stream import v3 as stream_log
from envoy_data_plane.envoy.extensions.filters.http.buffer import v3 as buffer
from envoy_data_plane.envoy.extensions.filters.http.cors import v3 as cors
from envoy_data_plane.envoy.extensions.filters.http.grpc_stats import v3 as grpc_stats
from envoy_data_plane.envoy.extensions.filters.http.grpc_web import v3 as grpc_web
from envoy_data_plane.envoy.extensions.filters.http.header_mutation import v3 as header_mutation
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import (
    v3 as early_header_mutation,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any, Struct

from services.gateway.domain import limits, replies, routes
from services.gateway.domain.authentication import (
    JWT_FILTER,
    PAYLOAD,
    PAYLOAD_HEADER,
    authentication,
    authorization,
)
from services.gateway.domain.clusters import COLLECTOR
from services.gateway.domain.edge import Edge
from services.gateway.domain.messages import (
    PUBLIC_SECRET,
    from_control_plane,
    http_filter,
    secret,
    socket_address,
)

LISTENER = "public"

_CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
# A gRPC message on the wire is led by its flag and its length.
_FRAME_HEADER_BYTES = 5
# What clients must not choose. A trace they force would cost us, an identity they claim would cost everybody.
_NOT_FROM_OUTSIDE = (
    "baggage",
    "traceparent",
    "tracestate",
    "x-forwarded-client-cert",
    "x-request-id",
    PAYLOAD_HEADER,
)
# `x-envoy-…` would change timeouts and retries, of payments too.
_NOT_FROM_OUTSIDE_PREFIXES = ("x-envoy-", "x-user-")
# gRPC reads these itself. One that it cannot read spoils the name for every later call on the same connection, and all
# callers share the gateway's few (grpcio 1.85). Nobody behind the gateway asks for them.
_READ_BY_GRPC = (
    "grpc-internal-encoding-request",
    "grpc-message",
    "grpc-previous-rpc-attempts",
    "grpc-retry-pushback-ms",
    "grpc-status",
)
_READ_BY_GRPC_SUFFIX = "-bin"


def public_listener(edge: Edge, encode: replies.Encode) -> envoy_listener.Listener:
    """One TLS port for gRPC and gRPC-Web.

    A listener that changes starts with full token buckets, so nothing that changes often is part of it: routes,
    certificates and signing keys come as resources of their own.
    """
    manager = envoy_listener.Filter(
        name=_CONNECTION_MANAGER, typed_config=Any.pack(_connection_manager(edge, encode))
    )
    return envoy_listener.Listener(
        name=LISTENER,
        address=socket_address(edge.listen),
        filter_chains=[
            envoy_listener.FilterChain(
                filters=[manager],
                transport_socket=_tls(),
                transport_socket_connect_timeout=timedelta(seconds=10),
            )
        ],
        per_connection_buffer_limit_bytes=1024 * 1024,
        # Left alone, a second Envoy on the same port takes half of the connections, and nobody is told.
        enable_reuse_port=False,
        # Connections are few and carry many calls: each worker thread gets as many as the next.
        connection_balance_config=envoy_listener.ListenerConnectionBalanceConfig(
            exact_balance=envoy_listener.ListenerConnectionBalanceConfigExactBalance()
        ),
    )


def _tls() -> core.TransportSocket:
    context = tls.DownstreamTlsContext(
        common_tls_context=tls.CommonTlsContext(
            alpn_protocols=["h2", "http/1.1"],
            tls_params=tls.TlsParameters(
                tls_minimum_protocol_version=tls.TlsParametersTlsProtocol.TLSv1_2,
                tls_maximum_protocol_version=tls.TlsParametersTlsProtocol.TLSv1_3,
            ),
            tls_certificate_sds_secret_configs=[secret(PUBLIC_SECRET)],
        ),
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _connection_manager(edge: Edge, encode: replies.Encode) -> hcm.HttpConnectionManager:
    return hcm.HttpConnectionManager(
        stat_prefix=LISTENER,
        codec_type=hcm.HttpConnectionManagerCodecType.AUTO,
        rds=hcm.Rds(config_source=from_control_plane(), route_config_name=routes.ROUTES),
        http_filters=_filters(edge),
        local_reply_config=replies.local_replies(encode),
        access_log=_access_logs(),
        tracing=_tracing(edge),
        use_remote_address=True,
        xff_num_trusted_hops=edge.trusted_proxies,
        # `internal_address_config` stays unset, so nobody's address makes them one of us; set and empty, every address
        # would (Envoy 1.40).
        forward_client_cert_details=hcm.HttpConnectionManagerForwardClientCertDetails.SANITIZE,
        early_header_mutation_extensions=[_strip(edge)],
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=hcm.HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
        # The services take as much, with the verified claims on top.
        max_request_headers_kb=12,
        request_headers_timeout=timedelta(seconds=10),
        # Every request is one message; only answers are streams.
        request_timeout=timedelta(seconds=30),
        stream_idle_timeout=timedelta(minutes=5),
        drain_timeout=timedelta(seconds=5),
        common_http_protocol_options=core.HttpProtocolOptions(
            idle_timeout=timedelta(minutes=10),
            headers_with_underscores_action=core.HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST,
        ),
        http2_protocol_options=core.Http2ProtocolOptions(
            max_concurrent_streams=1_000,
            initial_stream_window_size=256 * 1024,
            initial_connection_window_size=1024 * 1024,
            # Behind one connection of a proxy stand many clients: one bad request ends itself only.
            override_stream_error_on_invalid_http_message=True,
            # A terminal that lost its network is noticed, and its streams end.
            connection_keepalive=core.KeepaliveSettings(
                interval=timedelta(seconds=30), timeout=timedelta(seconds=10)
            ),
        ),
    )


def _filters(edge: Edge) -> list[hcm.HttpFilter]:
    return [
        http_filter(routes.CORS_FILTER, cors.Cors()),
        http_filter("envoy.filters.http.grpc_web", grpc_web.GrpcWeb()),
        authentication(),
        authorization(),
        limits.rate_limit(edge.buckets, edge.rate_subjects_max),
        http_filter(
            routes.BUFFER_FILTER,
            buffer.Buffer(max_request_bytes=replies.MESSAGE_BYTES_MAX + _FRAME_HEADER_BYTES),
        ),
        http_filter(
            routes.STATS_FILTER,
            grpc_stats.FilterConfig(
                stats_for_all_methods=True,
                enable_upstream_stats=False,
                # Else the dots of a package are taken for the end of the service's name.
                replace_dots_in_grpc_service_name=True,
            ),
        ),
        http_filter("envoy.filters.http.header_mutation", _without_trailers()),
        http_filter("envoy.filters.http.router", router.Router(suppress_envoy_headers=True)),
    ]


def _strip(edge: Edge) -> core.TypedExtensionConfig:
    names = [*_NOT_FROM_OUTSIDE, *_READ_BY_GRPC]
    if edge.trusted_proxies == 0:
        names.append("x-forwarded-for")
    patterns = [matcher.StringMatcher(prefix=prefix) for prefix in _NOT_FROM_OUTSIDE_PREFIXES]
    patterns.append(matcher.StringMatcher(suffix=_READ_BY_GRPC_SUFFIX))
    removals = [mutation_rules.HeaderMutation(remove=name) for name in names]
    removals += [
        mutation_rules.HeaderMutation(
            remove_on_match=mutation_rules.HeaderMutationRemoveOnMatch(key_matcher=pattern)
        )
        for pattern in patterns
    ]
    return core.TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=Any.pack(early_header_mutation.HeaderMutation(mutations=removals)),
    )


def _without_trailers() -> header_mutation.HeaderMutation:
    """What a client sends behind its message: gRPC has no use for it, and reads it as it does headers."""
    anything = matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=".*"))
    return header_mutation.HeaderMutation(
        mutations=header_mutation.Mutations(
            request_trailers_mutations=[
                mutation_rules.HeaderMutation(
                    remove_on_match=mutation_rules.HeaderMutationRemoveOnMatch(key_matcher=anything)
                )
            ]
        )
    )


def _tracing(edge: Edge) -> hcm.HttpConnectionManagerTracing:
    """Every call gets a trace id, for the logs; a share of them is recorded, where there is a collector."""
    percent = edge.trace_percent if edge.collector is not None else 0.0
    return hcm.HttpConnectionManagerTracing(
        random_sampling=types.Percent(value=percent),
        client_sampling=types.Percent(value=0.0),
        # A second span for the way to the service would cost every call 10 µs, recorded or not.
        spawn_upstream_span=False,
        provider=trace.TracingHttp(
            name="envoy.tracers.opentelemetry",
            typed_config=Any.pack(
                trace.OpenTelemetryConfig(
                    service_name="gateway",
                    grpc_service=core.GrpcService(
                        envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=COLLECTOR),
                        timeout=timedelta(milliseconds=500),
                    ),
                )
            ),
        ),
    )


def _access_logs() -> list[accesslog.AccessLog]:
    """One line of JSON on standard output per call."""
    status = {"grpc_status": "%GRPC_STATUS(SNAKE_STRING)%", "grpc_code": "%GRPC_STATUS_NUMBER%"}
    # When the line is written, the status of a gRPC-Web call that got a message is part of the body already; what
    # Envoy would make of that is UNKNOWN. A refusal has no message, so its code is in the headers.
    web_status = {"grpc_status": None, "grpc_code": "%RESP(GRPC-STATUS)%"}
    return [_access_log(status, web=False), _access_log(web_status, web=True)]


def _access_log(status: Mapping[str, str | None], *, web: bool) -> accesslog.AccessLog:
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "method": "%PATH(NQ)%",
        "user": f"%DYNAMIC_METADATA({JWT_FILTER}:{PAYLOAD}:sub)%",
        "roles": f"%DYNAMIC_METADATA({JWT_FILTER}:{PAYLOAD}:roles)%",
        **status,
        "web": web,
        "http": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "upstream_ms": "%RESPONSE_DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "trace_id": "%TRACE_ID%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "peer": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "user_agent": "%REQ(USER-AGENT):120%",
    }
    return accesslog.AccessLog(
        name="envoy.access_loggers.stdout",
        filter=accesslog.AccessLogFilter(
            header_filter=accesslog.HeaderFilter(
                header=envoy_route.HeaderMatcher(
                    name="x-grpc-web", present_match=True, invert_match=not web
                )
            )
        ),
        typed_config=Any.pack(
            stream_log.StdoutAccessLog(
                log_format=core.SubstitutionFormatString(json_format=Struct.from_dict(fields))
            )
        ),
    )
