"""A filtered search answers like a search of the photos that fulfil the filter, found by looking at each of them."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from drawn_conditions import MOMENTS, conditions, looks_there, taken_then
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from placeray.config import load_config
from placeray.errors import MapError
from placeray.geo import EARTH_RADIUS_M, distance_m
from placeray.retrieval import first_stage, popcount_scan
from placeray.retrieval import place_map as place_map_module
from placeray.retrieval.cells import hilbert_cells
from placeray.retrieval.filters import Box, Circle, Filter, Polygon, Positions, cover_area, select
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]


def metres(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Between two positions on the sphere, by the angle between their unit vectors."""

    def unit(lat: float, lon: float) -> tuple[float, float, float]:
        lat, lon = math.radians(lat), math.radians(lon)
        return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)

    chord = math.dist(unit(lat1, lon1), unit(lat2, lon2))
    return 2 * EARTH_RADIUS_M * math.asin(min(chord / 2, 1.0))


def fulfils(photo: dict[str, Any], wanted: Filter) -> bool:
    """The filter, one photo at a time."""
    area = wanted.area
    if area is not None:
        if photo["lat"] is None:
            return False
        if isinstance(area, Circle):
            if metres(photo["lat"], photo["lon"], area.lat, area.lon) > area.radius_m:
                return False
        elif isinstance(area, Box):
            west_of_east = photo["lon"] <= area.east
            east_of_west = photo["lon"] >= area.west
            across = (
                (west_of_east or east_of_west) if area.west > area.east else (west_of_east and east_of_west)
            ) or (abs(photo["lon"]) == 180 and 180 in (-area.west, area.east))
            if not (across and area.south <= photo["lat"] <= area.north):
                return False
    if not looks_there(photo["heading_deg"], wanted.heading_deg, wanted.heading_tolerance_deg):
        return False
    return taken_then(photo["captured"], wanted.captured_from, wanted.captured_to)


def draw_photos(
    rng: np.random.Generator, count: int, lat: float, lon: float, spread: float
) -> dict[str, list[Any]]:
    around = lon + rng.normal(0, spread, count) / max(math.cos(math.radians(lat)), 0.05)
    photos: dict[str, list[Any]] = {
        "lat": np.clip(lat + rng.normal(0, spread, count), -90, 90).tolist(),
        "lon": ((around + 180) % 360 - 180).tolist(),
        "heading_deg": [None if rng.random() < 0.1 else float(rng.integers(0, 360)) for _ in range(count)],
        "captured": [None if rng.random() < 0.1 else str(rng.choice(MOMENTS)) for _ in range(count)],
    }
    if abs(lon) + spread > 180:
        for row in np.flatnonzero(rng.random(count) < 0.05):
            photos["lon"][row] = float(rng.choice([-180.0, 180.0]))
    for row in np.flatnonzero(rng.random(count) < 0.1):
        photos["lat"][row] = photos["lon"][row] = None
    return photos


@st.composite
def filters(draw: st.DrawFn, lat: float, lon: float, spread: float) -> Filter:
    def near(value: float) -> Any:
        return st.floats(value - 2 * spread, value + 2 * spread)

    def wrapped(value: float) -> float:
        return (value + 180) % 360 - 180

    kind = draw(st.sampled_from(["none", "circle", "box"]))
    area: Circle | Box | None = None
    if kind == "circle":
        radius = draw(st.floats(1.0, spread * 300_000))
        area = Circle(lat=max(-90, min(90, draw(near(lat)))), lon=wrapped(draw(near(lon))), radius_m=radius)
    elif kind == "box":
        south, north = sorted((max(-90, min(90, draw(near(lat)))), max(-90, min(90, draw(near(lat))))))
        west, east = sorted((draw(near(lon)), draw(near(lon))))
        ends = [draw(st.sampled_from([wrapped(end), wrapped(end), 180.0, -180.0])) for end in (west, east)]
        area = Box(west=ends[0], south=south, east=ends[1], north=north)
    return Filter(area=area, **draw(conditions()))


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    where=st.sampled_from([(40.0, -80.0), (-33.9, 179.99), (0.0, 0.0), (69.6, -179.995), (89.7, 20.0)]),
    spread=st.sampled_from([1e-4, 0.01, 0.5, 60.0]),
)
def test_the_rows_are_those_that_fulfil_the_filter(
    data: st.DataObject, seed: int, where: tuple[float, float], spread: float
) -> None:
    photos = draw_photos(np.random.default_rng(seed), 300, *where, spread)
    table = pa.table({name: pa.array(values) for name, values in photos.items()})
    positions = (table[name].to_numpy(zero_copy_only=False).astype(float) for name in ("lat", "lon"))
    table = table.append_column("cell", pa.array(hilbert_cells(*positions))).sort_by("cell").combine_chunks()
    wanted = data.draw(filters(*where, spread))
    with compiled_loops(data.draw(st.booleans())):
        rows = selected(table, wanted)
    assert rows == [row for row, photo in enumerate(table.to_pylist()) if fulfils(photo, wanted)]


