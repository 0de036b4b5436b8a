"""The aggregated discovery service (ADS): tells every connected Envoy the snapshot, state of the world.

Source: Envoy docs, "xDS REST and gRPC protocol", sections on ACK, NACK, nonces and eventual consistency.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from grpc.aio import ServicerContext
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.gateway.domain import snapshot as snapshots
from services.gateway.domain.snapshot import Snapshot
from services.rpc import identity

log = logging.getLogger(__name__)

# Make before break: what a resource leads to is sent, and accepted, before the resource.
_ORDER = (
    snapshots.CLUSTERS,
    snapshots.ENDPOINTS,
    snapshots.SECRETS,
    snapshots.FILTERS,
    snapshots.LISTENERS,
    snapshots.ROUTES,
)
# A changed cluster or listener warms up again, and waits for these although they are as they were.
_DEPENDENTS = {
    snapshots.CLUSTERS: snapshots.ENDPOINTS,
    snapshots.LISTENERS: snapshots.ROUTES,
}
# Of these, Envoy gets all there are; of the others, what it names.
_WHOLE = frozenset({snapshots.CLUSTERS, snapshots.LISTENERS})
# What may lead to a cluster that is new.
_LEADING = frozenset({snapshots.LISTENERS, snapshots.ROUTES})
# A new cluster takes no calls before its replicas pass a health check; Envoy does not tell when.
_SETTLE_SECONDS = 1.0


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]


@dataclass
class _Subscription:
    """What one Envoy asked for of one type.

    Attributes:
        names: As asked; without meaning for types sent whole.
        version: Last sent.
        nonce: Last sent.
        due: To be sent even when the version has not changed.
        waiting: Sent, neither accepted nor rejected yet.
    """

    names: frozenset[str]
    version: str
    nonce: str = ""
    due: bool = True
    waiting: bool = False


@dataclass
class _Stream:
    """One Envoy's conversation: what it asked for, and what it is to be told next."""

    nonces: Iterator[int]
    now: Callable[[], float]
    node: str = "unknown"
    subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    settled_at: float = 0.0

    def heard(self, request: DiscoveryRequest) -> str | None:
        """Take in a request; answers why Envoy rejected what it was last told, if it did."""
        if request.node is not None:
            self.node = request.node.id
        names = frozenset(request.resource_names)
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            # After a reconnection, `version_info` is what Envoy serves by now.
            self.subscriptions[request.type_url] = _Subscription(names, request.version_info)
            return None
        if request.response_nonce == subscription.nonce:
            subscription.waiting = False
        elif request.response_nonce:
            return None  # an answer to what has been replaced since
        if names != subscription.names:
            # Counts as a subscription even when it looks like an ACK.
            subscription.names = names
            subscription.due = True
        return None if request.error_detail is None else request.error_detail.message

    def next(self, snapshot: Snapshot) -> DiscoveryResponse | None:
        """What to tell Envoy now; None when it must first answer, or knows all of it."""
        for type_url in _ORDER:
            subscription = self.subscriptions.get(type_url)
            if subscription is None:
                continue
            if subscription.waiting:
                return None
            changed = subscription.version != snapshot[type_url].version
            if not (changed or subscription.due):
                continue
            if type_url in _LEADING and self.now() < self.settled_at:
                return None
            if type_url == snapshots.CLUSTERS and changed and subscription.version:
                self.settled_at = self.now() + _SETTLE_SECONDS
            return self._response(type_url, subscription, snapshot)
        return None

    def settles_in(self) -> float | None:
        """Seconds until `next` may have more to say by itself."""
        left = self.settled_at - self.now()
        return left if left > 0 else None

    def _response(
        self, type_url: str, subscription: _Subscription, snapshot: Snapshot
    ) -> DiscoveryResponse:
        resources = snapshot[type_url]
        dependent = self.subscriptions.get(_DEPENDENTS.get(type_url, ""))
        if dependent is not None:
            dependent.due = True
        subscription.version = resources.version
        subscription.nonce = str(next(self.nonces))
        subscription.due = False
        subscription.waiting = True
        if type_url in _WHOLE:
            chosen = list(resources.by_name.values())
        else:
            missing = subscription.names - resources.by_name.keys()
            if missing:
                log.error(
                    "Envoy asks for what is not there",
                    extra={"type": _short(type_url), "names": sorted(missing), "node": self.node},
                )
            chosen = [
                resource
                for name, resource in resources.by_name.items()
                if name in subscription.names
            ]
        return DiscoveryResponse(
            version_info=resources.version,
            resources=chosen,
            type_url=type_url,
            nonce=subscription.nonce,
        )


