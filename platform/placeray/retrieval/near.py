"""The codes around a position, as one table for one compiled scan: the prior of a GPS fix.

A circle is some hundred runs of rows, too many to handle one by one. Needs numba.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.filters import Circle, cover_area, plane_of
from placeray.retrieval.shard import Shard


class NearPieces(NamedTuple):
    """Pieces of the shards of an open map."""

    table: NDArray[np.int64]  # (P, 4), see `kernels.scan_rows`
    inside: list[NDArray[np.uint8]]  # what the table points to, besides the files of the map


def pieces_near(
    circle: Circle,
    shards: Sequence[Shard],
    first_rows: Sequence[int],
    cells: NDArray[np.uint64],
    live: NDArray[np.bool_] | None,
) -> NearPieces:
    """All codes in a circle that a plane is good enough for.

    Args:
        first_rows: global row at which each shard begins.
        cells:      the first and the last cell of each shard (2, n).
        live:       rows (N,) of the map that can be returned, None for all.
    """
    from placeray.retrieval.area_kernels import pieces_inside

    plane, cover = plane_of(circle), cover_area(circle)
    tables, masks = [np.empty((0, 4), dtype=np.int64)], []
    for number in np.flatnonzero(cover.touches(*cells)).tolist():
        codes, photos, first_row = shards[number].codes, shards[number].positions, first_rows[number]
        assert codes is not None, "a map without codes has no first stage"
        mask = 0 if live is None else live.ctypes.data + first_row
        table, inside = pieces_inside(
            plane,
            photos.lat,
            photos.lon,
            photos.cells,
            *cover,
            codes.ctypes.data,
            codes.shape[1],
            first_row,
            mask,
        )
        tables.append(table)
        masks.append(inside)
    return NearPieces(np.concatenate(tables), masks)
