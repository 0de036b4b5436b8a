"""Where a running stack can be reached: `endpoints.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.process import StartError
from cli.stack.layout import write_secret


@dataclass(frozen=True)
class Service:
    """One process of a service.

    Attributes:
        address: `host:port`, mutual TLS.
        database_url: Its database, with password; empty for one that has none.
        pid: Its process.
        log_file: Its log.
    """

    address: str
    database_url: str
    pid: int
    log_file: str


@dataclass(frozen=True)
class Endpoints:
    """A running stack.

    Attributes:
        grpc: `host:port` of the gateway, TLS.
        grpc_web: The same for browsers, as a URL.
        ca_file: Who signed the gateway's certificate.
        admin_user: The first admin's username.
        admin_password_file: Their password.
        services: Every service; further processes of one are `payment-2`, `payment-3`, …
        processes: Process ids of all of it, by name: services, stores and gateway.
        redis_url: Valkey or Redis.
        envoy_admin: `http://host:port` of Envoy's own pages.
        profile: `dev` or `mysql`.
    """

    grpc: str
    grpc_web: str
    ca_file: str
    admin_user: str
    admin_password_file: str
    services: dict[str, Service]
    processes: dict[str, int]
    redis_url: str
    envoy_admin: str
    profile: str

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; it holds passwords, so for its owner only."""
        write_secret(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @property
    def admin_password(self) -> str:
        """Read from its file."""
        return Path(self.admin_password_file).read_text().strip()


def read(path: Path) -> Endpoints:
    """The stack whose file this is.

    Raises:
        StartError: there is none; says how to start one.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise StartError(
            f"No stack is ready: {path} is missing. Start one with `tallystick up`."
        ) from None
    services = {name: Service(**service) for name, service in content.pop("services").items()}
    return Endpoints(services=services, **content)
