"""Where the services are, and when a replica of one is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster import v3 as envoy_cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstreams
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from services.gateway.domain.edge import Address
from services.gateway.domain.messages import (
    INTERNAL_CA_SECRET,
    INTERNAL_SECRET,
    from_control_plane,
    secret,
    socket_address,
)

# With a dash, so that no package can be called the same.
COLLECTOR = "otlp-collector"

# Calls a replica may have in hand. More would wait behind these for longer than anybody waits: they are refused at
# once, and those in hand are answered within a second (measured: docs/performance.md).
_CALLS_PER_REPLICA_MAX = 600
# Streams live for an hour and do almost nothing; they must not take the room of calls.
_STREAMS_MAX = 10_000
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HEALTH_INTERVAL = timedelta(seconds=1)


def service_cluster(service: str, addresses: Sequence[Address]) -> envoy_cluster.Cluster:
    """All replicas of a service, over mutual TLS."""
    cluster = envoy_cluster.Cluster(
        name=service,
        connect_timeout=timedelta(seconds=1),
        # Replicas are as fast as their neighbours let them be.
        lb_policy=envoy_cluster.ClusterLbPolicy.LEAST_REQUEST,
        typed_extension_protocol_options={_HTTP_OPTIONS: Any.pack(_http2())},
        transport_socket=_mutual_tls(f"{service}.tallystick.internal"),
        health_checks=[_health_check()],
        outlier_detection=_outlier_detection(),
        circuit_breakers=envoy_cluster.CircuitBreakers(
            thresholds=[
                _threshold(core.RoutingPriority.DEFAULT, _CALLS_PER_REPLICA_MAX * len(addresses)),
                _threshold(core.RoutingPriority.HIGH, _STREAMS_MAX),
            ]
        ),
        # A replica that says NOT_SERVING gets nothing, even when no other is left.
        common_lb_config=envoy_cluster.ClusterCommonLbConfig(
            healthy_panic_threshold=types.Percent(value=0.0)
        ),
    )
    if _by_name(addresses):
        cluster.type = envoy_cluster.ClusterDiscoveryType.STRICT_DNS
        cluster.load_assignment = endpoints(service, addresses)
    else:
        cluster.type = envoy_cluster.ClusterDiscoveryType.EDS
        cluster.eds_cluster_config = envoy_cluster.ClusterEdsClusterConfig(
            eds_config=from_control_plane()
        )
    return cluster


def endpoints(name: str, addresses: Sequence[Address]) -> endpoint.ClusterLoadAssignment:
    """The replicas of a cluster."""
    return endpoint.ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            endpoint.LocalityLbEndpoints(
                lb_endpoints=[
                    endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=socket_address(address)))
                    for address in addresses
                ]
            )
        ],
    )


def service_endpoints(
    service: str, addresses: Sequence[Address]
) -> list[endpoint.ClusterLoadAssignment]:
    """What Envoy asks for after `service_cluster`: nothing when it finds the replicas by their names."""
    return [] if _by_name(addresses) else [endpoints(service, addresses)]


def collector_cluster(address: Address | None) -> envoy_cluster.Cluster:
    """Where sampled spans go; leads nowhere when there is no collector."""
    return envoy_cluster.Cluster(
        name=COLLECTOR,
        type=envoy_cluster.ClusterDiscoveryType.STRICT_DNS
        if address is not None
        else envoy_cluster.ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        typed_extension_protocol_options={_HTTP_OPTIONS: Any.pack(_http2())},
        load_assignment=endpoints(COLLECTOR, [address] if address is not None else []),
    )


def _by_name(addresses: Sequence[Address]) -> bool:
    # Endpoints that are sent separately must be IP addresses.
    return not all(address.is_ip for address in addresses)


def _threshold(
    priority: core.RoutingPriority, calls_max: int
) -> envoy_cluster.CircuitBreakersThresholds:
    return envoy_cluster.CircuitBreakersThresholds(
        priority=priority,
        max_connections=1_024,
        max_pending_requests=calls_max,
        max_requests=calls_max,
        # More would be a second storm on top of what made the first calls fail.
        retry_budget=envoy_cluster.CircuitBreakersThresholdsRetryBudget(
            budget_percent=types.Percent(value=20.0), min_retry_concurrency=10
        ),
        track_remaining=True,
    )


def _http2() -> upstreams.HttpProtocolOptions:
    return upstreams.HttpProtocolOptions(
        explicit_http_config=upstreams.HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=core.Http2ProtocolOptions(
                # A connection per worker thread and replica carries all of its calls.
                max_concurrent_streams=_STREAMS_MAX,
                initial_stream_window_size=256 * 1024,
                initial_connection_window_size=16 * 1024 * 1024,
                connection_keepalive=core.KeepaliveSettings(
                    interval=timedelta(seconds=30), timeout=timedelta(seconds=5)
                ),
            )
        )
    )


def _mutual_tls(name: str) -> core.TransportSocket:
    """We show the gateway's certificate; theirs must carry their name."""
    version = tls.TlsParametersTlsProtocol.TLSv1_3
    their_name = tls.SubjectAltNameMatcher(
        san_type=tls.SubjectAltNameMatcherSanType.DNS, matcher=matcher.StringMatcher(exact=name)
    )
    context = tls.UpstreamTlsContext(
        sni=name,
        common_tls_context=tls.CommonTlsContext(
            # Health checks do not ask for HTTP/2 by themselves, and grpcio takes nothing else.
            alpn_protocols=["h2"],
            tls_params=tls.TlsParameters(
                tls_minimum_protocol_version=version, tls_maximum_protocol_version=version
            ),
            tls_certificate_sds_secret_configs=[secret(INTERNAL_SECRET)],
            combined_validation_context=tls.CommonTlsContextCombinedCertificateValidationContext(
                default_validation_context=tls.CertificateValidationContext(
                    match_typed_subject_alt_names=[their_name]
                ),
                validation_context_sds_secret_config=secret(INTERNAL_CA_SECRET),
            ),
        ),
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _health_check() -> core.HealthCheck:
    """NOT_SERVING counts at once; silence only after some seconds.

    A replica under full load answers late, and sending its calls to the others as well would end those too.
    """
    return core.HealthCheck(
        interval=_HEALTH_INTERVAL,
        no_traffic_interval=_HEALTH_INTERVAL,
        timeout=timedelta(seconds=3),
        unhealthy_threshold=3,
        healthy_threshold=1,
        grpc_health_check=core.HealthCheckGrpcHealthCheck(),
    )


def _outlier_detection() -> envoy_cluster.OutlierDetection:
    """Calls that fail as UNAVAILABLE count against a replica; defects do not, or one bad request could end it."""
    return envoy_cluster.OutlierDetection(
        consecutive_gateway_failure=5,
        enforcing_consecutive_gateway_failure=100,
        enforcing_consecutive_5xx=0,
        enforcing_success_rate=0,
        interval=timedelta(seconds=2),
        base_ejection_time=timedelta(seconds=5),
        # The last one standing stays: what fails everywhere is not the replica's fault.
        max_ejection_percent=50,
    )
