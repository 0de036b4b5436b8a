"""Keys of small order are told from keys that prove something."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def square_root(n):
    root = pow(n, (P + 3) // 8, P)
    if root * root % P != n:
        root = root * pow(2, (P - 1) // 4, P) % P
    return root if root * root % P == n else None


def add(one, other):
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def times(number, point):
    total = (0, 1)
    for _ in range(number):
        total = add(total, point)
    return total


def points(y):
    """The points of the curve at a height."""
    x = square_root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
    return set() if x is None else {(x, y), (-x % P, y)}


def small():
    """The subgroup of order 8: multiples, by the large prime order, of points of the curve."""
    order = 2**252 + 27742317777372353535851937790883648493
    found = set()
    for y in range(2, 60):
        for point in points(y):
            total, bit = (0, 1), point
            for place in range(order.bit_length()):
                if order >> place & 1:
                    total = add(total, bit)
                bit = add(bit, bit)
            found.add(total)
    return found


def written(y):
    """Every way to write a height in 32 bytes: with either sign, and not reduced where there is room."""
    return [
        (height | sign << 255).to_bytes(32, "little")
        for height in (y, y + P)
        if height < 2**255
        for sign in (0, 1)
    ]


def test_every_point_of_small_order_is_weak_however_it_is_written():
    subgroup = small()
    assert len(subgroup) == 8
    assert {times(8, point) for point in subgroup} == {(0, 1)}

    encodings = {text for _, y in subgroup for text in written(y)}

    assert len(encodings) == 14
    assert all(keys.is_weak(text) for text in encodings)


def test_a_weak_key_verifies_what_nobody_signed():
    neutral = (1).to_bytes(32, "little")
    nobodys = neutral + bytes(32)

    Ed25519PublicKey.from_public_bytes(neutral).verify(nobodys, b"pay me")

    assert keys.is_weak(neutral)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_that_was_made_is_not_weak(seed):
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    assert not keys.is_weak(public.public_bytes_raw())
