"""A vendor of the user service, and the terminals that stand in its shop."""

from __future__ import annotations

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import uuid4

from tallystick.user.v1 import (
    auth_service_pb2,
    terminal_service_pb2,
    user_pb2,
)
from tests.user_service import as_envoy_says

ENROLLED, REVOKED = user_pb2.Terminal.STATE_ENROLLED, user_pb2.Terminal.STATE_REVOKED


class Shop:
    """A vendor with terminals."""

    def __init__(self, users, vendor, metadata, site):
        self.users = users
        self.vendor = vendor
        self.metadata = metadata
        self.site = site

    @property
    def terminals(self):
        return self.users.terminals

    def request(self, key=None, request_id=None, **changes):
        key = key or Ed25519PrivateKey.generate()
        fields = {
            "display_name": "Counter",
            "site": self.site.name,
            "public_key": key.public_key().public_bytes_raw(),
        }
        terminal = user_pb2.Terminal(**fields | changes)
        return terminal_service_pb2.EnrollTerminalRequest(
            request_id=request_id or str(uuid4()), terminal=terminal
        )

    async def enrol(self, key=None, **changes):
        request = self.request(key, **changes)
        return (await self.terminals.EnrollTerminal(request, metadata=self.metadata)).terminal

    async def revoke(self, terminal, metadata=None):
        request = terminal_service_pb2.RevokeTerminalRequest(name=terminal.name, reason="lost")
        answer = await self.terminals.RevokeTerminal(request, metadata=metadata or self.metadata)
        return answer.terminal

    async def list(self, metadata=None, **asked):
        request = terminal_service_pb2.ListTerminalsRequest(parent=self.vendor.name, **asked)
        return await self.terminals.ListTerminals(request, metadata=metadata or self.metadata)


async def open_shop(users):
    """An approved vendor, signed in."""
    vendor = await users.approved("teashop", vendor=True)
    metadata = await users.person("teashop")
    (site,) = (await users.get_user(vendor.name, metadata)).sites
    return Shop(users, vendor, metadata, site)


def an_assertion(users, name, key, *, algorithm="EdDSA", without=(), **changes):
    now = int(users.clock().timestamp())
    claims = {
        "iss": name,
        "sub": name,
        "aud": "tallystick",
        "iat": now,
        "exp": now + 60,
        "jti": str(uuid4()),
    }
    claims = {claim: value for claim, value in (claims | changes).items() if claim not in without}
    return jwt.encode(claims, key, algorithm)


def sign_in(users, assertion):
    request = auth_service_pb2.AuthenticateTerminalRequest(assertion=assertion)
    return users.auth.AuthenticateTerminal(request)


async def signed_in(users, terminal, key):
    """The metadata of a terminal's calls."""
    return as_envoy_says(
        (await sign_in(users, an_assertion(users, terminal.name, key))).access_token
    )
