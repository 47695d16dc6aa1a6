"""The order of photos in a map: cells along a Hilbert curve over longitude and latitude.

Photos that are near in the world are near in the files, so that an area of the world is a few row ranges. A
cell at level 24 is about 2.4 m wide at the equator; a coarser cell is a prefix of its bits. Photos without a
position come last. Source: the Hilbert curve as in Hamilton, "Compact Hilbert Indices" (2006), two
dimensions, vectorised.
"""

import functools
import itertools

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
    steps = -(-level // _STEP)
    table = _curve_table()
    # Leading zeros, up to whole steps, number nothing but exchange the axes once each.
    state = np.full(len(x), _SWAPPED * ((steps * _STEP - level) % 2), dtype=np.int64)
    cells = np.zeros(len(x), dtype=np.int64)
    for shift in range((steps - 1) * _STEP, -1, -_STEP):
        place = (((x >> shift) & _LOW) << _STEP) | ((y >> shift) & _LOW)
        entry = table[(state << 2 * _STEP) | place]
        cells = (cells << 2 * _STEP) | (entry >> 2)
        state = entry & 3
    return cells


# The curve is walked this many levels at a time, by a table.
_STEP = 4
_LOW = (1 << _STEP) - 1
# How a quadrant is turned against the whole: its axes exchanged, and both mirrored.
_SWAPPED, _MIRRORED = 1, 2


@functools.cache
def _curve_table() -> NDArray[np.int64]:
    """For [state, x, y], _STEP bits each of x and y: the number along the curve, times 4, plus the state inside."""
    table = []
    for state, x, y in itertools.product(range(4), range(1 << _STEP), range(1 << _STEP)):
        number = 0
        for bit in range(_STEP - 1, -1, -1):
            quadrant, state = _enter(state, x >> bit & 1, y >> bit & 1)
            number = number << 2 | quadrant
        table.append(number << 2 | state)
    return np.array(table, dtype=np.int64)


def quadrants() -> NDArray[np.int64]:
    """The curve, a level at a time: [state, quadrant along it] holds column and line (0 or 1) and the state inside.

    The whole world has state 0 where the number of levels is a multiple of the step of the table, as LEVEL is.
    """
    found = np.empty((4, 4, 3), dtype=np.int64)
    for state, x, y in itertools.product(range(4), range(2), range(2)):
        quadrant, inside = _enter(state, x, y)
        found[state, quadrant] = x, y, inside
    return found


def _enter(state: int, x: int, y: int) -> tuple[int, int]:
    """Number along the curve, and the state inside, of the quadrant in column x and line y."""
    mirrored = 1 if state & _MIRRORED else 0
    right, upper = x ^ mirrored, y ^ mirrored
    if state & _SWAPPED:
        right, upper = upper, right
    # The curve turns, so that it enters and leaves the quadrant at the right corners.
    inside = state if upper else state ^ (_SWAPPED | (_MIRRORED if right else 0))
    return (3 * right) ^ upper, inside


def _grid(fraction: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.clip((fraction * side).astype(np.int64), 0, side - 1)
