"""The gateway's settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from services.environment import PREFIX, Environment, SettingError, Tls
from services.gateway.domain.access import Bucket
from services.gateway.domain.edge import Address, Edge

_ADDRESS = re.compile(r"[^\s,]+:\d{1,5}")
_ORIGIN = re.compile(r"https?://[^/\s*]+")
_PERCENT = re.compile(r"100(\.0+)?|\d{1,2}(\.\d+)?")
_BUCKET = re.compile(r"(\d+)/(\d+)/(\d+)")


@dataclass(frozen=True)
class Settings:
    """What one control plane is started with.

    Attributes:
        listen: `host:port` where Envoy asks for its configuration; port 0 takes a free one.
        tls: The gateway's own certificate, of both the control plane and Envoy.
        public_certificate_file: What clients see, PEM.
        public_key_file: Its key.
        redis_url: Where the user service's events are read.
        backends: Where each service is that calls are routed to.
        edge: How clients are faced.
        log_level: As `logging` names them.
    """

    listen: str
    tls: Tls
    public_certificate_file: Path
    public_key_file: Path
    redis_url: str
    backends: Mapping[str, tuple[Address, ...]]
    edge: Edge
    log_level: str


def read(
    environment: Environment, services: Iterable[str], buckets: Mapping[str, Bucket]
) -> Settings:
    """Read them.

    Args:
        environment: The variables.
        services: Those that calls are routed to: each needs `{SERVICE}_ADDRESSES`.
        buckets: The contract's; `RATE_{CLASS}` overrides one as `max/fill/interval_ms`, such as `10/1/6000`.

    Raises:
        SettingError: a variable is missing or holds what it cannot mean.
    """
    tls = Tls.read(environment)
    public = bool(environment.text("PUBLIC_TLS_CERT_FILE", ""))
    collector = environment.text("OTLP_ADDRESS", "")
    return Settings(
        listen=environment.address("LISTEN"),
        tls=tls,
        public_certificate_file=environment.path("PUBLIC_TLS_CERT_FILE")
        if public
        else tls.certificate_file,
        public_key_file=environment.path("PUBLIC_TLS_KEY_FILE") if public else tls.key_file,
        redis_url=environment.text("REDIS_URL"),
        backends={service: _addresses(environment, service) for service in services},
        edge=Edge(
            listen=_ip_address(environment, "PUBLIC_LISTEN", "0.0.0.0:8443"),
            web_origins=_origins(environment),
            buckets={
                name: _bucket(environment, f"RATE_{name}", bucket)
                for name, bucket in buckets.items()
            },
            rate_subjects_max=environment.integer("RATE_SUBJECTS_MAX", 200_000, at_least=1),
            trusted_proxies=environment.integer("TRUSTED_PROXIES", 0),
            collector=Address.parse(environment.address("OTLP_ADDRESS")) if collector else None,
            trace_percent=_percent(environment, "TRACE_PERCENT", "1"),
        ),
        log_level=environment.text("LOG_LEVEL", "INFO"),
    )


def _addresses(environment: Environment, service: str) -> tuple[Address, ...]:
    name = f"{service.upper()}_ADDRESSES"
    text = environment.text(name)
    parts = _list(text)
    if not parts or not all(_ADDRESS.fullmatch(part) for part in parts):
        raise SettingError(
            f"{PREFIX}{name} is {text!r}. Give host:port, comma separated, such as "
            "127.0.0.1:50051,127.0.0.1:50052."
        )
    return tuple(Address.parse(part) for part in parts)


def _ip_address(environment: Environment, name: str, default: str) -> Address:
    address = Address.parse(environment.address(name, default))
    if not address.is_ip:
        raise SettingError(
            f"{PREFIX}{name} is {address.host!r}. Give an IP address of this machine to listen on, "
            "such as 0.0.0.0:8443."
        )
    return address


def _origins(environment: Environment) -> tuple[str, ...]:
    origins = _list(environment.text("WEB_ORIGINS", ""))
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise SettingError(
                f"{PREFIX}WEB_ORIGINS holds {origin!r}. Give scheme and host as browsers send them, comma "
                "separated, with neither path nor *, such as https://shop.example."
            )
    return tuple(origins)


def _bucket(environment: Environment, name: str, default: Bucket) -> Bucket:
    text = environment.text(name, "")
    if not text:
        return default
    found = _BUCKET.fullmatch(text)
    if found is None:
        raise SettingError(
            f"{PREFIX}{name} is {text!r}. Give tokens at most, tokens per fill and milliseconds between fills, "
            "such as 10/1/6000."
        )
    max_tokens, tokens_per_fill, interval = map(int, found.groups())
    return Bucket(max_tokens, tokens_per_fill, timedelta(milliseconds=interval))


def _percent(environment: Environment, name: str, default: str) -> float:
    text = environment.text(name, default)
    if not _PERCENT.fullmatch(text):
        raise SettingError(f"{PREFIX}{name} is {text!r}. Give a percentage from 0 to 100.")
    return float(text)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
