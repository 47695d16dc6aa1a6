"""Cells, groups and domains: equal to the reference's walk over sorted paths, and the same in any order."""

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray import geo
from placeray.datasets.photos import PHOTOS, image_ids
from placeray.datasets.places import _groups, cells_of, form_places
from placeray.datasets.source import CellPlaces, NamedPlaces


def photo_table(east: Any, north: Any, heading: Any, zone: Any = "17T", city: Any = "town") -> pa.Table:
    """Rows of PHOTOS at positions in metres; row i has path i."""
    count = len(east)
    zones = np.broadcast_to(zone, count)
    lat, lon = geo.from_utm(east, north, zones)
    paths = [f"{number:06d}.jpg" for number in range(count)]
    known = {
        "image_id": image_ids("set", paths),
        "dataset": ["set"] * count,
        "city": np.broadcast_to(city, count).tolist(),
        "split": ["train"] * count,
        "role": ["train"] * count,
        "lat": lat, "lon": lon, "utm_east": east, "utm_north": north,
        "utm_zone": zones.tolist(),
        "heading_deg": heading,
        "source_uri": paths,
        "path": paths,
    }  # fmt: skip
    return pa.table([pa.array(known.get(f.name, [None] * count), f.type) for f in PHOTOS], schema=PHOTOS)


