"""Small Envoy messages that several resources hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any as AnyValue

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.google.protobuf import Any

from services.gateway.domain.edge import Address

INTERNAL_SECRET = "internal"  # noqa: S105 - the name of a secret, not one
INTERNAL_CA_SECRET = "internal-ca"  # noqa: S105
PUBLIC_SECRET = "public"  # noqa: S105


def from_control_plane() -> core.ConfigSource:
    """The rest of a resource comes over the stream that the resource came by.

    Envoy waits for it as long as it takes: left alone, after 15 s it would go on without.
    """
    return core.ConfigSource(
        ads=core.AggregatedConfigSource(),
        resource_api_version=core.ApiVersion.V3,
        initial_fetch_timeout=timedelta(0),
    )


def socket_address(address: Address) -> core.Address:
    """`address` for Envoy."""
    return core.Address(
        socket_address=core.SocketAddress(address=address.host, port_value=address.port)
    )


def http_filter(name: str, config: AnyValue) -> hcm.HttpFilter:
    """A filter in the listener's chain."""
    return hcm.HttpFilter(name=name, typed_config=Any.pack(config))


def header(name: str, value: str) -> core.HeaderValueOption:
    """Set a header, whatever it was before."""
    return core.HeaderValueOption(
        header=core.HeaderValue(key=name, value=value),
        append_action=core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def literal(text: str) -> str:
    """Text that Envoy's formatter writes as it stands."""
    return text.replace("%", "%%")


def always() -> core.RuntimeFractionalPercent:
    """For every request."""
    return core.RuntimeFractionalPercent(
        default_value=types.FractionalPercent(
            numerator=100, denominator=types.FractionalPercentDenominatorType.HUNDRED
        )
    )


def secret(name: str) -> tls.SdsSecretConfig:
    """A secret by name; a new certificate then changes neither cluster nor listener."""
    return tls.SdsSecretConfig(name=name, sds_config=from_control_plane())