class DiscoveryService:
    """Tells Envoys the newest snapshot, and keeps what they reject in sight."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._nonces = itertools.count(1)
        self._wakers: set[asyncio.Queue[DiscoveryRequest | None]] = set()
        self._rejections: dict[tuple[str, str], str] = {}
        meter = metrics.get_meter("tallystick.gateway")
        self._rejected = meter.create_counter(
            "tallystick.gateway.configurations.rejected",
            description="Resources of one type that an Envoy refused to take over.",
        )
        meter.create_observable_gauge(
            "tallystick.gateway.configurations.rejected.now",
            [self._observe_rejections],
            description="Envoys that serve an older configuration than they were told.",
        )
        meter.create_observable_gauge(
            "tallystick.gateway.envoys",
            [self._observe_envoys],
            description="Envoys connected.",
        )

    @property
    def snapshot(self) -> Snapshot | None:
        """What Envoys are told; None before the first."""
        return self._snapshot

    @property
    def envoys(self) -> int:
        """How many are connected."""
        return len(self._wakers)

    @property
    def rejections(self) -> dict[tuple[str, str], str]:
        """(Envoy's node id, type of resource) → why it refused it, until it accepts the next."""
        return dict(self._rejections)

    def publish(self, snapshot: Snapshot) -> None:
        """From now on this is what Envoys are told. Until the first, they wait."""
        self._snapshot = snapshot
        for waker in self._wakers:
            waker.put_nowait(None)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server serves."""
        stream = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=DiscoveryRequest.parse,
            response_serializer=bytes,
        )
        return grpc.method_handlers_generic_handler(
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            {"StreamAggregatedResources": stream},
        )

    async def _serve(
        self, requests: AsyncIterator[DiscoveryRequest], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[DiscoveryResponse]:
        if identity.peer_service(context.auth_context()) != identity.GATEWAY:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "Only Envoy may ask.")
        inbox: asyncio.Queue[DiscoveryRequest | None] = asyncio.Queue()
        reader = asyncio.create_task(_read(requests, inbox))
        stream = _Stream(self._nonces, asyncio.get_running_loop().time)
        self._wakers.add(inbox)
        try:
            while not reader.done() or not inbox.empty():
                try:
                    async with asyncio.timeout(stream.settles_in()):
                        request = await inbox.get()
                    if request is not None:
                        self._hear(stream, request)
                except TimeoutError:
                    pass
                while self._snapshot is not None and inbox.empty():
                    response = stream.next(self._snapshot)
                    if response is None:
                        break
                    _log_sent(stream, response)
                    yield response
        finally:
            self._wakers.discard(inbox)
            reader.cancel()
            self._forget(stream.node)
            log.info("Envoy disconnected", extra={"node": stream.node})

    def _hear(self, stream: _Stream, request: DiscoveryRequest) -> None:
        if request.type_url not in _ORDER:
            log.warning("unknown resource type", extra={"type": request.type_url})
            return
        first = not stream.subscriptions
        cause = stream.heard(request)
        if first:
            log.info("Envoy connected", extra={"node": stream.node})
        key = (stream.node, _short(request.type_url))
        if cause is not None:
            self._rejections[key] = cause
            self._rejected.add(1, {"type": key[1]})
            log.error(
                "Envoy rejects its configuration and keeps the one before",
                extra={"node": stream.node, "type": key[1], "cause": cause},
            )
        elif request.response_nonce == stream.subscriptions[request.type_url].nonce:
            self._rejections.pop(key, None)

    def _forget(self, node: str) -> None:
        for key in [key for key in self._rejections if key[0] == node]:
            del self._rejections[key]

    def _observe_rejections(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(len(self._rejections))]

    def _observe_envoys(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(len(self._wakers))]


async def _read(
    requests: AsyncIterator[DiscoveryRequest], inbox: asyncio.Queue[DiscoveryRequest | None]
) -> None:
    try:
        async for request in requests:
            inbox.put_nowait(request)
    finally:
        inbox.put_nowait(None)


def _log_sent(stream: _Stream, response: DiscoveryResponse) -> None:
    log.info(
        "told Envoy",
        extra={
            "node": stream.node,
            "type": _short(response.type_url),
            "version": response.version_info,
            "resources": len(response.resources),
        },
    )
