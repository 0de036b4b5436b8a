"""The conversation between the control plane and an Envoy, played by a client of the same wire format."""

from __future__ import annotations

import time
from queue import SimpleQueue

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.google.rpc import Status

from services.gateway.domain import snapshot as snapshots
from services.gateway.handlers import DiscoveryService
from tests.gateway import until

CLUSTERS, ENDPOINTS = snapshots.CLUSTERS, snapshots.ENDPOINTS
LISTENERS, ROUTES, SECRETS = snapshots.LISTENERS, snapshots.ROUTES, snapshots.SECRETS
FILTERS = snapshots.FILTERS
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


def a_snapshot(**content):
    """One resource, or several, of each type; `clusters="b"` gives that type other content."""
    types = {
        "clusters": CLUSTERS,
        "endpoints": ENDPOINTS,
        "secrets": SECRETS,
        "filters": FILTERS,
        "listeners": LISTENERS,
        "routes": ROUTES,
    }
    return {
        type_url: snapshots.Resources.of(
            {
                name: Any(type_url=type_url, value=(content.get(kind, "a") + name).encode())
                for name in ("one", "two")
            }
        )
        for kind, type_url in types.items()
    }


class Envoy:
    """Says what it is told to, and keeps what it hears."""

    def __init__(self, port, tls):
        credentials = grpc.ssl_channel_credentials(
            tls.ca_file.read_bytes(), tls.key_file.read_bytes(), tls.certificate_file.read_bytes()
        )
        self._channel = grpc.secure_channel(
            f"127.0.0.1:{port}",
            credentials,
            [("grpc.ssl_target_name_override", "gateway.tallystick.internal")],
        )
        self._said = SimpleQueue()
        stream = self._channel.stream_stream(
            METHOD, request_serializer=bytes, response_deserializer=DiscoveryResponse.parse
        )
        self._answers = stream(iter(self._said.get, None))

    def say(self, type_url, *names, version="", nonce="", error=None):
        self._said.put(
            DiscoveryRequest(
                type_url=type_url,
                resource_names=list(names),
                version_info=version,
                response_nonce=nonce,
                node=Node(id="played"),
                error_detail=Status(message=error) if error else None,
            )
        )

    def hear(self):
        """The next response."""
        return next(self._answers)

    def accept(self, response, *names):
        self.say(response.type_url, *names, version=response.version_info, nonce=response.nonce)

    def learn(self, type_url, *names):
        """Subscribe and accept. Clusters and listeners are asked for without names."""
        self.say(type_url, *names)
        response = self.hear()
        assert response.type_url == type_url
        self.accept(response, *names)
        return response

    def close(self):
        self._said.put(None)
        self._answers.cancel()
        self._channel.close()