def selected(table: pa.Table, wanted: Filter) -> list[int]:
    """The rows of a table that fulfil a filter."""
    return [
        row
        for start, end, allowed in select(Positions(table), wanted)
        for row in range(start, end)
        if allowed is None or allowed[row - start]
    ]


@contextlib.contextmanager
def compiled_loops(wanted: bool) -> Iterator[None]:
    """Filters with compiled loops, or without as where numba is absent."""
    assert popcount_scan.available()
    with (
        contextlib.nullcontext() if wanted else mock.patch.object(popcount_scan, "loaded", return_value=False)
    ):
        yield


@settings(max_examples=50, deadline=None)
@given(
    lat=st.floats(-74, 74), lon=st.floats(-178, 178), radius_m=st.floats(0.5, 100_000), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_a_circle_is_covered_by_ranges_along_the_curve(
    lat: float, lon: float, radius_m: float, seed: int
) -> None:
    """Positions in and around it: those inside lie in a range, all in a sure one lie inside; few ranges, in order."""
    circle = Circle(lat=lat, lon=lon, radius_m=radius_m)
    rng = np.random.default_rng(seed)
    reach = 1.5 * math.degrees(radius_m / EARTH_RADIUS_M)
    lats = lat + rng.uniform(-reach, reach, 2000)
    lons = lon + rng.uniform(-reach, reach, 2000) / math.cos(math.radians(lat))
    lons = (lons + 180) % 360 - 180  # as a photo has it
    cells = hilbert_cells(lats, lons)
    inside = circle.contains(lats, lons)
    for loops in (True, False):
        with compiled_loops(loops):
            cover = cover_area(circle)
        number = np.searchsorted(cover.end, cells, side="right")
        here = np.minimum(number, len(cover.end) - 1)
        held = (number < len(cover.end)) & (cover.first[here] <= cells)
        assert held[inside].all()
        assert inside[held & cover.sure[here]].all()
        assert (cover.first < cover.end).all()
        assert (cover.end[:-1] <= cover.first[1:]).all()
        assert len(cover.first) < 1000


def test_a_box_nearly_round_the_world_leaves_out_what_it_should() -> None:
    """Cells that begin in its eastern end and end in its western one hold the gap between."""
    rng = np.random.default_rng(6)
    lat, lon = rng.uniform(-60, 60, 20_000), rng.uniform(-180, 180, 20_000)
    table = (
        pa.table({"lat": lat, "lon": lon, "cell": hilbert_cells(lat, lon)}).sort_by("cell").combine_chunks()
    )
    wanted = Filter(area=Box(west=170, south=-40, east=160, north=40))
    expected = [row for row, photo in enumerate(table.to_pylist()) if not 160 < photo["lon"] < 170]
    expected = [row for row in expected if abs(table["lat"][row].as_py()) <= 40]
    assert selected(table, wanted) == expected


def test_longitude_180_belongs_to_the_polygon_east_of_it_however_it_is_written() -> None:
    east = Polygon(points=((-5, -180), (-5, -170), (5, -170), (5, -180)))
    west = Polygon(points=((-5, 170), (-5, 180), (5, 180), (5, 170)))
    lat, lon = np.array([0.0, 1.0, 2.0, 3.0, 9.0]), np.array([180.0, -180.0, -175.0, 175.0, 180.0])
    table = (
        pa.table({"lat": lat, "lon": lon, "cell": hilbert_cells(lat, lon)}).sort_by("cell").combine_chunks()
    )
    for area, expected in ((east, [0.0, 1.0, 2.0]), (west, [3.0])):
        rows = selected(table, Filter(area=area))
        assert sorted(table["lat"].take(rows).to_pylist()) == expected


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1e-4, 0.01, 0.5]))
def test_a_photo_on_the_rim_lies_inside_by_every_path(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    lat, lon = 47 + spread * rng.uniform(-1, 1, 50), 8 + spread * rng.uniform(-1, 1, 50)
    table = (
        pa.table({"lat": lat, "lon": lon, "cell": hilbert_cells(lat, lon)}).sort_by("cell").combine_chunks()
    )
    radius = float(distance_m(lat[:1], lon[:1], 47.0, 8.0)[0])
    wanted = Filter(area=Circle(lat=47.0, lon=8.0, radius_m=radius))
    found = []
    for loops in (True, False):
        with compiled_loops(loops):
            found.append(selected(table, wanted))
    assert found[0] == found[1]
    assert lat[0] in table["lat"].take(found[0]).to_pylist()


def test_a_polygon_holds_what_lies_inside() -> None:
    """An L: a corner of its box is outside. Against the union of its two boxes."""
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(10, 12, 5000), rng.uniform(20, 22, 5000)
    table = (
        pa.table({"lat": lat, "lon": lon, "cell": hilbert_cells(lat, lon)}).sort_by("cell").combine_chunks()
    )
    ell = Polygon(points=((10.5, 20.5), (10.5, 21.5), (11.0, 21.5), (11.0, 21.0), (11.5, 21.0), (11.5, 20.5)))
    inside = [
        (10.5 < p["lat"] < 11 and 20.5 < p["lon"] < 21.5) or (10.5 < p["lat"] < 11.5 and 20.5 < p["lon"] < 21)
        for p in table.to_pylist()
    ]
    assert selected(table, Filter(area=ell)) == np.flatnonzero(inside).tolist()


def test_a_filtered_search_equals_a_map_of_the_fulfilling_photos(
    make_descriptors: Make, make_map: Make, draw_tied: Make
) -> None:
    """Any sharding, a filter for all or one for each query, two stages; nobody where nothing fulfils."""
    rng = np.random.default_rng(1)
    codes, floats = draw_tied(rng, 200, 64, 8)
    photos = draw_photos(rng, 200, 47.0, 8.0, 0.01)
    lat, lon = (np.array([np.nan if v is None else v for v in photos[name]]) for name in ("lat", "lon"))
    more = {"heading_deg": photos["heading_deg"], "captured": photos["captured"]}
    descriptors = make_descriptors(codes, floats, lat=lat, lon=lon, more=more)
    each = [
        Filter(area=Circle(lat=47.0, lon=8.0, radius_m=1000)),
        Filter(heading_deg=350, heading_tolerance_deg=30),
        Filter(area=Circle(lat=0.0, lon=0.0, radius_m=1000)),
        Filter(captured_from="2016", captured_to="2016"),
    ]
    queries = rng.integers(0, 200, 4)
    for rows_per_shard in (200, 67, 12):
        with PlaceMap.open(make_map(descriptors, rows_per_shard=rows_per_shard)) as place_map:
            table = place_map.rows().to_pylist()
            names = [int(row["image_id"].removeprefix("photo-")) for row in table]
            found = place_map.search(codes[queries], floats[queries], top_k=9, shortlist=30, within=each)
            for q, wanted in enumerate(each):
                kept = [row for row, photo in enumerate(table) if fulfils(photo, wanted)]
                one = place_map.search(
                    codes[queries[q : q + 1]],
                    floats[queries[q : q + 1]],
                    top_k=9,
                    shortlist=30,
                    within=wanted,
                )
                assert one.rows[0].tolist() == found.rows[q].tolist()
                every = place_map.search(None, floats[queries], top_k=9, exhaustive=True, within=each)
                similarity = place_map.search(None, floats[queries], top_k=200, exhaustive=True)
                among = [row for row in similarity.rows[q].tolist() if row in kept][:9]
                assert every.rows[q].tolist() == [*among, *[-1] * (9 - len(among))]
                if not kept:
                    assert found.rows[q].tolist() == [-1] * 9
                    continue
                part = make_descriptors(
                    codes[[names[row] for row in kept]], floats[[names[row] for row in kept]]
                )
                with PlaceMap.open(make_map(part)) as small:
                    alone = small.search(codes[queries], floats[queries], top_k=9, shortlist=30)
                expected = [kept[row] if row >= 0 else -1 for row in alone.rows[q].tolist()]
                assert found.rows[q].tolist() == expected
                assert found.hamming[q].tolist() == alone.hamming[q].tolist()


@pytest.mark.parametrize("lon", [8.0, 179.995])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_circles_by_one_compiled_scan_give_the_same_answers(
    make_descriptors: Make,
    make_map: Make,
    draw_tied: Make,
    monkeypatch: pytest.MonkeyPatch,
    lon: float,
    num_threads: int,
) -> None:
    """As on maps that are large enough for it, removed photos and photos without a position among them."""
    monkeypatch.setattr(first_stage, "MIN_ROWS_FOR_NUMBA", 0)
    monkeypatch.setattr(first_stage, "MIN_ROWS_PER_THREAD", 20)
    rng = np.random.default_rng(2)
    codes, _ = draw_tied(rng, 300, 128, 8)
    photos = draw_photos(rng, 300, 47.0, lon, 0.01)
    lats, lons = (np.array([np.nan if v is None else v for v in photos[name]]) for name in ("lat", "lon"))
    used = mock.Mock(side_effect=place_map_module.search_pieces)
    monkeypatch.setattr(place_map_module, "search_pieces", used)
    for rows_per_shard in (300, 41):
        root = make_map(make_descriptors(codes, lat=lats, lon=lons), rows_per_shard=rows_per_shard)
        for removed in (False, True):
            if removed:
                run_update(root, UpdateConfig(remove=tuple(f"photo-{row:06d}" for row in range(0, 300, 7))))
            with PlaceMap.open(root, num_threads=num_threads) as place_map:
                for radius in (1.0, 300.0, 1000.0, 4000.0):
                    middle = rng.normal(0, 0.01, 2)
                    around = (lon + middle[1] + 180) % 360 - 180
                    near = Filter(area=Circle(lat=47.0 + middle[0], lon=around, radius_m=radius))
                    queries = codes[rng.integers(0, 300, 3)]
                    found = place_map.search(queries, None, top_k=12, within=near)
                    slow = place_map.search(queries, None, top_k=12, within=near, engine="faiss")
                    np.testing.assert_array_equal(found.rows, slow.rows)
                    np.testing.assert_array_equal(found.hamming, slow.hamming)
    assert used.call_count == 16


@pytest.mark.parametrize("lat", [0.0, 47.0, -75.0])
def test_the_plane_is_as_good_as_it_claims(lat: float) -> None:
    rng = np.random.default_rng(4)
    circle = Circle(lat=lat, lon=179.5, radius_m=100_000)
    north = lat + rng.uniform(-1.2, 1.2, 20_000)
    east = (179.5 + rng.uniform(-1.2, 1.2, 20_000) / math.cos(math.radians(lat)) + 180) % 360 - 180
    true = distance_m(north, east, circle.lat, circle.lon)
    close = true < 110_000
    assert (np.abs(circle._plane_m(north, east) - true)[close] <= 0.5 * 1e-3 * true[close]).all()


@pytest.mark.parametrize("lat", [0.0, 47.0, -75.0])
@pytest.mark.parametrize("radius_m", [50.0, 1000.0, 20_000.0, 100_000.0])
def test_the_plane_is_as_good_at_the_rim_of_a_circle(lat: float, radius_m: float) -> None:
    rng = np.random.default_rng(4)
    circle = Circle(lat=lat, lon=179.999, radius_m=radius_m)
    reach = 1.2 * math.degrees(radius_m / EARTH_RADIUS_M)
    north = lat + rng.uniform(-reach, reach, 20_000)
    east = 179.999 + rng.uniform(-reach, reach, 20_000) / math.cos(math.radians(lat))
    east = (east + 180) % 360 - 180
    true = distance_m(north, east, circle.lat, circle.lon)
    rim = np.abs(true - radius_m) < 0.1 * radius_m
    wrong = np.abs(circle._plane_m(north, east) - true)[rim]
    assert (wrong <= 0.5 * circle.rim_error * radius_m).all()


def test_what_cannot_be_filtered_is_refused(
    make_descriptors: Make, make_map: Make, draw_random: Make
) -> None:
    codes, floats = draw_random(np.random.default_rng(2), 20, 64, 8)
    wanted = Filter(area=Circle(lat=0, lon=0, radius_m=5))
    with PlaceMap.open(make_map(make_descriptors(codes, floats))) as place_map:
        with pytest.raises(MapError, match="2 filters for 3 queries"):
            place_map.search(codes[:3], None, top_k=1, within=[wanted, wanted])
        with pytest.raises(MapError, match="2 filters for 3 queries"):
            place_map.search(None, floats[:3], top_k=1, exhaustive=True, within=[wanted, wanted])
        no_filters: list[Any] = [[None], [wanted, {"area": None}], "Paris", {"area": None}]
        for within in no_filters:
            for exhaustive in (False, True):
                with pytest.raises(
                    MapError, match=r"within has a (NoneType|dict|str) where a Filter is expected"
                ):
                    place_map.search(codes[:1], floats[:1], top_k=1, within=within, exhaustive=exhaustive)
        nobody = place_map.search(codes[:1], None, top_k=2, within=wanted)
        assert nobody.rows.tolist() == [[-1, -1]]
        assert place_map.search(codes[:1], None, top_k=1, within=Filter()).rows.tolist() == [[0]]
    with pytest.raises(ValidationError, match="lies behind"):
        Filter(captured_from="2017", captured_to="2016-12")


def test_one_photo_of_each_panorama(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(3), 30, 64, 8)
    panoramas = [None if row % 10 == 0 else f"pano-{row // 5}" for row in range(30)]
    descriptors = make_descriptors(codes, floats, more={"panorama_id": panoramas})
    with PlaceMap.open(make_map(descriptors, rows_per_shard=11)) as place_map:
        everyone = place_map.search(codes[:4], floats[:4], top_k=30)
        found = place_map.search(codes[:4], floats[:4], top_k=7, shortlist=30, one_per_panorama=True)
        for q in range(4):
            seen, expected = set(), []
            for row in everyone.rows[q].tolist():
                if panoramas[row] is None or panoramas[row] not in seen:
                    expected.append(row)
                    seen.add(panoramas[row])
            assert found.rows[q].tolist() == expected[:7]
        by_code = place_map.search(codes[:4], None, top_k=9, one_per_panorama=True)
        assert (by_code.rows >= 0).all()
        assert len({panoramas[row] or row for row in by_code.rows[0].tolist()}) == 9


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"captured_from": "2016-6"}, "no beginning of a moment"),
        ({"captured_to": "June 2016"}, "no beginning of a moment"),
        ({"captured_to": "2016-13"}, "captured_to.*does not exist"),
        ({"captured_to": "2016-0630"}, "no beginning of a moment"),
        ({"captured_to": "2016-06-30T10:00Z"}, "without a zone"),
        ({"captured_from": "2016-02-30"}, "captured_from.*does not exist"),
        ({"captured_from": "0000"}, "does not exist"),
        ({"heading_deg": float("nan")}, "finite number"),
        ({"area": {"lat": 0, "lon": 0, "radius_m": float("inf")}}, "finite number"),
        ({"area": {"west": 0, "east": 1, "south": 5, "north": 1}}, "lies north of"),
        ({"area": {"points": [[10, 179], [10, -179], [11, -179], [11, 179]]}}, "crosses longitude 180"),
        ({"area": {"points": [[0, 0], [95, 0], [0, 1]]}}, "is no .lat, lon."),
        ({"area": {"points": [[0, 0], [float("nan"), 0], [0, 1]]}}, "is no .lat, lon."),
        ({"area": {"lat": float("nan"), "lon": 0, "radius_m": 1}}, "less than or equal to 90"),
    ],
)
def test_what_is_no_condition_is_refused(asked: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        Filter.model_validate(asked)


@pytest.mark.parametrize("written", ["2016", "2016-06", "2016-06-12", "2016-06-12T09:30:00", "'2016'"])
def test_times_may_be_written_as_yaml_reads_them(written: str) -> None:
    config = load_config(Filter, None, [f"captured_from={written}"])
    assert config.captured_from == written.strip("'")
