"""How payments travel to features.lua, and the state before them back."""

from __future__ import annotations

import struct
from hashlib import blake2b
from math import isfinite

import numpy as np

from services.fraud.features.observation import Label, Observation

# t, amount, latitude, longitude, metres to site, code age, flags, payment, vendor and device tag; then
# payer and vendor, each behind a byte with its length.
_PAYMENT = struct.Struct("<6dB12s8s8s")
_LABEL = struct.Struct("<dBB")
_HAS_POSITION, _HAS_DISTANCE, _IS_OFFLINE = 1, 2, 4
_NAME_BYTES_MAX = 200
# Half around the Earth, and a little.
_METERS_MAX = 2.1e7
_NO_DEVICE = bytes(8)

# The state before a payment, byte for byte as features.lua answers it.
STATE = np.dtype(
    [
        ("payer_t", "<f8"),
        ("place_t", "<f8"),
        ("counts", "<f4", 6),
        ("sums", "<f4", 6),
        ("last_amount", "<f4"),
        ("last_place", "<f4", 2),
        ("payments", "<f4"),
        ("mean", "<f4"),
        ("variance", "<f4"),
        ("greatest", "<f4"),
        ("home", "<f4", 2),
        ("home_weight", "<f4"),
        ("other_home", "<f4", 3),
        ("vendor_t", "<f8"),
        ("vendor_counts", "<f4", 4),
        ("vendor_kinds", "<f4", 4),
        ("vendor_payments", "<f4"),
        ("vendor_mean", "<f4"),
        ("vendor_distances", "<f4"),
        ("vendor_distance", "<f4"),
        ("vendor_label_t", "<f8"),
        ("vendor_last_fraud", "<f8"),
        ("vendor_first_fraud", "<f8"),
        ("vendor_frauds", "<f4", 2),
        ("vendor_labels", "<f4", 2),
        ("vendor_clean", "<f4"),
        ("vendor_run_since", "<f8"),
        ("vendor_run", "<f4"),
        ("vendor_own_frauds", "<f4"),
        ("payer_label_t", "<f8"),
        ("payer_last_fraud", "<f8"),
        ("payer_frauds", "<f4"),
        ("payer_clean", "<f4"),
        ("device_since", "<f8"),
        ("vendor_times", "<f4"),
        ("device_known", "<f4"),
        ("devices", "<f4"),
        ("late_counts", "<f4", 4),
        ("late_sums", "<f4", 4),
        ("vendor_late", "<f4", 2),
        # Each a time and a count, as incidents.lua keeps them.
        ("wrong_codes", "<f8", 2),
        ("own_duplicates", "<f8", 2),
        ("double_spends", "<f8", 2),
    ]
)

# What features.lua would answer for a payer and a vendor nobody has heard of.
_UNKNOWN = np.zeros((), STATE)
for _field in ("payer_t", "place_t", "last_amount", "vendor_t", "vendor_label_t", "payer_label_t"):
    _UNKNOWN[_field] = -1
for _field in ("vendor_last_fraud", "vendor_first_fraud", "vendor_run_since", "payer_last_fraud"):
    _UNKNOWN[_field] = -1
_UNKNOWN["device_known"] = -1


def unknown(observations: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The state of so many payments of which nothing is known."""
    return np.full(observations, _UNKNOWN)


def pack_payment(seen: Observation, *, latest: float) -> bytes:
    """One payment for features.lua, at `latest` at the latest."""
    flags, latitude, longitude, distance, age = 0, 0.0, 0.0, -1.0, -1.0
    position = seen.position
    if position is not None and position.is_possible():
        flags, latitude, longitude = _HAS_POSITION, position.latitude, position.longitude
        distance = known_distance(seen)
        if distance >= 0:
            flags |= _HAS_DISTANCE
    if seen.offline:
        flags |= _IS_OFFLINE
    if seen.code_age_seconds is not None and isfinite(seen.code_age_seconds):
        age = max(0.0, seen.code_age_seconds)
    payer, vendor = _name(seen.payer), _name(seen.vendor)
    return b"".join(
        (
            _PAYMENT.pack(
                event_time(seen, latest),
                seen.amount,
                latitude,
                longitude,
                distance,
                age,
                flags,
                blake2b(seen.payment.encode(), digest_size=12).digest(),
                _tag(vendor),
                _tag(seen.device.encode()) if seen.device else _NO_DEVICE,
            ),
            bytes((len(payer),)),
            payer,
            bytes((len(vendor),)),
            vendor,
        )
    )


def known_distance(seen: Observation) -> float:
    """Metres to the vendor's site; -1 when nothing that can be is known."""
    distance = seen.site_distance_meters
    return distance if distance is not None and 0 <= distance <= _METERS_MAX else -1.0


def event_time(seen: Observation, latest: float) -> float:
    """When a payment happened, as far as it is believed: not before 1970, not after `latest`.

    A clock a year ahead would otherwise age every counter of its payer and vendor by a year.
    """
    if not seen.occur_time >= 0:  # also NaN
        return 0.0
    return min(seen.occur_time, latest)


def pack_label(label: Label) -> bytes:
    """One label for labels.lua."""
    payer, vendor = _name(label.payer), _name(label.vendor)
    return b"".join(
        (
            _LABEL.pack(label.occur_time, label.fraud, label.like_payer),
            bytes((len(payer),)),
            payer,
            bytes((len(vendor),)),
            vendor,
        )
    )


def _name(text: str) -> bytes:
    name = text.encode()
    if not 0 < len(name) <= _NAME_BYTES_MAX:
        raise ValueError(
            f"A payer or vendor is named by 1 to {_NAME_BYTES_MAX} bytes, not {len(name)}."
        )
    return name


def _tag(name: bytes) -> bytes:
    # 64 bits: among the 256 vendors or 8 devices of one payer two never meet in practice.
    return blake2b(name, digest_size=8).digest()
