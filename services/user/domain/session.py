"""Sessions, the refresh tokens that keep them open, and the claims of access tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from uuid_utils import UUID

from services.user.domain import refusals
from services.user.domain.user import User

ISSUER = "https://tallystick"
AUDIENCE = "tallystick"
ACCESS_TOKEN_LIFE = timedelta(minutes=15)
REFRESH_TOKEN_LIFE = timedelta(days=30)
# Clocks of replicas differ by less than this.
CLOCKS_APART_MAX = timedelta(minutes=1)
# A spent token that comes again within this ends its session; later it is merely unknown. A terminal that is
# open all day spends 96 a day, and every one of them is a row.
SPENT_TOKEN_MEMORY = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in and what follows from it: the family of its refresh tokens.

    Attributes:
        session_id: UUIDv7; the `sid` claim.
        user_id: Whose.
        create_time: UTC of the sign-in.
        expire_time: UTC; the newest refresh token's end.
        end_time: UTC; when it was ended. None while it is open.
    """

    session_id: UUID
    user_id: UUID
    create_time: datetime
    expire_time: datetime
    end_time: datetime | None


def start(session_id: UUID, user_id: UUID, *, now: datetime) -> Session:
    """A new sign-in."""
    return Session(session_id, user_id, now, now + REFRESH_TOKEN_LIFE, None)


def extend(session: Session, *, now: datetime) -> Session:
    """Keep a session open.

    Raises:
        Refusal: session_ended; at `expire_time` exactly it has ended.
    """
    if session.end_time is not None or now >= session.expire_time:
        raise refusals.session_ended()
    return replace(session, expire_time=now + REFRESH_TOKEN_LIFE)


def access_claims(
    user: User, session_id: UUID, token_id: UUID, *, now: datetime
) -> tuple[dict[str, Any], datetime]:
    """The claims of a person's access token issued now, and when it expires."""
    claims, expire_time = token_claims(f"users/{user.user_id}", user.role.value, token_id, now=now)
    return {**claims, "sid": str(session_id)}, expire_time


def token_claims(
    subject: str, role: str, token_id: UUID, *, now: datetime
) -> tuple[dict[str, Any], datetime]:
    """The claims of any access token issued now, and when it expires.

    `iat_us` is `iat` in microseconds: a sign-in in the second of a revocation must be told from one before it.
    """
    issued = now.replace(microsecond=0)
    expire_time = issued + ACCESS_TOKEN_LIFE
    epoch = datetime.fromtimestamp(0, now.tzinfo)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": subject,
        "roles": [role],
        "iat": (issued - epoch) // timedelta(seconds=1),
        "exp": (expire_time - epoch) // timedelta(seconds=1),
        "iat_us": (now - epoch) // timedelta(microseconds=1),
        "jti": str(token_id),
    }
    return claims, expire_time
