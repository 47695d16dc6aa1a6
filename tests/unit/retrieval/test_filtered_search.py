"""Filtered and unfiltered searches equal a slow twin that decides photo by photo, in plain Python."""

import contextlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from drawn_conditions import MOMENTS, conditions, looks_there, taken_then
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_search import as_stored, quantize_slowly

from placeray.geo import EARTH_RADIUS_M
from placeray.retrieval import first_stage, popcount_scan
from placeray.retrieval import place_map as place_map_module
from placeray.retrieval.filters import Box, Circle, Filter, Polygon
from placeray.retrieval.first_stage import Engine
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]
Area = Circle | Box | Polygon
ENGINES: list[Engine] = ["auto", "faiss", *(["numba"] if popcount_scan.available() else [])]  # type: ignore[list-item]
DIM = 8
# Latitude, longitude and spread in degrees; the last is the whole world.
PLACES = [
    (47.0, 8.0, 0.01), (0.0, 0.0, 0.5), (-33.9, 179.998, 0.01), (64.0, -179.9, 2.0), (89.7, 20.0, 0.4),
    (0.0, 0.0, 90.0),
]  # fmt: skip
DATE_LINE = 179.999_999


class Photo(NamedTuple):
    """What a filter can ask about a photo."""

    lat: float | None
    lon: float | None
    heading_deg: float | None
    captured: str | None


class Town(NamedTuple):
    """Photos and what is asked about them."""

    codes: Any
    floats: Any
    photos: list[Photo]
    query_codes: Any
    query_floats: Any


