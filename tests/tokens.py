"""Access tokens as the user service issues them, and ways to get them wrong."""

from __future__ import annotations

import json
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from uuid_utils import uuid4

ISSUER = "https://tallystick"
AUDIENCE = "tallystick"


class SigningKey:
    """One ES256 key."""

    def __init__(self):
        self.key_id = uuid4().hex[:12]
        self.private = ec.generate_private_key(ec.SECP256R1())

    def public(self):
        """As a member of a JSON Web Key Set."""
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.private.public_key()))
        return {**key, "kid": self.key_id, "alg": "ES256", "use": "sig"}

    def sign(self, claims):
        return jwt.encode(claims, self.private, "ES256", headers={"kid": self.key_id})


def key_set(*keys):
    """A JSON Web Key Set."""
    return json.dumps({"keys": [key.public() for key in keys]})


def claims_of(*roles, subject=None, lives=900, **other):
    """What a token of a bearer with these roles claims."""
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": subject or f"users/{uuid4()}",
        "roles": list(roles),
        "iat": now,
        "iat_us": now * 1_000_000,
        "exp": now + lives,
        "jti": uuid4().hex,
        "sid": uuid4().hex,
        **other,
    }
