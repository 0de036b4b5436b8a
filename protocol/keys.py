"""Public keys that prove nothing."""

from __future__ import annotations

_PRIME = 2**255 - 19
_SIGN = 1 << 255
# The y coordinates of the eight points of Curve25519's Edwards form whose order divides eight: the point of order 1,
# the one of order 2, two of order 4, four of order 8 (found by doubling; the tests do it again).
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset({1, _PRIME - 1, 0, _ORDER_8, _PRIME - _ORDER_8})

# What to say of one.
WEAK = "is a point of small order, with which anybody can sign; make a new key pair"


def is_weak(public_key: bytes) -> bool:
    """Whether an Ed25519 public key (RFC 8032, 32 bytes) is a point of small order, however it is written.

    Anybody can make signatures that such a key verifies, over any message, so it must not stand for a person or a
    device. Verification as in RFC 8032 does not ask.
    """
    y = int.from_bytes(public_key, "little") & ~_SIGN
    return y % _PRIME in _SMALL_ORDER
