"""Positions: UTM against published names and an independent formula, zones, distances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placeray import geo

LAT = st.floats(-79.9, 83.9)
LON = st.floats(-179.9, 179.9)


def test_utm_of_an_sf_xl_name() -> None:
    # @0544388.51@4172758.25@10@S@037.70098@-122.49646: degrees have 5 decimals, so metres agree to about one.
    utm = geo.to_utm([37.70098], [-122.49646])
    assert utm.zone.tolist() == ["10S"]
    assert utm.east[0] == pytest.approx(544388.51, abs=1.0)
    assert utm.north[0] == pytest.approx(4172758.25, abs=1.0)


@pytest.mark.parametrize(
    ("lat", "lon", "zone"),
    [
        (40.44, -80.0, "17T"),
        (55.7, 12.5, "33U"),
        (-33.9, 151.2, "56H"),
        (60.4, 5.3, "32V"),  # Bergen: south-west Norway belongs to zone 32
        (78.2, 15.6, "33X"),  # Svalbard has no zone 32
        (78.2, 8.0, "31X"),
        (0.0, 0.1, "31N"),
        (-0.1, 0.1, "31M"),
        (83.9, -179.9, "01X"),
        (10.0, 180.0, "1P"),
    ],
)
def test_zones(lat: float, lon: float, zone: str) -> None:
    assert geo.utm_zone([lat], [lon]).tolist() == [zone.lstrip("0")]


@given(LAT, LON)
def test_degrees_survive_the_way_there_and_back(lat: float, lon: float) -> None:
    utm = geo.to_utm([lat], [lon])
    back = geo.from_utm(utm.east, utm.north, utm.zone)
    assert back[0][0] == pytest.approx(lat, abs=1e-7)
    assert back[1][0] == pytest.approx(lon, abs=1e-7)


@given(LAT.filter(lambda lat: abs(lat) < 80), LON, st.floats(-400, 400), st.floats(-400, 400))
def test_metres_of_utm_are_metres_on_the_ground(
    lat: float, lon: float, east_m: float, north_m: float
) -> None:
    utm = geo.to_utm([lat], [lon])
    lats, lons = geo.from_utm(
        utm.east[0] + np.array([0, east_m]), utm.north[0] + np.array([0, north_m]), utm.zone[0]
    )
    measured = geo.distance_m(lats[0], lons[0], lats[1], lons[1])
    # Scale of UTM up to 0.1 % inside a zone, more in the wide ones of the far north; a sphere is 0.6 % off.
    assert measured == pytest.approx(np.hypot(east_m, north_m), rel=0.02, abs=0.01)


def test_bands_do_not_cut_the_grid_but_hemispheres_and_zones_do() -> None:
    assert geo.zone_key(["36R", "36S", "36N", "36M", "7C"]).tolist() == ["36n", "36n", "36n", "36s", "07s"]


def test_a_zone_can_be_forced_and_none_means_no_position() -> None:
    utm = geo.to_utm([55.7, 55.7], [11.999, 12.001], "33U")
    assert utm.zone.tolist() == ["33U", "33U"]
    assert utm.east[1] - utm.east[0] == pytest.approx(125.7, abs=0.5)
    assert np.isnan(geo.from_utm([1.0], [2.0], [""])[0][0])


def test_distance_is_along_great_circles() -> None:
    assert geo.distance_m(0, 0, 0, 180) == pytest.approx(np.pi * geo.EARTH_RADIUS_M)
    assert geo.distance_m(0, 179.9995, 0, -179.9995) == pytest.approx(111.19, abs=0.01)
