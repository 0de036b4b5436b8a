"""What a terminal signs to sign in: a JSON Web Token with its own key (RFC 7523, EdDSA as in RFC 8037)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from uuid_utils import UUID

from services.user.domain import refusals
from services.user.domain.session import AUDIENCE

_ALGORITHM = "EdDSA"
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SUBJECT = re.compile(f"users/({_UUID})/terminals/({_UUID})")


@dataclass(frozen=True, slots=True)
class Assertion:
    """What a terminal says of itself.

    Attributes:
        vendor_id: Whose terminal.
        terminal_id: Which.
        assertion_id: Used once.
        issue_time: When it was signed, on the terminal's clock.
        expire_time: Until when it is meant to count.
    """

    vendor_id: UUID
    terminal_id: UUID
    assertion_id: UUID
    issue_time: datetime
    expire_time: datetime


def claimed_by(token: str) -> tuple[UUID, UUID]:
    """Which terminal (vendor, terminal) an assertion says it is of; not to be believed before `verify`.

    Raises:
        Refusal: assertion_invalid.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise refusals.assertion_invalid() from error
    found = _SUBJECT.fullmatch(str(claims.get("sub", "")))
    if found is None:
        raise refusals.assertion_invalid()
    return UUID(found[1]), UUID(found[2])


def verify(token: str, public_key: bytes) -> Assertion:
    """What a terminal has signed. Its times are not looked at.

    Raises:
        Refusal: assertion_invalid, whatever is wrong.
    """
    try:
        claims = jwt.decode(
            token,
            Ed25519PublicKey.from_public_bytes(public_key),
            algorithms=[_ALGORITHM],
            audience=AUDIENCE,
            options={
                "require": ["iss", "sub", "aud", "iat", "exp", "jti"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        if claims["iss"] != claims["sub"]:
            raise refusals.assertion_invalid()
        vendor_id, terminal_id = claimed_by(token)
        return Assertion(
            vendor_id,
            terminal_id,
            UUID(claims["jti"]),
            datetime.fromtimestamp(int(claims["iat"]), UTC),
            datetime.fromtimestamp(int(claims["exp"]), UTC),
        )
    # OSError: a time the C library cannot hold.
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise refusals.assertion_invalid() from error
