"""From photos to places: cells, heading bins, groups and domains of the unified protocol.

Source: `gmberton/CosPlace:datasets/train_dataset.py` with the numbers of `Tong-Jin01/Unified_dataset` (see
CellPlaces).

    cell  = (floor(E / M) * M, floor(N_utm / M) * M)      bin = floor(heading / alpha) * alpha
    group = (floor(E / M) mod N, floor(N_utm / M) mod N, floor(heading / alpha) mod L)

Two places of one group are at least M * (N - 1) metres or alpha * (L - 1) degrees apart: they never show the
same street, so they may meet in a batch as negatives. One *domain* is one group of one city (or a whole GSV
city).

Differs from the reference: the UTM zone is part of the key of a cell, and the number of a group is the
position of its triple among all N * N * L triples, where the reference counts groups as they appear in the
listed files.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from placeray import geo
from placeray.datasets.photos import NAME
from placeray.datasets.source import CellPlaces, NamedPlaces

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
CELL_COLUMNS = pa.schema(
    [
        ("place_id", NAME),
        ("domain", NAME),
        ("cell_east", pa.int64()),
        ("cell_north", pa.int64()),
        ("cell_heading_deg", pa.int32()),
    ]
)


class Placed(NamedTuple):
    """photos: the table with CELL_COLUMNS behind its own; place_id is null for a photo that belongs to no
    place.

    num_places: places that are kept. num_small: places dropped because they hold fewer than `min_photos`.
    """

    photos: pa.Table
    num_places: int
    num_small: int


class Cells(NamedTuple):
    """The place and group of each photo under the cell rule, all (n,) int64; headings are 0 without heading
    bins.
    """

    east: Ints
    north: Ints
    heading_deg: Ints
    group: Ints


def form_places(photos: pa.Table, protocol: NamedPlaces | CellPlaces) -> Placed:
    """Give every photo of a listing its place and domain.

    Args:
        photos: `photos.PHOTOS` columns of one data set, all with UTM positions (cells) or place keys (named).
    """
    if isinstance(protocol, NamedPlaces):
        return _named(photos, protocol)
    return _by_cells(photos, protocol)


def cells_of(
    east: npt.ArrayLike, north: npt.ArrayLike, heading_deg: npt.ArrayLike, protocol: CellPlaces
) -> Cells:
    """Cell corner, heading bin and group number of positions in metres and headings in [0, 360)."""
    column = np.floor(np.asarray(east, dtype=np.float64) / protocol.cell_m).astype(np.int64)
    row = np.floor(np.asarray(north, dtype=np.float64) / protocol.cell_m).astype(np.int64)
    if protocol.heading_bin_deg is None:
        bins, width, bin_stride = np.zeros_like(column), 0, 1
    else:
        width, bin_stride = protocol.heading_bin_deg, protocol.heading_stride
        bins = np.floor(np.asarray(heading_deg, dtype=np.float64) / width).astype(np.int64)
    stride = protocol.cell_stride
    group = ((column % stride) * stride + row % stride) * bin_stride + bins % bin_stride
    return Cells(column * protocol.cell_m, row * protocol.cell_m, bins * width, group)


def _by_cells(photos: pa.Table, protocol: CellPlaces) -> Placed:
    city_of, cities = _ranks(photos["city"])
    zone_of, zones = _ranks(photos["utm_zone"])
    # Two bands of one zone and hemisphere are one grid.
    grids, grid_of_zone = np.unique(geo.zone_key(np.array(zones, dtype=np.str_)), return_inverse=True)
    grid_of = grid_of_zone.ravel()[zone_of]
    cells = cells_of(
        _floats(photos, "utm_east"), _floats(photos, "utm_north"), _floats(photos, "heading_deg"), protocol
    )
    first, place, sizes = _groups([city_of, grid_of, cells.east, cells.north, cells.heading_deg])
    domain_first, domain, _ = _groups([city_of[first], grid_of[first], cells.group[first]])
    large = sizes >= protocol.min_photos
    kept = large & _in_kept_groups(cells.group[first], large, protocol.groups_kept)
    dataset = photos["dataset"][0].as_py()
    digits = len(str(protocol.cell_stride**2 * protocol.heading_stride - 1))
    heads = first[domain_first]
    domain_names = [
        f"{dataset}/{cities[city]}/{grids[grid]}-{group:0{digits}d}"
        for city, grid, group in zip(city_of[heads], grid_of[heads], cells.group[heads], strict=True)
    ]
    named = first[kept]
    place_names = [
        f"{dataset}/{cities[city]}/{grids[grid]}-{east:07d}-{north:08d}-{heading:03d}"
        for city, grid, east, north, heading in zip(
            city_of[named], grid_of[named], cells.east[named], cells.north[named], cells.heading_deg[named],
            strict=True,
        )
    ]  # fmt: skip
    columns = _name_columns(kept, place, place_names, domain, domain_names)
    outside = ~kept[place]
    columns["cell_east"] = pa.array(cells.east, mask=outside)
    columns["cell_north"] = pa.array(cells.north, mask=outside)
    if protocol.heading_bin_deg is not None:
        columns["cell_heading_deg"] = pa.array(cells.heading_deg.astype(np.int32), mask=outside)
    return Placed(_with_columns(photos, columns), int(kept.sum()), int((~large).sum()))


def _named(photos: pa.Table, protocol: NamedPlaces) -> Placed:
    city_of, cities = _ranks(photos["city"])
    key_of, keys = _ranks(photos["place_key"])
    first, place, sizes = _groups([city_of, key_of])
    kept = sizes >= protocol.min_photos
    dataset = photos["dataset"][0].as_py()
    names = [
        f"{dataset}/{cities[city]}/{keys[key]}"
        for city, key in zip(city_of[first[kept]], key_of[first[kept]], strict=True)
    ]
    domains = [f"{dataset}/{city}" for city in cities]
    columns = _name_columns(kept, place, names, city_of[first], domains)
    return Placed(_with_columns(photos, columns), int(kept.sum()), int((~kept).sum()))


def _in_kept_groups(group: Ints, large: Mask, groups_kept: int | None) -> Mask:
    """Which places lie in the first groups, by number, of those that hold a large enough place."""
    if groups_kept is None:
        return np.ones(len(group), dtype=bool)
    return np.asarray(np.isin(group, np.unique(group[large])[:groups_kept]))


def _ranks(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """(n,) position of each row's text among the sorted names, and these names."""
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = column.unify_dictionaries().combine_chunks()
    found = encoded.dictionary.to_pylist()
    names = sorted(set(found))
    position = {name: rank for rank, name in enumerate(names)}
    ranks = np.array([position[name] for name in found], dtype=np.int64)
    return ranks[encoded.indices.to_numpy(zero_copy_only=False)], names


