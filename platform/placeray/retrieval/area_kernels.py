"""Rows of an area by compiled loops; importing this module fails where numba is absent.

Circles are decided as `filters.Circle` does without these loops: by a plane, on the sphere where that is too coarse.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from placeray.geo import EARTH_RADIUS_M, RIM_M
from placeray.retrieval.cells import LEVEL, quadrants
from placeray.retrieval.filters import EDGE, INSIDE, OUTSIDE
from placeray.retrieval.intrinsics import compiled, fetch, read_u8

_DEGREE = math.pi / 180
# Degrees that rounding may put a photo outside of its cell.
_ROUNDING = 1e-9
# A cell of a 4096th of the world is some ten kilometres wide; larger ones, which the plane is none for, are always cut.
_SIDE_OF_PLANE = 4096
_NUMBERS_A_LINE = 8  # of 8 bytes in a line of the cache
# For every state of the curve and quadrant along it: whether that is the right, the upper one, and the state inside.
_QUADRANTS = quadrants()


class Plane(NamedTuple):
    """A circle, and the plane that its neighbourhood is drawn on."""

    lat: float
    lon: float
    radius_m: float
    error: float  # distances are right to this share
    rim_error: float  # those of the radius, to this one
    wraps: bool  # near longitude 180, where the shorter way round is not the plain difference
    cos: float
    sin: float


@compiled
def squared(plane: Any, lat: Any, lon: Any) -> Any:
    """Squared angle from the middle of the circle, the cosine of the latitude half way taken to second order."""
    north, east = (lat - plane.lat) * _DEGREE, lon - plane.lon
    if plane.wraps:
        east = (east + 180) % 360 - 180
    east *= _DEGREE * (plane.cos - 0.5 * plane.sin * north - 0.125 * plane.cos * north * north)
    return north * north + east * east


@compiled
def reaches(plane: Any, within: Any, beyond: Any) -> None:
    """What tells INSIDE and OUTSIDE apart from the EDGE for cells of each size, 2**shift finest ones a side.

    Nothing in a cell is farther from its middle than half its sides together. So a cell lies inside where the squared
    angle of its middle is at most within[shift], outside where it is above beyond[shift].
    """
    angle = plane.radius_m / EARTH_RADIUS_M
    # A degree of longitude is widest next to the equator; of cells that the circle cuts, less than two stand out of it.
    nearest = abs(plane.lat) * _DEGREE - angle - 2 * math.pi / _SIDE_OF_PLANE
    widest = math.cos(max(nearest, 0.0))
    for shift in range(LEVEL + 1):
        side = 1 << (LEVEL - shift)
        within[shift], beyond[shift] = -1.0, np.inf
        if side >= _SIDE_OF_PLANE:
            height, width = 180 / side + 2 * _ROUNDING, 360 / side + 2 * _ROUNDING
            reach = _DEGREE * (height + width * widest) / 2
            beyond[shift] = ((angle + reach) / (1 - plane.error)) ** 2
            if angle >= reach:
                within[shift] = ((angle - reach) / (1 + plane.error)) ** 2


@compiled
def cover(plane: Any, bounds: Any, finest: int, first: Any, end: Any, sure: Any) -> int:
    """Ranges of cells that hold a circle, ascending, into `first` and `end` (n,) uint64 and `sure` (n,).

    The curve is followed from the whole world down into every quadrant that the circle cuts, to cells of 2**`finest`
    finest ones a side. `bounds` (4,) int64 are the first and last columns and lines that the circle reaches, of the
    finest cells. Returns how many ranges there are; if more than n, the others are not written.
    """
    count = 0
    # Cells still to be looked into, the next one last: shift, column, line, number along the curve, state of the curve.
    waiting = np.empty((3 * LEVEL + 4, 5), dtype=np.int64)
    waiting[0] = LEVEL, 0, 0, 0, 0
    num_waiting = 1
    within, beyond = np.empty(LEVEL + 1), np.empty(LEVEL + 1)
    reaches(plane, within, beyond)
    while num_waiting:
        num_waiting -= 1
        shift, x, y, number, state = waiting[num_waiting]
        if (
            x > bounds[1] >> shift
            or x < bounds[0] >> shift
            or y > bounds[3] >> shift
            or y < bounds[2] >> shift
        ):
            continue
        side = 1 << (LEVEL - shift)
        middle = squared(plane, (y + 0.5) * (180 / side) - 90, (x + 0.5) * (360 / side) - 180)
        place = EDGE
        if middle <= within[shift]:
            place = INSIDE
        elif middle > beyond[shift]:
            place = OUTSIDE
        if place == OUTSIDE:
            continue
        if place == EDGE and shift > finest:
            for child in range(3, -1, -1):
                right, upper, inner = _QUADRANTS[state, child]
                waiting[num_waiting] = shift - 1, 2 * x + right, 2 * y + upper, 4 * number + child, inner
                num_waiting += 1
            continue
        start, stop = np.uint64(number << 2 * shift), np.uint64((number + 1) << 2 * shift)
        if 0 < count <= len(first) and end[count - 1] == start and sure[count - 1] == (place == INSIDE):
            end[count - 1] = stop
            continue
        if count < len(first):
            first[count], end[count], sure[count] = start, stop, place == INSIDE
        count += 1
    return count


@compiled
def sphere_m(plane: Any, lat: float, lon: float) -> float:
    """Great-circle metres from the middle of the circle."""
    half = (
        math.sin((lat - plane.lat) * _DEGREE / 2) ** 2
        + math.cos(lat * _DEGREE) * plane.cos * math.sin((lon - plane.lon) * _DEGREE / 2) ** 2
    )
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(min(half, 1.0)))


@compiled
def mark(
    plane: Any, lat: Any, lon: Any, starts: Any, ends: Any, sure: Any, before: Any, allowed: Any
) -> None:
    """Set allowed[row - before[run]] (uint8) for the rows of each run inside, all of them where a run is `sure`."""
    for run in range(len(starts)):
        if sure[run]:
            allowed[starts[run] - before[run] : ends[run] - before[run]] = 1
        else:
            mark_run(plane, lat, lon, starts[run], ends[run], allowed, starts[run] - before[run])


@compiled
def mark_run(plane: Any, lat: Any, lon: Any, start: int, end: int, inside: Any, at: int) -> None:
    """Say of each row of a run whether it lies inside, into `inside` (uint8) from `at` on."""
    angle, error = plane.radius_m / EARTH_RADIUS_M, plane.rim_error
    # Of squares, which need no root: angle**2 * (1 +- error)**2.
    middle, slack = angle * angle * (1 + error * error), 2 * angle * angle * error
    lower, upper = middle - slack, middle + slack
    # Slices, and sums alone beside what is stored: so this becomes vector instructions without waste.
    lats, lons, marks = lat[start:end], lon[start:end], inside[at : at + end - start]
    surely, perhaps = 0, 0
    for i in range(len(lats)):
        found = squared(plane, lats[i], lons[i])
        marks[i] = found <= middle
        surely += found < lower
        perhaps += found <= upper
    if surely == perhaps:
        return
    for i in range(len(lats)):
        if lower <= squared(plane, lats[i], lons[i]) <= upper:
            marks[i] = sphere_m(plane, lats[i], lons[i]) <= plane.radius_m + RIM_M


@compiled
def pieces_inside(
    plane: Any, lat: Any, lon: Any, cells: Any, first: Any, end: Any, sure: Any, codes: int, stride: int,
    first_row: int, live: int,
) -> Any:  # fmt: skip
    """What `kernels.scan_rows` scans for a circle in one shard: a table (P, 4) int64 of pieces, and the bytes (m,) that
    say which photos of cells on its edge lie inside, which have to outlive it.

    Args:
        lat, lon, cells: of the rows (n,) of the shard that have a position.
        first, end, sure: see `cover`.
        codes: address of the codes of the shard, `stride` bytes each; `first_row` is its first global row.
        live: address of a byte for each row of the shard that says whether it can be returned, 0 where all can.
    """
    starts, ends, which = np.empty((3, len(first)), dtype=np.int64)
    count = locate(cells, first, end, starts, ends, which)
    on_edge = 0
    for run in range(count):
        if not sure[which[run]]:
            on_edge += ends[run] - starts[run]
            for row in range(starts[run], ends[run], _NUMBERS_A_LINE):
                fetch(lat.ctypes.data + 8 * row)
                fetch(lon.ctypes.data + 8 * row)
    inside = np.empty(on_edge, dtype=np.uint8)
    pieces = np.empty((count, 4), dtype=np.int64)
    checked = 0
    for run in range(count):
        start, rows = starts[run], ends[run] - starts[run]
        pieces[run, 0], pieces[run, 1] = codes + start * stride, rows
        pieces[run, 2], pieces[run, 3] = first_row + start, live + start if live else 0
        if sure[which[run]]:
            continue
        pieces[run, 3] = inside.ctypes.data + checked
        mark_run(plane, lat, lon, start, start + rows, inside, checked)
        if live:
            for row in range(rows):
                inside[checked + row] &= read_u8(live + start + row) != 0
        checked += rows
    return pieces, inside


@compiled
def locate(cells: Any, first: Any, end: Any, starts: Any, ends: Any, which: Any) -> int:
    """The rows whose ascending cells (n,) lie in ranges, into `starts` and `ends`; `which` says of what range.

    Returns the number of ranges that have rows.
    """
    count, row = 0, 0
    for r in range(len(first)):
        row = _search(cells, row, first[r])
        start, row = row, _search(cells, row, end[r])
        if row > start:
            starts[count], ends[count], which[count] = start, row, r
            count += 1
    return count


@compiled
def _search(cells: Any, low: int, wanted: Any) -> int:
    """The first row from `low` on whose cell is not below `wanted`; near ones are found at once."""
    step, high = 64, low
    while high < len(cells) and cells[high] < wanted:
        low, high = high + 1, high + step
        step *= 4
    high = min(high, len(cells))
    while low < high:
        middle = (low + high) // 2
        if cells[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
