"""Which programs make a stack, and where each listens."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cli import databases, mariadb, pki, process, valkey
from cli.databases import MYSQL, OWNERS
from cli.process import Ports
from cli.stack.layout import Layout, write_secret
from cli.stack.supervisor import Program
from services.environment import PREFIX, Environment, Tls
from services.gateway.domain.bootstrap import Bootstrap, bootstrap, envoy_command
from services.gateway.domain.edge import Address

HOST = "127.0.0.1"
GATEWAY = "gateway"

# Names the environment of `tallystick up` may carry.
_REDIS = "REDIS_URL"
_KEY_ENCRYPTION_KEY = "KEK_FILE"


@dataclass(frozen=True)
class Store:
    """A database or Valkey of the stack's own, and the port it listens on."""

    program: Program
    port: int


@dataclass(frozen=True)
class Plan:
    """Everything a stack runs.

    Ports are chosen before anything starts: so all can start at the same time, and come back to the
    same place after a crash.

    Attributes:
        layout: Its directories.
        profile: `dev` or `mysql`.
        port: Where clients connect on 127.0.0.1.
        envoy_port: Where Envoy serves its own pages.
        ca_file: Who signs the certificate that clients see.
        addresses: `host:port` of every process of ours, by name: `payment`, `payment-2`, `gateway`, …
        database_urls: By service.
        redis_url: Valkey or Redis.
        valkey: The stack's own; None when it uses another.
        mariadb: The stack's own; None when it uses another, or SQLite.
        prepare: Migrates and makes the first admin.
        services: One each, and as many of payment as were asked for.
        gateway: Envoy's control plane.
        envoy: The gateway itself.
    """

    layout: Layout
    profile: str
    port: int
    envoy_port: int
    ca_file: str
    addresses: Mapping[str, str]
    database_urls: Mapping[str, str]
    redis_url: str
    valkey: Store | None
    mariadb: Store | None
    prepare: Program
    services: tuple[Program, ...]
    gateway: Program
    envoy: Program

    def service_port(self, name: str) -> int:
        """Where a process of ours listens."""
        return int(self.addresses[name].rpartition(":")[2])


def service_of(name: str) -> str:
    """The service a process runs: `payment` for `payment-2`."""
    return name.partition("-")[0]


def plan(layout: Layout, ports: Ports, profile: str, port: int, payment_processes: int) -> Plan:
    """Plan a stack and write what its programs read: certificates, keys, accounts, Envoy's bootstrap.

    Args:
        layout: Its directories, claimed.
        ports: Held as long as the stack runs.
        profile: `dev` or `mysql`.
        port: Where clients connect on 127.0.0.1; 0 takes a free one.
        payment_processes: At least 1.

    Raises:
        SettingError: a variable that profile mysql reads is wrong.
        StartError: the port is in use, or a program is not installed.
    """
    if port and not process.is_free(port):
        raise process.StartError(f"Port {port} of {HOST} is in use. Name another with --port.")
    environment = Environment()
    certificates = pki.prepare(layout.pki, (*OWNERS, GATEWAY), now=datetime.now(UTC))
    redis_url = environment.text(_REDIS, "") if profile == MYSQL else ""
    own_valkey = None if redis_url else _valkey(layout, ports)
    if own_valkey is not None:
        redis_url = valkey.url(own_valkey.port)
    own_mariadb, urls = _databases(layout, ports, profile, environment)
    payments = ("payment", *(f"payment-{n}" for n in range(2, payment_processes + 1)))
    names = ("user", *payments, "fraud", "offline", "admin", GATEWAY)
    addresses = {name: f"{HOST}:{ports.take()}" for name in names}
    port = port or ports.take()

    shared = _addresses_of_services(addresses, payments)
    shared[_KEY_ENCRYPTION_KEY] = environment.text(
        _KEY_ENCRYPTION_KEY, str(layout.make_key_encryption_key())
    )
    shared[_REDIS] = redis_url
    # The gateway leaves first, so when a service stops nobody is left who would have to notice.
    shared["DRAIN_NOTICE_MS"] = "0"

    def service(name: str, tls: Tls, **own: str) -> Program:
        variables = {
            **shared,
            "LISTEN": addresses[name],
            "TLS_CERT_FILE": str(tls.certificate_file),
            "TLS_KEY_FILE": str(tls.key_file),
            "TLS_CA_FILE": str(tls.ca_file),
            **own,
        }
        return _python(layout, name, f"services.{service_of(name)}", variables=variables)

    gateway = service(
        GATEWAY,
        certificates.services[GATEWAY],
        PUBLIC_LISTEN=f"{HOST}:{port}",
        PUBLIC_TLS_CERT_FILE=str(certificates.listener.certificate_file),
        PUBLIC_TLS_KEY_FILE=str(certificates.listener.key_file),
    )
    envoy_port = ports.take()
    return Plan(
        layout=layout,
        profile=profile,
        port=port,
        envoy_port=envoy_port,
        ca_file=str(certificates.listener.ca_file),
        addresses=addresses,
        database_urls=urls,
        redis_url=redis_url,
        valkey=own_valkey,
        mariadb=own_mariadb,
        prepare=_python(
            layout,
            "prepare",
            "cli.stack.prepare",
            str(layout.data),
            variables=databases.to_variables(urls),
        ),
        services=tuple(
            service(
                name,
                certificates.services[service_of(name)],
                DATABASE_URL=urls[service_of(name)],
            )
            for name in names
            if name != GATEWAY
        ),
        gateway=gateway,
        envoy=_envoy(
            layout, addresses[GATEWAY], certificates.services[GATEWAY], envoy_port=envoy_port
        ),
    )


