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
import pyarrow.compute as pc

from placeray import geo
from placeray.datasets.source import CellPlaces, NamedPlaces

Ints = npt.NDArray[np.int64]
CELL_COLUMNS = pa.schema(
    [
        ("place_id", pa.string()),
        ("domain", pa.string()),
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
    zones = geo.zone_key(photos["utm_zone"].unique().to_numpy(zero_copy_only=False).astype(np.str_))
    zone_of = photos["utm_zone"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    cells = cells_of(
        _floats(photos, "utm_east"), _floats(photos, "utm_north"), _floats(photos, "heading_deg"), protocol
    )
    zone_names, zone_rank = np.unique(zones, return_inverse=True)
    zone = zone_rank[zone_of].astype(np.int64)  # two bands of one zone and hemisphere are one grid
    city = photos["city"].combine_chunks().dictionary_encode()
    city_of = city.indices.to_numpy(zero_copy_only=False).astype(np.int64)

    keys = np.stack([city_of, zone, cells.east, cells.north, cells.heading_deg], axis=1)
    first, place, sizes = _unique_rows(keys)
    large = sizes >= protocol.min_photos
    domains, domain_of_place = np.unique(
        np.stack([city_of[first], zone[first], cells.group[first]], axis=1), axis=0, return_inverse=True
    )
    kept = large & _in_kept_groups(domains, domain_of_place.ravel(), large, protocol.groups_kept)
    dataset = photos["dataset"][0].as_py()
    cities = city.dictionary.to_pylist()
    digits = len(str(protocol.cell_stride**2 * protocol.heading_stride - 1))
    domain_names = [f"{dataset}/{cities[c]}/{zone_names[z]}-{group:0{digits}d}" for c, z, group in domains]
    place_names = [
        f"{dataset}/{cities[c]}/{zone_names[z]}-{e:07d}-{n:08d}-{h:03d}"
        for c, z, e, n, h in keys[first].tolist()
    ]
    return Placed(
        _with_columns(
            photos,
            kept[place],
            pa.array(place_names, pa.string()).take(pa.array(place)),
            pa.array(domain_names, pa.string()).take(pa.array(domain_of_place.ravel()[place])),
            cells,
            has_bins=protocol.heading_bin_deg is not None,
        ),
        int(kept.sum()),
        int((~large).sum()),
    )


def _named(photos: pa.Table, protocol: NamedPlaces) -> Placed:
    domain = pc.binary_join_element_wise(photos["dataset"], photos["city"], "/").combine_chunks()
    names = pc.binary_join_element_wise(domain, photos["place_key"].combine_chunks(), "/").dictionary_encode()
    place = names.indices.to_numpy(zero_copy_only=False)
    sizes = np.bincount(place, minlength=len(names.dictionary))
    kept = sizes >= protocol.min_photos
    return Placed(
        _with_columns(photos, kept[place], names.dictionary_decode(), domain),
        int(kept.sum()),
        int((~kept).sum()),
    )


def _in_kept_groups(
    domains: Ints, domain_of_place: Ints, large: npt.NDArray[np.bool_], groups_kept: int | None
) -> npt.NDArray[np.bool_]:
    """Which places lie in the first groups, by number, of those that hold a large enough place."""
    if groups_kept is None:
        return np.ones(len(domain_of_place), dtype=bool)
    group = domains[domain_of_place, 2]
    first_groups = np.unique(group[large])[:groups_kept]
    return np.asarray(np.isin(group, first_groups))


def _unique_rows(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """(first photo of each distinct row, number of the row of each photo, photos per row); rows in sorted
    order.
    """
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    row = np.empty(len(keys), dtype=np.int64)
    row[order] = np.cumsum(starts) - 1
    return order[starts], row, np.bincount(row)


def _with_columns(
    photos: pa.Table,
    kept: npt.NDArray[np.bool_],
    place_id: pa.Array,
    domain: pa.Array,
    cells: Cells | None = None,
    has_bins: bool = False,
) -> pa.Table:
    """The photos with CELL_COLUMNS, null where `kept` is False."""
    values: dict[str, pa.Array] = {"place_id": place_id, "domain": domain}
    if cells is not None:
        values |= {
            "cell_east": pa.array(cells.east),
            "cell_north": pa.array(cells.north),
        }
        if has_bins:
            values["cell_heading_deg"] = pa.array(cells.heading_deg).cast(pa.int32())
    for field in CELL_COLUMNS:
        column = values.get(field.name, pa.nulls(photos.num_rows, field.type))
        photos = photos.append_column(field, pc.if_else(pa.array(kept), column, pa.scalar(None, field.type)))
    return photos


def _floats(photos: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = photos[name].combine_chunks()
    return np.asarray(column.fill_null(0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
