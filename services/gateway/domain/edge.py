"""What the gateway is told beside the contract: where it listens, whom it serves, with which certificates."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from services.gateway.domain.access import Bucket


@dataclass(frozen=True)
class Address:
    """Where something listens: an IP address or a name, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port`, `[::1]:port` too."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """It can be connected to without asking DNS."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Edge:
    """How the gateway faces its clients.

    Attributes:
        listen: Where clients connect; an IP address.
        web_origins: Whose pages may call: `https://shop.example`, exactly as browsers send it.
        buckets: The token bucket of each rate class.
        rate_subjects_max: Buckets kept at the same time; the one longest unused is forgotten (and full again) first.
        trusted_proxies: Load balancers in front that append to `x-forwarded-for`. The client's address is the one the
            outermost of them saw; with 0 it is the connection's and `x-forwarded-for` is removed.
        collector: The OTLP receiver (gRPC) for traces; None where there is none.
        trace_percent: Calls traced, 0 to 100.
    """

    listen: Address
    web_origins: tuple[str, ...]
    buckets: Mapping[str, Bucket]
    rate_subjects_max: int
    trusted_proxies: int
    collector: Address | None
    trace_percent: float


@dataclass(frozen=True)
class Identity:
    """A certificate chain and its key, PEM."""

    certificate_chain: str
    private_key: str


@dataclass(frozen=True)
class Credentials:
    """Every certificate of the gateway.

    Attributes:
        public: What clients see.
        internal: What services see.
        internal_ca: Who signs the services' certificates, PEM.
    """

    public: Identity
    internal: Identity
    internal_ca: str