def wrapped(lon: float) -> float:
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def draw_town(rng: np.random.Generator, count: int, asked: int, bits: int, style: str, place: Any) -> Town:
    """Photos in one of three styles; a query resembles one of them, or none."""
    total = count + asked
    if style == "random":
        codes = rng.integers(0, 256, (total, bits // 8), dtype=np.uint8)
        floats = rng.standard_normal((total, DIM))
    else:
        centres = rng.integers(0, 4, total)
        codes = rng.integers(0, 256, (4, bits // 8), dtype=np.uint8)[centres]
        share = 0.05 if style == "clustered" else 1.5 / bits
        codes ^= np.packbits(rng.random((total, bits)) < share, axis=1)
        if style == "clustered":
            floats = rng.standard_normal((4, DIM))[centres] + 0.3 * rng.standard_normal((total, DIM))
        else:
            floats = np.zeros((total, DIM))
            for row in floats:
                row[rng.permutation(DIM)[:4]] = rng.choice([-0.5, 0.5], 4)
    floats = (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)
    photos = [draw_photo(rng, *place) for _ in range(count)]
    for row in np.flatnonzero(rng.random(count) < 0.2).tolist():
        twin = photos[rng.integers(0, count)]
        photos[row] = photos[row]._replace(lat=twin.lat, lon=twin.lon)
    return Town(codes[:count], floats[:count], photos, codes[count:], floats[count:])


def draw_photo(rng: np.random.Generator, lat: float, lon: float, spread: float) -> Photo:
    lat, lon = lat + spread * rng.uniform(-1, 1), lon + 2 * spread * rng.uniform(-1, 1)
    if abs(lat) > 90:
        lat, lon = math.copysign(180, lat) - lat, lon + 180
    if abs(abs(lon) - 180) < 2 * spread and rng.random() < 0.1:
        lon = float(rng.choice([-180.0, 180.0]))
    known, looks, dated = rng.random(3) < 0.85
    return Photo(
        lat if known else None,
        wrapped(lon) if known else None,
        float(rng.integers(0, 360)) if looks else None,
        str(rng.choice(MOMENTS)) if dated else None,
    )


@st.composite
def filters(
    draw: st.DrawFn, photos: list[Photo], place: tuple[float, float, float], alone: bool = False
) -> Filter:
    """Any conditions; with `alone` a small circle and nothing else."""
    lat, lon, spread = place
    known = [(photo.lat, photo.lon) for photo in photos if photo.lat is not None and photo.lon is not None]

    def position() -> tuple[float, float]:
        if known and draw(st.integers(0, 3)) == 0:
            return draw(st.sampled_from(known))
        north, east = draw(st.floats(-1.2, 1.2)), draw(st.floats(-2.4, 2.4))
        return max(-90.0, min(90.0, lat + spread * north)), wrapped(lon + spread * east)

    kind = "circle" if alone else draw(st.sampled_from(["none", "circle", "box", "polygon"]))
    area: Area | None = None
    if kind == "circle":
        middle = position()
        radius = min(spread * 110_000 * 10 ** draw(st.floats(-2.0, 0.5)), 1e5 if alone else 1.5e7)
        assume(not alone or abs(middle[0]) <= 75)
        area = Circle(lat=middle[0], lon=middle[1], radius_m=radius)
    elif kind == "box":
        (south, west), (north, east) = position(), position()
        area = Box(west=west, south=min(south, north), east=east, north=max(south, north))
    elif kind == "polygon":
        corners = [position() for _ in range(draw(st.integers(3, 6)))]
        if abs(lon) > 170:
            corners = [(y, abs(x) if lon > 0 else -abs(x)) for y, x in corners]
        corners = [(y, max(-DATE_LINE, min(DATE_LINE, x))) for y, x in corners]
        ends = zip(corners, [*corners[1:], corners[0]], strict=True)
        assume(all(abs(a[1] - b[1]) <= 180 for a, b in ends))
        area = Polygon(points=tuple(corners))
    if alone:
        return Filter(area=area)
    return Filter(area=area, **draw(conditions()))


def metres(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    phi1, phi2, turn = math.radians(lat1), math.radians(lat2), math.radians(lon2 - lon1)
    half = math.sin((phi2 - phi1) / 2) ** 2 + math.cos(phi1) * math.cos(phi2) * math.sin(turn / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(min(half, 1.0)))


def lies_in(area: Area, lat: float, lon: float) -> bool:
    if isinstance(area, Circle):
        distance = metres(area.lat, area.lon, lat, lon)
        assume(abs(distance - area.radius_m) > 1e-6)
        return distance < area.radius_m
    if isinstance(area, Box):
        across = area.west <= lon <= area.east or (abs(lon) == 180 and 180 in (-area.west, area.east))
        if area.west > area.east:
            across = lon >= area.west or lon <= area.east
        return across and area.south <= lat <= area.north
    inside = False
    for (lat1, lon1), (lat2, lon2) in zip(area.points, (*area.points[1:], area.points[0]), strict=True):
        along = (lat - lat1) * (lat2 - lat1) + (lon - lon1) * (lon2 - lon1)
        share = max(0.0, min(1.0, along / (math.dist((lat1, lon1), (lat2, lon2)) ** 2 or 1.0)))
        nearest = (lat1 + share * (lat2 - lat1), lon1 + share * (lon2 - lon1))
        assume(math.dist((lat, lon), nearest) > 1e-10)
        if (lon1 > lon) != (lon2 > lon) and lat < lat1 + (lat2 - lat1) * (lon - lon1) / (lon2 - lon1):
            inside = not inside
    return inside


def fulfils(photo: Photo, wanted: Filter | None) -> bool:
    if wanted is None:
        return True
    if wanted.area is not None and (
        photo.lat is None or photo.lon is None or not lies_in(wanted.area, photo.lat, photo.lon)
    ):
        return False
    heading, tolerance = wanted.heading_deg, wanted.heading_tolerance_deg
    if not looks_there(photo.heading_deg, heading, tolerance):
        return False
    return taken_then(photo.captured, wanted.captured_from, wanted.captured_to)


def similarity_slowly(stored: Any, query: Any, store: str) -> float:
    if store == "float32":
        return math.fsum(float(a) * float(b) for a, b in zip(stored, query, strict=True))
    (ours, scale), (theirs, other) = quantize_slowly(stored), quantize_slowly(query)
    return sum(a * b for a, b in zip(ours, theirs, strict=True)) * (float(scale) * float(other))


def best_slowly(
    town: Town, rows: list[tuple[int, int]], q: int, top_k: int, shortlist: int, store: str | None
) -> list[tuple[int, int, float]]:
    """(row, Hamming distance, similarity) of the (row, photo) `rows`, best first; without a store by code alone."""
    distances = {row: int(np.unpackbits(town.codes[i] ^ town.query_codes[q]).sum()) for row, i in rows}
    cut = sorted(rows, key=lambda each: (distances[each[0]], each[0]))
    if store is None:
        return [(row, distances[row], math.nan) for row, _ in cut[:top_k]]
    found = [
        (row, distances[row], similarity_slowly(as_stored(town.floats[i]), town.query_floats[q], store))
        for row, i in cut[:shortlist]
    ]
    ranked = sorted(found, key=lambda each: -each[2])
    gaps = [one[2] - two[2] for one, two in pairwise(ranked)]
    assume(store == "int8" or all(gap == 0 or gap > 1e-6 for gap in gaps))
    return ranked[:top_k]


@contextlib.contextmanager
def compiled_paths(wanted: bool) -> Iterator[mock.Mock]:
    """A map as if it were large enough for every compiled loop, or a process that has none; counts scans of pieces."""
    used = mock.Mock(side_effect=first_stage.search_pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place_map_module, "search_pieces", used)
        if wanted:
            assert popcount_scan.available()
            patch.setattr(first_stage, "MIN_ROWS_FOR_NUMBA", 1)
            patch.setattr(first_stage, "MIN_ROWS_PER_THREAD", 7)
        else:
            patch.setattr(popcount_scan, "loaded", lambda: False)
        yield used


COMPILED = [
    False,
    pytest.param(
        True, marks=pytest.mark.skipif(not popcount_scan.available(), reason="numba is not installed")
    ),
]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("compiled", COMPILED)
def test_search_equals_the_twin(make_descriptors: Make, make_map: Make, compiled: bool, alone: bool) -> None:
    """With `alone` by small circles only, which large maps scan in pieces."""
    pieces = []

    @settings(max_examples=40, deadline=None)
    @given(
        data=st.data(),
        seed=st.integers(0, 2**32 - 1),
        count=st.integers(1, 60),
        asked=st.sampled_from([1, 2, 5]),
        bits=st.sampled_from([64, 128, 512]),
        style=st.sampled_from(["random", "clustered", "tied"]),
        store=st.sampled_from(["int8", "int8", "float32"]),
        num_shards=st.sampled_from([1, 3, 17]),
        place=st.sampled_from(PLACES),
        removal=st.sampled_from(["none", "some", "shard", "most"]),
        added=st.booleans(),
    )
    def check(
        data: st.DataObject, seed: int, count: int, asked: int, bits: int, style: str, store: str,
        num_shards: int, place: tuple[float, float, float], removal: str, added: bool,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        town = draw_town(rng, count, asked, bits, style, place)
        root = build(make_descriptors, make_map, town, store, -(-count // num_shards), added)
        with PlaceMap.open(root) as place_map:
            names = place_map.rows(["image_id"])["image_id"].to_pylist()
        gone = removed(rng, names, removal, -(-count // num_shards))
        if gone:
            run_update(root, UpdateConfig(remove=tuple(gone)))
        each = data.draw(st.booleans())
        drawn = filters(town.photos, place, alone)
        one = data.draw(drawn if alone else st.none() | drawn)
        within = [data.draw(drawn) for _ in range(asked)] if each else one
        top_k = data.draw(st.integers(1, count + 10))
        shortlist = data.draw(st.none() | st.integers(top_k, top_k + 30))
        photos = [(row, int(name.removeprefix("photo-"))) for row, name in enumerate(names)]
        replaced = len(names) - count
        assert sorted(photo for _, photo in photos[replaced:]) == list(range(count))
        live = [(row, photo) for row, photo in photos[replaced:] if names[row] not in gone]
        allowed = [
            [(row, photo) for row, photo in live if fulfils(town.photos[photo], wanted)]
            for wanted in (within if isinstance(within, list) else [within] * asked)
        ]
        with compiled_paths(compiled) as used, PlaceMap.open(root, num_threads=3) as place_map:
            assert place_map.num_live == len(live)
            for kind in (store, None):
                expected = [
                    best_slowly(town, rows, q, top_k, shortlist or max(top_k, 100), kind)
                    for q, rows in enumerate(allowed)
                ]
                for engine in ENGINES:
                    found = place_map.search(
                        town.query_codes, town.query_floats if kind else None, top_k=top_k,
                        shortlist=shortlist, mode="exact", within=within, engine=engine,
                    )  # fmt: skip
                    for q, answers in enumerate(expected):
                        missing = top_k - len(answers)
                        assert found.rows[q].tolist() == [row for row, _, _ in answers] + [-1] * missing
                        assert found.hamming[q].tolist() == [far for _, far, _ in answers] + [-1] * missing
                        alike = [value for _, _, value in answers] + [math.nan] * missing
                        np.testing.assert_allclose(found.similarity[q], alike, rtol=1e-6, atol=2e-7)
        pieces.append(used.call_count)

    check()
    assert sum(pieces) > 0 or not (compiled and alone)
    assert compiled or not sum(pieces)


def build(
    make_descriptors: Make, make_map: Make, town: Town, store: str, rows_per_shard: int, added: bool
) -> str:
    """A map of all photos; the first half may have been replaced by an update, which brings the others."""
    count = len(town.photos)
    columns = {name: [getattr(photo, name) for photo in town.photos] for name in ("heading_deg", "captured")}
    where = {
        name: np.array([getattr(photo, name) for photo in town.photos], dtype=float)
        for name in ("lat", "lon")
    }
    if not added or count < 2:
        whole = make_descriptors(town.codes, town.floats, **where, more=columns, num_files=min(count, 2))
        return make_map(whole, rows_per_shard=rows_per_shard, descriptor_type=store)
    half = count // 2
    first = make_descriptors(
        town.codes[:half], town.floats[:half], **{name: value[:half] for name, value in where.items()},
        more={name: value[:half] for name, value in columns.items()},
    )  # fmt: skip
    root = make_map(first, rows_per_shard=rows_per_shard, descriptor_type=store)
    whole = make_descriptors(town.codes, town.floats, **where, more=columns)
    run_update(root, UpdateConfig(replace=True), whole)
    return root


def removed(rng: np.random.Generator, names: list[str], removal: str, rows_per_shard: int) -> set[str]:
    """Names to remove: some, all of one run of rows as a shard has, or all but one."""
    count = len(names)
    if removal == "some":
        return {name for name in names if rng.random() < 0.2}
    if removal == "shard":
        start = rows_per_shard * int(rng.integers(0, -(-count // rows_per_shard)))
        return set(names[start : start + rows_per_shard])
    return set(names[1:]) if removal == "most" else set()
