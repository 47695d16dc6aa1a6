"""The order of photos in a map: cells along a Hilbert curve over longitude and latitude.

Photos that are near in the world are near in the files, so that an area of the world is a few row ranges. A
cell at level 24 is about 2.4 m wide at the equator; a coarser cell is a prefix of its bits. Photos without a
position come last. Source: the Hilbert curve as in Hamilton, "Compact Hilbert Indices" (2006), two
dimensions, vectorised.
"""

import numpy as np
from numpy.typing import NDArray

LEVEL = 24
NO_POSITION = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def hilbert_cells(
    lat: NDArray[np.float64], lon: NDArray[np.float64], level: int = LEVEL
) -> NDArray[np.uint64]:
    """Cell of each position (N,) uint64; NO_POSITION where latitude or longitude is NaN.

    Args:
        lat, lon: WGS84 degrees (N,), NaN for none.
        level:    the world is 2**level cells wide and high, at most 31.
    """
    side = 1 << level
    known = np.isfinite(lat) & np.isfinite(lon)
    x = _grid((np.where(known, lon, 0.0) + 180.0) / 360.0, side)
    y = _grid((np.where(known, lat, 0.0) + 90.0) / 180.0, side)
    return np.where(known, curve_cells(x, y, level).astype(np.uint64), NO_POSITION)


def curve_cells(x: NDArray[np.int64], y: NDArray[np.int64], level: int) -> NDArray[np.int64]:
    """Numbers (N,) along the curve of grid columns x and rows y (N,), each in [0, 2**level)."""
    side = 1 << level
    cells = np.zeros(len(x), dtype=np.int64)
    step = side >> 1
    while step:
        right = (x & step) > 0
        upper = (y & step) > 0
        cells += step * step * ((3 * right) ^ upper)
        # Rotate the quadrant so that the curve enters and leaves it at the right corners.
        mirror = right & ~upper
        x, y = np.where(mirror, side - 1 - x, x), np.where(mirror, side - 1 - y, y)
        x, y = np.where(upper, x, y), np.where(upper, y, x)
        step >>= 1
    return cells


def _grid(fraction: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.clip((fraction * side).astype(np.int64), 0, side - 1)
