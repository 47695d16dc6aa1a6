"""From photos at random positions to batches: two places of one source whose cells touch never meet."""

from collections import defaultdict
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray import geo
from placeray.datasets.photos import PHOTOS, image_ids
from placeray.datasets.places import form_places
from placeray.datasets.sampler import Batch, PlaceRef, count_batches, epoch_batches, share
from placeray.datasets.source import CellPlaces

RULES = st.sampled_from(
    [
        CellPlaces(min_photos=2),
        CellPlaces(cell_m=10, cell_stride=5, min_photos=2),
        CellPlaces(cell_m=10, cell_stride=2, heading_bin_deg=30, heading_stride=3, min_photos=2),
        CellPlaces(cell_m=20, cell_stride=3, heading_bin_deg=None, min_photos=2),
    ]
)

Cell = tuple[str, int, int, int]


@settings(max_examples=40, deadline=None)
@given(RULES, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 9), st.integers(1, 4))
def test_no_batch_holds_two_places_whose_cells_touch(
    rule: CellPlaces, city: int, seed: int, epoch: int, world: int
) -> None:
    domains = domains_of(random_city(city), rule)
    places = [PlaceRef(name, row, 2) for name, cells in domains.items() for row in range(len(cells))]
    fewest = max(2, world)
    if not count_batches(places, 8, 2, fewest):
        return
    met = 0
    for batch in epoch_batches(places, 8, 2, seed, epoch, fewest):
        together: list[Batch] = [share(batch, rank, world) for rank in range(world)]
        cells = [domains[part.domain_file][row] for part in together for row in part.rows.tolist()]
        for one, other in combinations(cells, 2):
            assert not touch(one, other, rule), f"{one} and {other} show the same street"
            met += 1
    assert met, "a batch of one place proves nothing"


def touch(one: Cell, other: Cell, rule: CellPlaces) -> bool:
    """Same or neighbouring cell, corners included, and same or neighbouring heading bin, across north too."""
    if one[0] != other[0]:
        return False
    apart = [abs(one[axis] - other[axis]) // rule.cell_m for axis in (1, 2)]
    if rule.heading_bin_deg is None:
        return max(apart) <= 1
    turn = abs(one[3] - other[3])
    return max(apart) <= 1 and min(turn, 360 - turn) <= rule.heading_bin_deg


def random_city(seed: int) -> pa.Table:
    """Photos of some streets of 120 x 120 m, half of them in the next UTM zone."""
    rng = np.random.default_rng(seed)
    count = 500
    east = np.round(585_000 + rng.uniform(0, 120, count), 2)
    north = np.round(4_477_000 + rng.uniform(0, 120, count), 2)
    zones = np.where(rng.random(count) < 0.5, "17T", "18T")
    lat, lon = geo.from_utm(east, north, zones)
    paths = [f"{number:06d}.jpg" for number in range(count)]
    known: dict[str, Any] = {
        "image_id": image_ids("set", paths), "dataset": ["set"] * count, "city": ["town"] * count,
        "split": ["train"] * count, "role": ["train"] * count, "lat": lat, "lon": lon,
        "utm_east": east, "utm_north": north, "utm_zone": zones.tolist(),
        "heading_deg": rng.integers(0, 360, count).astype(np.float64), "source_uri": paths, "path": paths,
    }  # fmt: skip
    return pa.table([pa.array(known.get(f.name, [None] * count), f.type) for f in PHOTOS], schema=PHOTOS)


def domains_of(photos: pa.Table, rule: CellPlaces) -> dict[str, list[Cell]]:
    """Domain -> zone, corner and heading bin of each of its places."""
    found: dict[str, dict[str, Cell]] = defaultdict(dict)
    for row in form_places(photos, rule).photos.to_pylist():
        if row["place_id"] is not None:
            cell = (row["utm_zone"], row["cell_east"], row["cell_north"], row["cell_heading_deg"] or 0)
            found[row["domain"]][row["place_id"]] = cell
    return {domain: list(places.values()) for domain, places in found.items()}
