"""Reads the contract: every RPC that callers from outside may make, and the default buckets."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

import tallystick
from services.gateway.domain.access import Bucket, Route
from services.rpc.contract import Rule, rules
from tallystick.access.v1 import access_pb2


def services() -> list[ServiceDescriptor]:
    """Every service of every contract, in the order of their names.

    Found by looking through the generated modules: a new contract is served as soon as it is generated.
    """
    found = {
        descriptor.full_name: descriptor
        for module in _modules()
        for descriptor in importlib.import_module(module).DESCRIPTOR.services_by_name.values()
    }
    return [found[name] for name in sorted(found)]


def routes(described: Iterable[ServiceDescriptor]) -> list[Route]:
    """The RPCs that have a route, in the contract's order.

    Raises:
        ContractError: an RPC's rule is missing or contradicts itself.
    """
    return [_route(rule) for rule in rules(described) if rule.at_gateway]


def buckets() -> dict[str, Bucket]:
    """The contract's bucket of each rate class."""
    return {
        value.name.removeprefix("RATE_CLASS_"): _bucket(
            value.GetOptions().Extensions[access_pb2.bucket]
        )
        for value in access_pb2.RateClass.DESCRIPTOR.values
        if value.GetOptions().HasExtension(access_pb2.bucket)
    }


def _modules() -> Iterator[str]:
    for directory in tallystick.__path__:
        for path in Path(directory).rglob("*_pb2.py"):
            parts = path.relative_to(directory).with_suffix("").parts
            yield ".".join((tallystick.__name__, *parts))


def _route(rule: Rule) -> Route:
    # `/tallystick.{service}.v1.{Service}/{Method}`
    service = rule.path.split(".", 2)[1]
    return Route(
        path=rule.path,
        service=service,
        roles=tuple(
            sorted(access_pb2.Role.Name(role).removeprefix("ROLE_") for role in rule.roles)  # type: ignore[arg-type]
        ),
        rate_class=access_pb2.RateClass.Name(rule.rate_class).removeprefix("RATE_CLASS_"),  # type: ignore[arg-type]
        rate_cost=rule.rate_cost,
        idempotent=rule.idempotent,
        timeout=rule.timeout,
        streams=rule.streams,
    )


def _bucket(bucket: access_pb2.TokenBucket) -> Bucket:
    return Bucket(bucket.max_tokens, bucket.tokens_per_fill, bucket.fill_interval.ToTimedelta())
