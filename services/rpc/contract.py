"""The rules written beside each RPC in the contract, as Python values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from tallystick.access.v1 import access_pb2

DEFAULT_TIMEOUT = timedelta(seconds=15)


class ContractError(Exception):
    """The contract contradicts itself or leaves a rule out. The message names the RPC."""


@dataclass(frozen=True)
class Rule:
    """One RPC's access rule.

    Attributes:
        path: `/{package}.{Service}/{Method}`, as on the wire.
        public: Anybody, with no token.
        roles: People and terminals, by role; `access_pb2.Role` values.
        callers: Services, by the name in their certificate.
        rate_class: `access_pb2.RateClass`; unspecified for internal RPCs.
        rate_cost: Tokens a call draws.
        idempotent: The gateway may retry it.
        timeout: The longest a call runs.
        streams: The answer is a stream.
    """

    path: str
    public: bool
    roles: frozenset[int]
    callers: frozenset[str]
    rate_class: int
    rate_cost: int
    idempotent: bool
    timeout: timedelta
    streams: bool

    @property
    def at_gateway(self) -> bool:
        """The gateway has a route for it."""
        return self.public or bool(self.roles)


def rule(method: MethodDescriptor) -> Rule:
    """Read one RPC's rule.

    Raises:
        ContractError: there is none, it opens the RPC to nobody, mixes `public` with roles, or leaves
            out the rate class of an RPC the gateway serves.
    """
    service = method.containing_service
    assert service is not None
    path = f"/{service.full_name}/{method.name}"
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        message = f"{path} has no (tallystick.access.v1.access) option."
        raise ContractError(message)
    access = options.Extensions[access_pb2.access]
    found = Rule(
        path=path,
        public=access.public,
        roles=frozenset(access.roles),
        callers=frozenset(access.callers),
        rate_class=access.rate_class,
        rate_cost=access.rate_cost or 1,
        idempotent=access.idempotent,
        timeout=access.timeout.ToTimedelta() if access.HasField("timeout") else DEFAULT_TIMEOUT,
        streams=method.server_streaming,
    )
    if not (found.public or found.roles or found.callers):
        message = f"{path} is open to nobody: give it public, roles or callers."
        raise ContractError(message)
    if found.public and found.roles:
        message = f"{path} is public and has roles: give it one of the two."
        raise ContractError(message)
    if found.at_gateway and found.rate_class == access_pb2.RATE_CLASS_UNSPECIFIED:
        message = f"{path} is served at the gateway and has no rate_class."
        raise ContractError(message)
    return found


def rules(services: Iterable[ServiceDescriptor]) -> list[Rule]:
    """The rules of every RPC of some services, in the contract's order."""
    return [rule(method) for service in services for method in service.methods]
