"""The haversine distance against an independent geodesic on the real ellipsoid."""

from __future__ import annotations

from math import atan, atan2, cos, radians, sin, sqrt, tan

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.fraud.domain.distance import EARTH_RADIUS_METERS, distance_meters

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)

# A quarter of the sphere's circumference.
QUARTER_METERS = EARTH_RADIUS_METERS * 3.141592653589793 / 2


def vincenty_meters(latitude, longitude, other_latitude, other_longitude):
    """T. Vincenty, "Direct and inverse solutions of geodesics on the ellipsoid", Survey Review 23 (1975).

    WGS 84. None where the iteration does not converge: nearly antipodal places.
    """
    a, f = 6_378_137.0, 1 / 298.257223563
    b = (1 - f) * a
    u1 = atan((1 - f) * tan(radians(latitude)))
    u2 = atan((1 - f) * tan(radians(other_latitude)))
    difference = radians(other_longitude - longitude)
    turn = difference
    for _ in range(200):
        sin_sigma = sqrt(
            (cos(u2) * sin(turn)) ** 2 + (cos(u1) * sin(u2) - sin(u1) * cos(u2) * cos(turn)) ** 2
        )
        if sin_sigma == 0:
            return 0.0
        cos_sigma = sin(u1) * sin(u2) + cos(u1) * cos(u2) * cos(turn)
        sigma = atan2(sin_sigma, cos_sigma)
        sin_alpha = cos(u1) * cos(u2) * sin(turn) / sin_sigma
        cos2_alpha = 1 - sin_alpha**2
        cos_2m = cos_sigma - 2 * sin(u1) * sin(u2) / cos2_alpha if cos2_alpha > 1e-12 else 0.0
        c = f / 16 * cos2_alpha * (4 + f * (4 - 3 * cos2_alpha))
        before = turn
        turn = difference + (1 - c) * f * sin_alpha * (
            sigma + c * sin_sigma * (cos_2m + c * cos_sigma * (2 * cos_2m**2 - 1))
        )
        if abs(turn - before) < 1e-12:
            break
    else:
        return None
    u_squared = cos2_alpha * (a**2 - b**2) / b**2
    big_a = 1 + u_squared / 16384 * (
        4096 + u_squared * (-768 + u_squared * (320 - 175 * u_squared))
    )
    big_b = u_squared / 1024 * (256 + u_squared * (-128 + u_squared * (74 - 47 * u_squared)))
    delta = (
        big_b
        * sin_sigma
        * (
            cos_2m
            + big_b
            / 4
            * (
                cos_sigma * (2 * cos_2m**2 - 1)
                - big_b / 6 * cos_2m * (4 * sin_sigma**2 - 3) * (4 * cos_2m**2 - 3)
            )
        )
    )
    return b * big_a * (sigma - delta)


def test_the_reference_geodesic_reproduces_a_published_distance():
    # Flinders Peak to Buninyong, Geocentric Datum of Australia technical manual: 54,972.271 m (GRS 80).
    flinders = (-(37 + 57 / 60 + 3.72030 / 3600), 144 + 25 / 60 + 29.52440 / 3600)
    buninyong = (-(37 + 39 / 60 + 10.15610 / 3600), 143 + 55 / 60 + 35.38390 / 3600)

    assert vincenty_meters(*flinders, *buninyong) == pytest.approx(54_972.271, abs=0.01)


@given(latitudes, longitudes, latitudes, longitudes)
def test_it_is_within_six_thousandths_of_the_geodesic(lat, lon, other_lat, other_lon):
    geodesic = vincenty_meters(lat, lon, other_lat, other_lon)
    assume(geodesic is not None)

    # A millimetre of slack for places so close that both methods are down to their last digits.
    assert distance_meters(lat, lon, other_lat, other_lon) == pytest.approx(
        geodesic, rel=0.006, abs=0.001
    )


@given(latitudes, longitudes, st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_it_is_as_close_for_places_near_each_other(lat, lon, north, east):
    other_lat, other_lon = max(-90.0, min(90.0, lat + north)), max(-180.0, min(180.0, lon + east))
    geodesic = vincenty_meters(lat, lon, other_lat, other_lon)
    assume(geodesic is not None)

    assert distance_meters(lat, lon, other_lat, other_lon) == pytest.approx(
        geodesic, rel=0.006, abs=0.001
    )


@given(latitudes, longitudes, latitudes, longitudes)
def test_there_is_as_far_as_back(lat, lon, other_lat, other_lon):
    there = distance_meters(lat, lon, other_lat, other_lon)

    assert there == pytest.approx(distance_meters(other_lat, other_lon, lat, lon), abs=1e-3)
    assert 0 <= there <= 2 * QUARTER_METERS + 1e-6


@given(latitudes, longitudes)
def test_a_place_is_no_way_from_itself(lat, lon):
    assert distance_meters(lat, lon, lat, lon) == 0.0


@given(longitudes, longitudes)
def test_at_a_pole_every_longitude_is_the_same_place(lon, other_lon):
    assert distance_meters(90, lon, 90, other_lon) == pytest.approx(0, abs=1e-3)
    assert distance_meters(-90, lon, -90, other_lon) == pytest.approx(0, abs=1e-3)


@given(longitudes, longitudes)
def test_from_pole_to_pole_is_half_the_way_round(lon, other_lon):
    assert distance_meters(90, lon, -90, other_lon) == pytest.approx(2 * QUARTER_METERS)


def test_the_antimeridian_is_no_border():
    across = distance_meters(10, 179.9, 10, -179.9)

    assert across == pytest.approx(distance_meters(10, -0.1, 10, 0.1))
    assert distance_meters(10, 180, 10, -180) == pytest.approx(0, abs=1e-3)


@given(latitudes, st.floats(-180, 0))
def test_antipodes_are_half_the_way_round(lat, lon):
    # Rounding must not carry the formula past where it is defined.
    assert distance_meters(lat, lon, -lat, lon + 180) == pytest.approx(2 * QUARTER_METERS)


def test_one_degree_of_latitude_is_its_arc():
    assert distance_meters(0, 0, 1, 0) == pytest.approx(QUARTER_METERS / 90)
