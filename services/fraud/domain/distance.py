"""How far apart two places on Earth are."""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt

# Metres. The mean radius (2a + b) / 3 of the WGS 84 ellipsoid: H. Moritz, "Geodetic Reference
# System 1980", Journal of Geodesy 74 (2000).
EARTH_RADIUS_METERS = 6_371_008.8


def distance_meters(
    latitude: float, longitude: float, other_latitude: float, other_longitude: float
) -> float:
    """The great-circle distance between two places, by the haversine formula.

    Exact on a sphere; on the real, flattened Earth at most 0.56 % off. It stays accurate for places
    metres apart, where the law of cosines loses all digits.

    Args:
        latitude: Degrees north, -90 to 90.
        longitude: Degrees east, -180 to 180.
        other_latitude: As `latitude`.
        other_longitude: As `longitude`.

    Source: R. W. Sinnott, "Virtues of the Haversine", Sky and Telescope 68 (1984), page 159.
    """
    phi, other_phi = radians(latitude), radians(other_latitude)
    half_chord = (
        sin((other_phi - phi) / 2) ** 2
        + cos(phi) * cos(other_phi) * sin(radians(other_longitude - longitude) / 2) ** 2
    )
    # Rounding can carry antipodes past 1, where there is no arc sine.
    return 2 * EARTH_RADIUS_METERS * asin(sqrt(min(1.0, half_chord)))