def _groups(columns: list[Ints]) -> tuple[Ints, Ints, Ints]:
    """Rows that agree in all columns: (first row of each group, number of the group of each row, rows per group).

    Groups are numbered in the order of their values. One sort of one integer per row, where their ranges allow.
    """
    count = len(columns[0])
    key = np.zeros(count, dtype=np.int64)
    width = 1
    for column in columns:
        lowest, highest = int(column.min(initial=0)), int(column.max(initial=0))
        span = highest - lowest + 1
        if width * span >= 2**63:
            key, width = np.unique(key, return_inverse=True)[1].ravel().astype(np.int64), count
        if width * span >= 2**63:
            column, lowest, span = np.unique(column, return_inverse=True)[1].ravel(), 0, count
        key = key * span + (column - lowest)
        width *= span
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.ones(count, dtype=bool)
    starts[1:] = key[1:] != key[:-1]
    number = np.empty(count, dtype=np.int64)
    number[order] = np.cumsum(starts) - 1
    return order[starts], number, np.bincount(number)


def _name_columns(
    kept: Mask, place: Ints, place_names: list[str], domain: Ints, domain_names: list[str]
) -> dict[str, pa.Array]:
    """place_id and domain of each photo, null where its place is not kept.

    Args:
        kept, domain: one entry per place; `place_names` one per kept place. place: one entry per photo.
    """
    outside = ~kept[place]
    number = np.cumsum(kept) - 1
    return {
        "place_id": pa.DictionaryArray.from_arrays(
            pa.array(number[place].astype(np.int32), mask=outside), pa.array(place_names, pa.string())
        ),
        "domain": pa.DictionaryArray.from_arrays(
            pa.array(domain[place].astype(np.int32), mask=outside), pa.array(domain_names, pa.string())
        ),
    }


def _with_columns(photos: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """The photos with CELL_COLUMNS; those that are not given are null."""
    for field in CELL_COLUMNS:
        photos = photos.append_column(field, columns.get(field.name, pa.nulls(photos.num_rows, field.type)))
    return photos


def _floats(photos: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = photos[name].combine_chunks()
    return np.asarray(column.fill_null(0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