def random_photos(seed: int, count: int = 400, spread_m: float = 120.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    east = np.round(585_000 + rng.uniform(0, spread_m, count), 2)
    north = np.round(4_477_000 + rng.uniform(0, spread_m, count), 2)
    return east, north, rng.integers(0, 360, count).astype(np.float64)


def reference_groups(table: pa.Table, rule: CellPlaces) -> list[dict[tuple[int, int, int], set[str]]]:
    """The class and group rule as CosPlace's train_dataset.py walks it: sorted paths, groups by first
    appearance.
    """
    m, n, alpha, bins = rule.cell_m, rule.cell_stride, rule.heading_bin_deg, rule.heading_stride
    images_per_class = defaultdict(list)
    for row in sorted(table.to_pylist(), key=lambda row: row["path"]):
        rounded_east = int(row["utm_east"] // m * m)
        rounded_north = int(row["utm_north"] // m * m)
        rounded_heading = int(row["heading_deg"] // alpha * alpha)
        images_per_class[(rounded_east, rounded_north, rounded_heading)].append(row["path"])
    images_per_class = {
        key: paths for key, paths in images_per_class.items() if len(paths) >= rule.min_photos
    }
    classes_per_group: dict[Any, dict[Any, set[str]]] = defaultdict(dict)
    for (e, north, h), paths in images_per_class.items():
        group = (e % (m * n) // m, north % (m * n) // m, h % (alpha * bins) // alpha)
        classes_per_group[group][(e, north, h)] = set(paths)
    return list(classes_per_group.values())


def our_groups(table: pa.Table, rule: CellPlaces) -> dict[str, dict[tuple[int, int, int], set[str]]]:
    groups: dict[str, dict[tuple[int, int, int], set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in form_places(table, rule).photos.to_pylist():
        if row["place_id"] is not None:
            cell = (row["cell_east"], row["cell_north"], row["cell_heading_deg"])
            groups[row["domain"]][cell].add(row["path"])
    return groups


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "rule",
    [
        CellPlaces(),
        CellPlaces(cell_m=10, cell_stride=5, min_photos=2),
        CellPlaces(cell_m=10, cell_stride=5, heading_bin_deg=30, heading_stride=2, min_photos=1),
        CellPlaces(cell_m=20, cell_stride=1, heading_bin_deg=90, heading_stride=1, min_photos=3),
    ],
)
def test_grouping_equals_the_reference(seed: int, rule: CellPlaces) -> None:
    table = photo_table(*random_photos(seed))
    ours, theirs = our_groups(table, rule), reference_groups(table, rule)
    assert len(theirs) > 1 or rule.cell_stride == 1
    assert sorted(map(sorted, (group.items() for group in ours.values())), key=str) == sorted(
        map(sorted, (group.items() for group in theirs)), key=str
    )
    assert form_places(table, rule).num_places == sum(len(group) for group in theirs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_of_the_listing(seed: int, random: Any) -> None:
    table = photo_table(*random_photos(seed, count=120, spread_m=60))
    order = list(range(table.num_rows))
    random.shuffle(order)

    def ids(some: pa.Table) -> dict[str, tuple[str, str, str]]:
        rows = form_places(some, CellPlaces(min_photos=2)).photos.to_pylist()
        return {row["path"]: (row["image_id"], row["place_id"], row["domain"]) for row in rows}

    assert ids(table) == ids(table.take(pa.array(order)))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([(15, 3, 60, 2), (10, 5, 60, 2), (10, 5, 30, 2), (15, 3, None, 2)])
)
def test_two_places_of_a_domain_never_show_one_street(
    seed: int, numbers: tuple[int, int, int | None, int]
) -> None:
    """At least M * (N - 1) metres, or alpha * (L - 1) degrees apart."""
    m, n, alpha, stride = numbers
    rule = CellPlaces(cell_m=m, cell_stride=n, heading_bin_deg=alpha, heading_stride=stride, min_photos=1)
    rows = form_places(photo_table(*random_photos(seed, count=150, spread_m=90)), rule).photos.to_pylist()
    for one in rows:
        for other in rows:
            if one["domain"] == other["domain"] and one["place_id"] != other["place_id"]:
                metres = max(
                    abs(one["utm_east"] - other["utm_east"]), abs(one["utm_north"] - other["utm_north"])
                )
                turn = abs((one["heading_deg"] - other["heading_deg"] + 180) % 360 - 180)
                assert metres >= m * (n - 1) or (alpha is not None and turn >= alpha * (stride - 1))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.sampled_from([3, 10, 10**9, 2**40, 2**62]), min_size=1, max_size=5),
    st.randoms(),
)
def test_grouping_equals_a_plain_dict(count: int, spans: list[int], random: Any) -> None:
    """Whatever the ranges of the columns are: those whose product fits one integer, and those that need ranks."""
    few = [[random.randrange(-span // 2, span // 2) for _ in range(3)] for span in spans]
    columns = [np.array([random.choice(values) for _ in range(count)], dtype=np.int64) for values in few]
    first, number, sizes = _groups(columns)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        rows.setdefault(key, []).append(row)
    ordered = [rows[key] for key in sorted(rows)]
    assert first.tolist() == [found[0] for found in ordered]
    assert sizes.tolist() == [len(found) for found in ordered]
    assert all(number[row] == group for group, found in enumerate(ordered) for row in found)


def test_borders_of_cells_and_bins() -> None:
    cells = cells_of([14.99, 15.0, -0.01], [30.0, 44.99, 0.0], [59.99, 60.0, 359.9], CellPlaces())
    assert cells.east.tolist() == [0, 15, -15]
    assert cells.north.tolist() == [30, 30, 0]
    assert cells.heading_deg.tolist() == [0, 60, 300]
    assert cells.group.tolist() == [2 * 2, (3 + 2) * 2 + 1, 2 * 3 * 2 + 1]


def test_zones_separate_cells_and_bands_do_not() -> None:
    # The same metres in two zones are two places; the band border at 32 degrees north runs through one.
    table = photo_table([500_001.0] * 4, [3_540_000.0] * 4, [10.0] * 4, zone=["36R", "36S", "37R", "36R"])
    rows = form_places(table, CellPlaces(min_photos=1)).photos.to_pylist()
    assert rows[0]["place_id"] == rows[1]["place_id"] == rows[3]["place_id"] != rows[2]["place_id"]
    assert rows[0]["domain"] != rows[2]["domain"]
    assert rows[0]["place_id"] == "set/town/36n-0499995-03540000-000"
    south = photo_table([500_001.0], [3_540_000.0], [10.0], zone="36M")
    assert form_places(south, CellPlaces(min_photos=1)).photos["place_id"][0].as_py() != rows[0]["place_id"]


def test_cities_do_not_share_places_or_domains() -> None:
    table = photo_table([500_001.0] * 2, [3_540_000.0] * 2, [10.0] * 2, city=["Boston", "boston"])
    rows = form_places(table, CellPlaces(min_photos=1)).photos.to_pylist()
    assert rows[0]["domain"] == "set/Boston/17n-" + rows[1]["domain"][-2:]
    assert rows[0]["place_id"] != rows[1]["place_id"]


def test_small_places_are_dropped_and_counted() -> None:
    placed = form_places(photo_table([0.0] * 4 + [1000.0] * 3, [0.0] * 7, [10.0] * 7), CellPlaces())
    assert (placed.num_places, placed.num_small) == (1, 1)
    assert placed.photos["place_id"].null_count == placed.photos["domain"].null_count == 3


def test_only_the_first_groups_that_hold_a_place_are_kept() -> None:
    # Columns of cells 0, 1 and 2 are three groups; the first holds no place of 4 photos.
    east = [1.0] * 3 + [11.0] * 4 + [21.0] * 4
    rule = CellPlaces(cell_m=10, cell_stride=5, groups_kept=1)
    placed = form_places(photo_table(east, [1.0] * 11, [10.0] * 11), rule)
    assert placed.photos["place_id"].is_valid().to_pylist() == [False] * 3 + [True] * 4 + [False] * 4
    assert (placed.num_places, placed.num_small) == (1, 1)
    assert set(placed.photos["domain"].drop_null().to_pylist()) == {"set/town/17n-10"}


def test_named_places_keep_the_names_of_their_city() -> None:
    table = photo_table([0.0] * 6, [0.0] * 6, [None] * 6, city=["PRS"] * 4 + ["OSL"] * 2)
    keys = pa.array(["0000001"] * 6)
    table = table.set_column(table.schema.get_field_index("place_key"), "place_key", keys)
    placed = form_places(table, NamedPlaces(min_photos=4))
    assert placed.photos["place_id"].to_pylist() == ["set/PRS/0000001"] * 4 + [None] * 2
    assert placed.photos["domain"].to_pylist() == ["set/PRS"] * 4 + [None] * 2
    assert (placed.num_places, placed.num_small) == (1, 1)


def test_bins_that_do_not_close_the_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide 360"):
        CellPlaces(heading_bin_deg=40, heading_stride=2)


def test_a_city_without_heading_bins() -> None:
    placed = form_places(photo_table([0.0] * 4, [0.0] * 4, [None] * 4), CellPlaces(heading_bin_deg=None))
    assert placed.num_places == 1
    assert placed.photos["cell_heading_deg"].null_count == 4
