"""Which codes there are, in nine bits each: a binary fuse filter with 8-bit fingerprints.

It never misses a key it was built from, and takes one in 256 of others. Source: Graf and Lemire, "Binary Fuse Filters:
Fast and Smaller Than Xor Filters", 2022.

Layout, big-endian: seed 8 bytes, segment length 4, segment count 4, then one byte for each of
(segment count + 2) · segment length slots. Arithmetic is modulo 2⁶⁴. For a key k:
h = mix(k + seed); mix is murmur3's finalizer; slot 0 = (h · segment count · segment length) >> 64; slots 1 and 2 lie
one and two segments further, slot 1 xor ((h >> 18) & (segment length - 1)), slot 2 xor (h & (segment length - 1));
k is in the set when the three slots' bytes xor to the low byte of h xor (h >> 32).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection

_HEADER = struct.Struct(">QII")
_MASK = (1 << 64) - 1
_SEGMENT_MAX = 1 << 18
_ATTEMPTS = 100


def build(keys: Collection[int]) -> bytes:
    """The filter of some 64-bit keys; the same keys give the same bytes. None give none."""
    distinct = sorted(set(keys))
    if not distinct:
        return b""
    length, count = _sizes(len(distinct))
    for attempt in range(_ATTEMPTS):
        seed = _mix(attempt + 1)
        slots = _assign(distinct, seed, length, count)
        if slots is not None:
            return _HEADER.pack(seed, length, count) + bytes(slots)
    raise AssertionError


def contains(data: bytes, key: int) -> bool:
    """Whether a filter holds a key, or seems to."""
    if not data:
        return False
    seed, length, count = _HEADER.unpack_from(data)
    mixed = _mix(key + seed & _MASK)
    first, second, third = _slots(mixed, length, count)
    start = _HEADER.size
    return (data[start + first] ^ data[start + second] ^ data[start + third]) == _fingerprint(mixed)


def _sizes(keys: int) -> tuple[int, int]:
    """Segment length and segment count, as the paper has them for three slots a key."""
    if keys == 1:
        return 4, 1
    length = min(1 << math.floor(math.log(keys) / math.log(3.33) + 2.25), _SEGMENT_MAX)
    factor = max(1.125, 0.875 + 0.25 * math.log(1_000_000) / math.log(keys))
    count = max(1, math.ceil(round(keys * factor) / length) - 2)
    return length, count


def _assign(keys: list[int], seed: int, length: int, count: int) -> bytearray | None:
    """Bytes for all slots, or None where this seed leaves keys that share all their slots with others."""
    size = (count + 2) * length
    uses = [0] * size
    together = [0] * size
    for key in keys:
        mixed = _mix(key + seed & _MASK)
        for slot in _slots(mixed, length, count):
            uses[slot] += 1
            together[slot] ^= mixed
    alone = [slot for slot in range(size) if uses[slot] == 1]
    order: list[tuple[int, int]] = []
    while alone:
        slot = alone.pop()
        if uses[slot] != 1:
            continue
        mixed = together[slot]
        order.append((slot, mixed))
        for other in _slots(mixed, length, count):
            uses[other] -= 1
            together[other] ^= mixed
            if uses[other] == 1:
                alone.append(other)
    if len(order) != len(keys):
        return None
    slots = bytearray(size)
    for slot, mixed in reversed(order):
        first, second, third = _slots(mixed, length, count)
        slots[slot] = 0
        slots[slot] = _fingerprint(mixed) ^ slots[first] ^ slots[second] ^ slots[third]
    return slots


def _slots(mixed: int, length: int, count: int) -> tuple[int, int, int]:
    first = mixed * (count * length) >> 64
    inside = length - 1
    return (
        first,
        first + length ^ mixed >> 18 & inside,
        first + 2 * length ^ mixed & inside,
    )


def _fingerprint(mixed: int) -> int:
    return (mixed ^ mixed >> 32) & 255


def _mix(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33