@pytest.fixture
def discovery(gateway, tls_for):
    """(the service, its port)."""

    async def start():
        service = DiscoveryService()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((service.handler(),))
        tls = tls_for("gateway")
        credentials = grpc.ssl_server_credentials(
            [(tls.key_file.read_bytes(), tls.certificate_file.read_bytes())],
            root_certificates=tls.ca_file.read_bytes(),
            require_client_auth=True,
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return service, server, port

    service, server, port = gateway.run(start())
    yield service, port
    gateway.run(server.stop(None))


@pytest.fixture
def publish(gateway, discovery):
    """Publish on the service's own loop."""

    def publish(snapshot):
        async def now():
            discovery[0].publish(snapshot)

        gateway.run(now())

    return publish


@pytest.fixture
def envoy(discovery, tls_for):
    opened = Envoy(discovery[1], tls_for("gateway"))
    yield opened
    opened.close()


def contents(response):
    return sorted(resource.value.decode() for resource in response.resources)


def test_nothing_is_said_before_there_is_a_snapshot(envoy, publish):
    envoy.say(CLUSTERS)
    publish(a_snapshot())

    assert contents(envoy.hear()) == ["aone", "atwo"]


def test_clusters_are_sent_whole_and_secrets_by_name(envoy, publish):
    publish(a_snapshot())

    assert len(envoy.learn(CLUSTERS).resources) == 2
    assert contents(envoy.learn(SECRETS, "two")) == ["atwo"]


def test_a_subscription_that_grows_is_answered_even_with_an_empty_nonce(envoy, publish):
    publish(a_snapshot())
    envoy.say(SECRETS, "one")
    first = envoy.hear()
    envoy.say(SECRETS, "one", "two")
    envoy.accept(first, "one", "two")

    assert contents(envoy.hear()) == ["aone", "atwo"]


def test_an_answer_to_what_has_been_replaced_changes_nothing(envoy, publish):
    publish(a_snapshot())
    response = envoy.learn(CLUSTERS)
    publish(a_snapshot(clusters="b"))
    newer = envoy.hear()

    envoy.say(CLUSTERS, version=response.version_info, nonce=response.nonce)
    envoy.say(SECRETS, "one")
    # Still waiting for the answer to the newer clusters, so nothing that comes after them is sent.
    envoy.accept(newer)

    assert envoy.hear().type_url == SECRETS


def test_a_new_snapshot_is_sent_in_the_order_in_which_nothing_breaks(envoy, publish):
    publish(a_snapshot())
    envoy.learn(CLUSTERS)
    envoy.learn(ENDPOINTS, "one")
    envoy.learn(LISTENERS)
    envoy.learn(ROUTES, "one")

    publish(a_snapshot(clusters="b", listeners="b", routes="b"))
    clusters = envoy.hear()
    sent = time.monotonic()
    envoy.accept(clusters)
    endpoints = envoy.hear()
    envoy.accept(endpoints, "one")
    listeners = envoy.hear()
    waited = time.monotonic() - sent
    envoy.accept(listeners)
    routes = envoy.hear()

    assert [each.type_url for each in (clusters, endpoints, listeners, routes)] == [
        CLUSTERS,
        ENDPOINTS,
        LISTENERS,
        ROUTES,
    ]
    # Unchanged, but what warms up again waits for it.
    assert contents(endpoints) == ["aone"]
    # New replicas pass their first health check meanwhile.
    assert waited >= 0.9


def test_routes_alone_are_sent_at_once(envoy, publish):
    publish(a_snapshot())
    envoy.learn(CLUSTERS)
    envoy.learn(LISTENERS)
    envoy.learn(ROUTES, "one")

    begin = time.monotonic()
    publish(a_snapshot(routes="b"))

    assert envoy.hear().type_url == ROUTES
    assert time.monotonic() - begin < 0.5


def test_what_is_rejected_is_kept_in_sight_and_not_sent_again(envoy, publish, discovery):
    publish(a_snapshot())
    good = envoy.learn(ROUTES, "one")
    publish(a_snapshot(routes="b"))
    bad = envoy.hear()

    envoy.say(ROUTES, "one", version=good.version_info, nonce=bad.nonce, error="no such cluster")
    until(lambda: discovery[0].rejections)
    assert discovery[0].rejections == {("played", "RouteConfiguration"): "no such cluster"}

    publish(a_snapshot(routes="c"))
    better = envoy.hear()
    assert contents(better) == ["cone"]
    envoy.accept(better, "one")
    until(lambda: not discovery[0].rejections)


def test_after_a_reconnection_the_same_content_has_the_same_version(envoy, publish):
    publish(a_snapshot())
    known = envoy.learn(CLUSTERS).version_info

    publish(a_snapshot(routes="b"))
    publish(a_snapshot())

    assert a_snapshot()[CLUSTERS].version == known
    assert a_snapshot(clusters="b")[CLUSTERS].version != known


def test_a_type_we_do_not_have_is_passed_over(envoy, publish):
    publish(a_snapshot())
    envoy.say("type.googleapis.com/envoy.service.runtime.v3.Runtime")

    assert envoy.learn(CLUSTERS)


def test_only_the_gateways_certificate_may_ask(discovery, publish, tls_for):
    publish(a_snapshot())
    other = Envoy(discovery[1], tls_for("payment"))
    other.say(SECRETS, "one")

    with pytest.raises(grpc.RpcError) as refused:
        other.hear()
    other.close()

    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_who_is_gone_is_forgotten(envoy, publish, discovery):
    publish(a_snapshot())
    response = envoy.learn(ROUTES, "one")
    publish(a_snapshot(routes="b"))
    bad = envoy.hear()
    envoy.say(ROUTES, "one", version=response.version_info, nonce=bad.nonce, error="no")
    until(lambda: discovery[0].rejections)

    envoy.close()

    until(lambda: not discovery[0].rejections and discovery[0].envoys == 0)
