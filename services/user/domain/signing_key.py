"""The life of signing keys, told from the clock alone: no step has to be taken for a key to move on.

PUBLISHED: in the key set, does not sign yet, so that gateways that learn keys with a delay know it first.
SIGNING:   the newest key whose `sign_time` has come.
RETIRED:   another key signs; stays in the set until the last token it signed has expired.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.user.domain.session import ACCESS_TOKEN_LIFE

# Replicas' clocks differ and a signature takes a moment: a key may sign a little after its successor began.
_LATE_SIGNATURE = timedelta(minutes=1)


class State(enum.Enum):
    """Where a key stands."""

    PUBLISHED = "PUBLISHED"
    SIGNING = "SIGNING"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair.

    Attributes:
        key_id: `kid`: the RFC 7638 thumbprint of the public key.
        number: 1, 2, 3, …: no two replicas can add the same one.
        public_jwk: The public key as a JSON Web Key.
        sealed_private_key: The private key, encrypted.
        create_time: UTC; since when it is published.
        sign_time: UTC; since when it signs.
    """

    key_id: str
    number: int
    public_jwk: str
    sealed_private_key: bytes
    create_time: datetime
    sign_time: datetime


def state(key: SigningKey, keys: Sequence[SigningKey], *, now: datetime) -> State:
    """Where one of the keys stands."""
    if key.sign_time > now:
        return State.PUBLISHED
    return State.SIGNING if key == signing(keys, now=now) else State.RETIRED


def signing(keys: Sequence[SigningKey], *, now: datetime) -> SigningKey:
    """The key that signs. There is one from the first start on."""
    return max(
        (key for key in keys if key.sign_time <= now), key=lambda key: (key.sign_time, key.number)
    )


def published(keys: Sequence[SigningKey], *, now: datetime) -> list[SigningKey]:
    """The keys that verify tokens, oldest first: what the key set holds."""
    ordered = sorted(keys, key=lambda key: (key.sign_time, key.number))
    successors = [*ordered[1:], None]
    return [
        key
        for key, successor in zip(ordered, successors, strict=True)
        if successor is None or now < successor.sign_time + ACCESS_TOKEN_LIFE + _LATE_SIGNATURE
    ]


def due(keys: Sequence[SigningKey], *, age_max: timedelta, now: datetime) -> bool:
    """A key must be added: there is none, or the newest has signed for `age_max`."""
    return not keys or now - max(key.sign_time for key in keys) >= age_max


def waiting(keys: Sequence[SigningKey], *, now: datetime) -> SigningKey | None:
    """The key that will sign soon, if there is one: asking for another meanwhile adds none."""
    return next((key for key in keys if key.sign_time > now), None)


def next_sign_time(keys: Sequence[SigningKey], *, publish: timedelta, now: datetime) -> datetime:
    """When a key added now signs. The first does at once: nobody has another one to go on with."""
    return now + publish if keys else now
