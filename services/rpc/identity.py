"""Who calls: established once at the server's edge, from the certificate and the gateway's verified token."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import grpc
from uuid_utils import UUID

from services.rpc import refusals
from tallystick.access.v1 import access_pb2

TRUST_DOMAIN = "spiffe://tallystick/"
GATEWAY = "gateway"
# Set by Envoy's jwt_authn from the token it verified; Envoy removes what a client sent under this name.
PAYLOAD_HEADER = "x-jwt-payload"


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified caller of an RPC.

    Attributes:
        subject: `users/{uuid}` for a person, `users/{uuid}/terminals/{uuid}` for a terminal of that vendor,
            `services/{name}` for a service, empty for anybody.
        roles: `access_pb2.Role` values of the token; empty for services.
        service: The service's name, when a service calls directly.
        token_issued_micros: When the token was issued, microseconds since 1970; 0 without a token.
        session: The session the token belongs to, its `sid` claim; empty without a token.
    """

    subject: str
    roles: frozenset[int]
    service: str
    token_issued_micros: int
    session: str = ""

    @property
    def user_id(self) -> UUID:
        """The id of the person, or of the terminal's vendor. Only for RPCs that the contract opens to roles."""
        return UUID(self.subject.split("/", 2)[1])

    @property
    def is_terminal(self) -> bool:
        """The caller is an enrolled terminal."""
        return access_pb2.ROLE_TERMINAL in self.roles

    @property
    def is_admin(self) -> bool:
        """The caller is an operator."""
        return access_pb2.ROLE_ADMIN in self.roles


ANYBODY = Caller("", frozenset(), "", 0)

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def caller() -> Caller:
    """The caller of the RPC being handled."""
    return _caller.get()


def set_caller(value: Caller) -> None:
    """For the server's edge: every RPC runs in a task, and so in a context, of its own."""
    _caller.set(value)


def peer_service(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """The name in the peer's certificate, or None when it is not one of ours."""
    for san in auth_context.get("x509_subject_alternative_name", ()):
        text = san.decode("utf-8", "replace")
        if text.startswith(TRUST_DOMAIN):
            return text.removeprefix(TRUST_DOMAIN)
    return None


def establish(context: grpc.aio.ServicerContext) -> Caller:  # type: ignore[type-arg]
    """Who calls, from the certificate and, for the gateway, the token it verified.

    Raises:
        Refusal: unauthenticated, when the certificate is none of ours or the payload is not readable.
    """
    peer = peer_service(context.auth_context())
    if peer is None:
        raise refusals.unauthenticated()
    if peer != GATEWAY:
        return Caller(f"services/{peer}", frozenset(), peer, 0)
    for key, value in context.invocation_metadata() or ():
        if key == PAYLOAD_HEADER:
            return _from_payload(value if isinstance(value, str) else value.decode())
    return ANYBODY


# A token is sent many times in its life; decoding it once saves 10 µs a call.
@lru_cache(maxsize=16_384)
def _from_payload(payload: str) -> Caller:
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        roles = frozenset(access_pb2.Role.Value(f"ROLE_{name}") for name in claims["roles"])
        issued = int(claims["iat_us"])
        return Caller(str(claims["sub"]), roles, "", issued, str(claims.get("sid", "")))
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise refusals.unauthenticated() from error