def _addresses_of_services(
    addresses: Mapping[str, str], payments: tuple[str, ...]
) -> dict[str, str]:
    """`PAYMENT_ADDRESS` for services that call one, `PAYMENT_ADDRESSES` for the gateway."""
    variables: dict[str, str] = {}
    for service in OWNERS:
        processes = payments if service == "payment" else (service,)
        variables[f"{service.upper()}_ADDRESS"] = addresses[service]
        variables[f"{service.upper()}_ADDRESSES"] = ",".join(addresses[name] for name in processes)
    return variables


def _databases(
    layout: Layout, ports: Ports, profile: str, environment: Environment
) -> tuple[Store | None, dict[str, str]]:
    if profile != MYSQL or environment.text(databases.SERVER, ""):
        return None, databases.of_profile(profile, layout.data, environment)
    accounts = {
        service: mariadb.Account(
            databases.name(service), secrets.token_hex(16), databases.name(service)
        )
        for service in OWNERS
    }
    accounts_file = layout.run / "mariadb-accounts.sql"
    mariadb.write_accounts(accounts_file, list(accounts.values()))
    port = ports.take()
    command = mariadb.command(port, layout.mariadb, accounts_file, durable=True)
    urls = {service: mariadb.url(port, account) for service, account in accounts.items()}
    return Store(_program(layout, "mariadb", command), port), urls


def _valkey(layout: Layout, ports: Ports) -> Store:
    directory = layout.data / "valkey"
    directory.mkdir(mode=0o700, exist_ok=True)
    port = ports.take()
    return Store(_program(layout, "valkey", valkey.command(port, directory, persistent=True)), port)


def _envoy(layout: Layout, control_plane: str, tls: Tls, *, envoy_port: int) -> Program:
    given = Bootstrap(
        node_id="envoy",
        control_plane=Address.parse(control_plane),
        certificate_file=tls.certificate_file,
        key_file=tls.key_file,
        ca_file=tls.ca_file,
        admin=Address(HOST, envoy_port),
    )
    file = layout.run / "envoy.json"
    write_secret(file, json.dumps(bootstrap(given), indent=2))
    return _program(layout, "envoy", envoy_command(file, concurrency=1))


def _python(
    layout: Layout, name: str, module: str, *arguments: str, variables: Mapping[str, str]
) -> Program:
    # -P: what happens to lie in the working directory is not part of the program.
    return _program(layout, name, [sys.executable, "-P", "-m", module, *arguments], variables)


def _program(
    layout: Layout, name: str, command: list[str], variables: Mapping[str, str] | None = None
) -> Program:
    ours = {
        key if key.startswith(PREFIX) else PREFIX + key: value
        for key, value in (variables or {}).items()
    }
    return Program(name, command, {**os.environ, **ours}, layout.log(name))
