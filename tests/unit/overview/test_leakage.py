"""Leakage equals the comparison of all pairs, across zone borders and the antimeridian, however it is cut."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.overview.figures import SourceFigures
from placeray.overview.known_overlaps import known_overlaps
from placeray.overview.leakage import EvaluationPhotos, Leaks

GEOD = pyproj.Geod(ellps="WGS84")
# A zone border, the antimeridian on the equator, high north, southern hemisphere, Norway's exception.
CENTRES = [(45.0, 12.0), (0.0, 180.0), (83.0, -30.0), (-33.9, 151.2), (60.0, 3.0)]


def photos(prefix: str, lat: Any, lon: Any, role: str = "train", place: Any = None) -> pa.Table:
    count = len(lat)
    return pa.table(
        {
            "image_id": pa.array([f"{prefix}{number:04d}" for number in range(count)], pa.string()),
            "role": pa.array([role] * count, pa.string()),
            "lat": pa.array(lat, pa.float64()),
            "lon": pa.array(lon, pa.float64()),
            "place_id": pa.array([None] * count if place is None else place, pa.string()),
        }
    )


def scattered(rng: np.random.Generator, count: int, centre: tuple[float, float]) -> tuple[Any, Any]:
    """Positions within some 150 m of a centre, longitudes in [-180, 180)."""
    lon, lat, _ = GEOD.fwd(
        np.full(count, centre[1]),
        np.full(count, centre[0]),
        rng.uniform(0, 360, count),
        rng.uniform(0, 150, count),
    )
    return np.asarray(lat), (np.asarray(lon) + 180) % 360 - 180


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(CENTRES), st.sampled_from([5.0, 25.0, 60.0]), st.integers(1, 30)
)
def test_leaks_are_those_of_all_pairs(
    seed: int, centre: tuple[float, float], radius_m: float, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    train_lat, train_lon = scattered(rng, 40, centre)
    query_lat, query_lon = scattered(rng, 15, centre)
    map_lat, map_lon = scattered(rng, 15, centre)
    places = [None if number % 5 == 0 else f"place-{number % 7}" for number in range(40)]
    evaluation = EvaluationPhotos()
    evaluation.add(photos("q", query_lat, query_lon, "query"))
    evaluation.add(photos("m", map_lat, map_lon, "database"))
    leaks = Leaks(evaluation, radius_m)
    table = photos("t", train_lat, train_lon, place=places)
    for start in range(0, 40, cut):
        leaks.add(table.slice(start, cut))
    found = leaks.figures("train", "eval", shown=100)

    # The twin: every training photo against every evaluation photo, along the ellipsoid.
    names = [f"q{number:04d}" for number in range(15)] + [f"m{number:04d}" for number in range(15)]
    lat, lon = np.concatenate([query_lat, map_lat]), np.concatenate([query_lon, map_lon])
    distances = np.array([
        GEOD.inv(np.full(30, train_lon[t]), np.full(30, train_lat[t]), lon, lat)[2] for t in range(40)
    ])  # fmt: skip
    near = distances <= radius_m
    assert found.photos == near.any(axis=1).sum()
    assert found.photos_in_places == sum(near[t].any() and places[t] is not None for t in range(40))
    assert found.places == len({places[t] for t in range(40) if near[t].any()} - {None})
    assert (found.queries, found.database) == (near[:, :15].any(axis=0).sum(), near[:, 15:].any(axis=0).sum())
    expected: dict[str, tuple[float, str]] = {}
    for t in np.flatnonzero(near.any(axis=1)):
        best = (float(distances[t].min()), names[int(distances[t].argmin())])
        key = places[t] or f"t{t:04d}"
        expected[key] = min(expected.get(key, best), best)
    listed = {place.place_id or place.image_id: place for place in found.nearest}
    assert set(listed) == set(expected)
    for key, (distance, name) in expected.items():
        assert listed[key].distance_m == pytest.approx(distance, abs=1e-4)
        assert listed[key].evaluation_image_id == name
        assert listed[key].evaluation_role == ("query" if name.startswith("q") else "database")
    assert [place.distance_m for place in found.nearest] == sorted(
        place.distance_m for place in found.nearest
    )
    assert len(list(leaks.rows("train", "eval"))) == len(expected)


def test_the_border_counts_as_inside() -> None:
    evaluation = EvaluationPhotos()
    evaluation.add(photos("q", [45.0], [12.0], "query"))
    for metres, inside in ((25.0, 1), (25.0 - 1e-4, 1), (25.0 + 1e-4, 0)):
        lon, lat, _ = GEOD.fwd(12.0, 45.0, 90.0, metres)
        leaks = Leaks(evaluation, 25.0)
        leaks.add(photos("t", [lat], [lon]))
        assert leaks.photos == inside, metres


def test_photos_without_a_position_take_no_part() -> None:
    evaluation = EvaluationPhotos()
    evaluation.add(photos("q", [None, 45.0], [None, 12.0], "query"))
    leaks = Leaks(evaluation, 25.0)
    leaks.add(photos("t", [None, 45.0], [12.0, 12.0]))
    assert (leaks.photos, leaks.figures("a", "b", 5).queries) == (1, 1)
    nothing = EvaluationPhotos()
    nothing.add(photos("q", [None], [None], "query"))
    assert nothing.tree is None


def test_known_overlaps_are_noted_when_both_sides_are_there() -> None:
    def source(name: str, *cities: str) -> SourceFigures:
        dataset, _, split = name.rpartition("/")
        numbers = dict.fromkeys(
            ("read", "kept", "places", "places_dropped_small", "photos_without_place", "with_position", "with_heading",
             "with_time"), 0
        )  # fmt: skip
        empty: dict[str, Any] = {
            key: {} for key in ("rejected", "roles", "years", "hours", "photos_per_place", "domains")
        }
        return SourceFigures(
            name=name, dataset=dataset, split=split, input="", positive_rule=None, headings=[],
            cities=dict.fromkeys(cities, 1), **numbers, **empty,
        )  # fmt: skip

    sf_xl, val = source("sf-xl/train", "san-francisco"), source("msls-val/official-740/val", "cph", "sf")
    gsv, msls = source("gsv-cities/train", "PRS", "London", "Miami"), source("msls/train", "paris", "tokyo")
    assert known_overlaps([sf_xl, gsv]) == []
    assert known_overlaps([sf_xl, val]) == [
        "SF-XL train covers San Francisco, the place of MSLS-val sf (sf-xl/train, msls-val/official-740/val)."
    ]
    (paris,) = known_overlaps([gsv, msls])
    assert paris.startswith("MSLS-train paris and GSV-Cities PRS are one city")
    tests = [source("tokyo247/test", "tokyo"), source("msls/test", "miami")]
    assert [text[:11] for text in known_overlaps([gsv, msls, *tests])] == [
        "MSLS-train ",
        "GSV-Cities ",
        "MSLS-train ",
    ]
