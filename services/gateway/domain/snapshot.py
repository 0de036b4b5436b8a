"""Everything Envoy is told, as one consistent whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.google.protobuf import Any

from services.gateway.domain import messages
from services.gateway.domain.access import Route
from services.gateway.domain.authentication import verification
from services.gateway.domain.clusters import collector_cluster, service_cluster, service_endpoints
from services.gateway.domain.edge import Address, Credentials, Edge, Identity
from services.gateway.domain.listener import public_listener
from services.gateway.domain.replies import Encode
from services.gateway.domain.routes import route_table

_PREFIX = "type.googleapis.com/envoy."
CLUSTERS: Final = _PREFIX + "config.cluster.v3.Cluster"
ENDPOINTS: Final = _PREFIX + "config.endpoint.v3.ClusterLoadAssignment"
SECRETS: Final = _PREFIX + "extensions.transport_sockets.tls.v3.Secret"
LISTENERS: Final = _PREFIX + "config.listener.v3.Listener"
FILTERS: Final = _PREFIX + "config.core.v3.TypedExtensionConfig"
ROUTES: Final = _PREFIX + "config.route.v3.RouteConfiguration"


@dataclass(frozen=True)
class Resources:
    """All resources of one type.

    Attributes:
        version: The same for the same content, whoever builds it and when.
        by_name: Packed.
    """

    version: str
    by_name: Mapping[str, Any]

    @classmethod
    def of(cls, by_name: Mapping[str, Any]) -> Resources:
        """Number them by what they hold."""
        digest = hashlib.sha256()
        for name, resource in sorted(by_name.items()):
            for part in (name.encode(), resource.value):
                digest.update(len(part).to_bytes(8, "big") + part)
        return cls(digest.hexdigest()[:16], by_name)


# By type URL.
Snapshot = Mapping[str, Resources]


def snapshot(
    routes: Sequence[Route],
    edge: Edge,
    backends: Mapping[str, Sequence[Address]],
    *,
    json_web_key_set: str,
    credentials: Credentials,
    encode: Encode,
) -> Snapshot:
    """Build it.

    Args:
        routes: Every RPC with a route.
        edge: How clients are faced. Its buckets hold what the routes draw (`access.check_buckets`).
        backends: Where each service is that a route leads to.
        json_web_key_set: Keys that tokens may be signed with.
        credentials: Certificates.
        encode: Writes a refusal as it goes over the wire.
    """
    services = sorted({route.service for route in routes})
    clusters = [service_cluster(service, backends[service]) for service in services]
    clusters.append(collector_cluster(edge.collector))
    assignments = [
        assignment
        for service in services
        for assignment in service_endpoints(service, backends[service])
    ]
    listener = public_listener(edge, encode)
    table = route_table(routes, edge, encode)
    filters = [verification(json_web_key_set)]
    found = {
        CLUSTERS: {cluster.name: Any.pack(cluster) for cluster in clusters},
        ENDPOINTS: {item.cluster_name: Any.pack(item) for item in assignments},
        SECRETS: {secret.name: Any.pack(secret) for secret in _secrets(credentials)},
        LISTENERS: {listener.name: Any.pack(listener)},
        FILTERS: {config.name: Any.pack(config) for config in filters},
        ROUTES: {table.name: Any.pack(table)},
    }
    return {type_url: Resources.of(by_name) for type_url, by_name in found.items()}


def _secrets(credentials: Credentials) -> list[tls.Secret]:
    return [
        _certificate(messages.PUBLIC_SECRET, credentials.public),
        _certificate(messages.INTERNAL_SECRET, credentials.internal),
        tls.Secret(
            name=messages.INTERNAL_CA_SECRET,
            validation_context=tls.CertificateValidationContext(
                trusted_ca=core.DataSource(inline_string=credentials.internal_ca)
            ),
        ),
    ]


def _certificate(name: str, identity: Identity) -> tls.Secret:
    return tls.Secret(
        name=name,
        tls_certificate=tls.TlsCertificate(
            certificate_chain=core.DataSource(inline_string=identity.certificate_chain),
            private_key=core.DataSource(inline_string=identity.private_key),
        ),
    )
