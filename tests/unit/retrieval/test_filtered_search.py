"""Searches with filters and removed photos equal a slow twin that decides photo by photo, in plain Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from drawn_conditions import conditions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_search import search_slowly

from placeray.retrieval import first_stage, popcount_scan
from placeray.retrieval.filters import Box, Circle, Filter, Polygon
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]
EARTH_M = 6_371_008.8
MOMENTS = (None, "2015", "2016", "2016-05", "2016-06-01", "2016-06-30T10:00", "2017-01-01T00:00:01")
WHERE = ((47.5, 8.5), (-33.9, 179.995), (0.0, 0.0))
SPREAD = 0.01  # degrees


class Town(NamedTuple):
    """Photos, a row each."""

    codes: Any
    floats: Any
    lat: Any  # NaN for unknown
    lon: Any
    heading: list[float | None]
    captured: list[str | None]


def draw_town(rng: np.random.Generator, count: int, bits: int, kind: str, where: tuple[float, float]) -> Town:
    codes = rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)
    floats = rng.standard_normal((count, 8))
    if kind != "random":  # a few places, seen again with other bits, or as they are
        places = rng.integers(0, 4, count)
        flips = rng.random((count, bits)) < (0.1 if kind == "clustered" else 0.0)
        codes = codes[places % count] ^ np.packbits(flips, axis=1)
        floats = floats[places % count] + (0.1 if kind == "clustered" else 0.0) * rng.standard_normal(
            (count, 8)
        )
    unit = (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)
    lat, lon = (value + rng.normal(0, SPREAD, count) for value in where)
    unknown = rng.random(count) < 0.1
    return Town(
        codes,
        unit,
        np.where(unknown, np.nan, lat),
        np.where(unknown, np.nan, (lon + 180) % 360 - 180),
        [None if rng.random() < 0.1 else float(rng.integers(0, 360)) for _ in range(count)],
        [MOMENTS[rng.integers(0, len(MOMENTS))] for _ in range(count)],
    )


@st.composite
def filters(draw: st.DrawFn, where: tuple[float, float]) -> Filter:
    def near(value: float) -> float:
        return value + draw(st.floats(-2 * SPREAD, 2 * SPREAD))

    area: Circle | Box | Polygon | None = None
    kind = draw(st.sampled_from(["none", "circle", "box", "polygon"]))
    if kind == "circle":
        radius = draw(st.floats(1, 4000))
        area = Circle(lat=near(where[0]), lon=(near(where[1]) + 180) % 360 - 180, radius_m=radius)
    elif kind == "box":
        south, north = sorted((near(where[0]), near(where[0])))
        west, east = sorted((near(where[1]), near(where[1])))
        area = Box(west=(west + 180) % 360 - 180, south=south, east=(east + 180) % 360 - 180, north=north)
    elif kind == "polygon":
        corners = draw(st.integers(3, 6))
        area = Polygon(points=tuple((near(where[0]), min(near(where[1]), 180.0)) for _ in range(corners)))
    return Filter(area=area, **draw(conditions()))


def distance_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    one, two = math.radians(lat1), math.radians(lat2)
    half = math.sin((two - one) / 2) ** 2
    half += math.cos(one) * math.cos(two) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * EARTH_M * math.asin(math.sqrt(half))


def in_area(area: Circle | Box | Polygon, lat: float, lon: float) -> bool:
    if math.isnan(lat):
        return False
    if isinstance(area, Circle):
        metres = distance_m(lat, lon, area.lat, area.lon)
        assume(abs(metres - area.radius_m) > 1e-5)
        return metres < area.radius_m
    if isinstance(area, Box):
        across = area.west <= lon <= area.east
        if area.west > area.east:
            across = lon >= area.west or lon <= area.east
        return across and area.south <= lat <= area.north
    inside = False
    for (lat1, lon1), (lat2, lon2) in zip(area.points, (*area.points[1:], area.points[0]), strict=True):
        if (lat1 > lat) != (lat2 > lat):
            inside ^= lon < lon1 + (lon2 - lon1) * (lat - lat1) / (lat2 - lat1)
    return inside


def fulfils(wanted: Filter, town: Town, photo: int) -> bool:
    heading, captured = town.heading[photo], town.captured[photo]
    if wanted.area is not None and not in_area(wanted.area, float(town.lat[photo]), float(town.lon[photo])):
        return False
    if wanted.heading_deg is not None:
        if heading is None:
            return False
        turn = abs(heading - wanted.heading_deg) % 360
        if min(turn, 360 - turn) > wanted.heading_tolerance_deg:
            return False
    if wanted.captured_from is None and wanted.captured_to is None:
        return True
    if captured is None:
        return False
    first, last = (
        captured + "0000-01-01T00:00:00"[len(captured) :],
        captured + "9999-12-31T23:59:59"[len(captured) :],
    )
    earliest, latest = wanted.captured_from or "0000", wanted.captured_to or "9999"
    return (
        first >= earliest + "0000-01-01T00:00:00"[len(earliest) :]
        and last <= latest + "9999-12-31T23:59:59"[len(latest) :]
    )


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    bits=st.sampled_from([64, 128, 512]),
    kind=st.sampled_from(["random", "clustered", "tied"]),
    num_shards=st.sampled_from([1, 3, 17]),
    top_k=st.integers(1, 70),
    extra=st.integers(0, 20),
    where=st.sampled_from(WHERE),
    many_short_pieces=st.booleans(),
)
def test_answers_equal_the_twin(
    make_descriptors: Make, make_map: Make, data: st.DataObject, seed: int, count: int, bits: int, kind: str,
    num_shards: int, top_k: int, extra: int, where: tuple[float, float], many_short_pieces: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    town = draw_town(rng, count, bits, kind, where)
    more = {"heading_deg": town.heading, "captured": town.captured}
    descriptors = make_descriptors(town.codes, town.floats, lat=town.lat, lon=town.lon, more=more)
    root = make_map(descriptors, rows_per_shard=-(-count // num_shards))
    gone = {photo for photo in range(count) if rng.random() < 0.2}
    if gone:
        run_update(root, UpdateConfig(remove=tuple(f"photo-{photo:06d}" for photo in gone)))
    wanted = [data.draw(filters(where)) for _ in range(4)]
    asked = draw_town(rng, 4, bits, "random", where)
    codes = np.where(rng.random((4, 1)) < 0.7, town.codes[rng.integers(0, count, 4)], asked.codes)
    with PlaceMap.open(root, num_threads=2) as place_map, pytest.MonkeyPatch.context() as patch:
        if many_short_pieces:  # a circle of a large map is another scan
            patch.setattr(first_stage, "MIN_ROWS_FOR_NUMBA", 1)
        order = [int(name[6:]) for name in place_map.rows(["image_id"])["image_id"].to_pylist()]
        allowed = [
            [row for row, photo in enumerate(order) if photo not in gone and fulfils(one, town, photo)]
            for one in wanted
        ]
        for floats in (None, asked.floats):
            expected = [
                search_slowly(
                    town.codes[order], town.floats[order], codes[q], None if floats is None else floats[q],
                    top_k, top_k + extra, allowed[q],
                )
                for q in range(4)
            ]  # fmt: skip
            for engine in ("auto", "faiss", *(["numba"] if popcount_scan.available() else [])):
                for some in (slice(0, 1), slice(1, 2), slice(0, 4)):
                    found = place_map.search(
                        codes[some],
                        None if floats is None else floats[some],
                        top_k=top_k,
                        shortlist=None if floats is None else top_k + extra,
                        within=wanted[some] if some != slice(1, 2) else wanted[1],
                        engine=engine,  # type: ignore[arg-type]
                    )
                    for rows, distances, answers in zip(
                        found.rows, found.hamming, expected[some], strict=True
                    ):
                        missing = [-1] * (top_k - len(answers))
                        assert rows.tolist() == [row for row, _ in answers] + missing
                        assert distances.tolist() == [distance for _, distance in answers] + missing
