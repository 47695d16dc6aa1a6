"""Which photos may answer: those of an area, a direction, a time.

Rows lie along a Hilbert curve, so an area is a few runs of rows: cells of the curve wholly inside it are taken as they
are, of cells on its edge every photo is checked. A search of 1 % of a map then costs about 1 %. The other conditions
are checked photo by photo inside these runs. Filters are exact; a photo that lacks what a condition asks for (no
position, no heading, no time) does not fulfil it.
"""

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from placeray.config import Config
from placeray.geo import EARTH_RADIUS_M, distance_m
from placeray.retrieval.cells import LEVEL, curve_cells

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
# West, south, east, north in degrees; west <= east.
Bounds = tuple[float, float, float, float]

# The box around an area is cut into about this many cells a side: more make fewer photos to check, but more runs.
_CELLS_A_SIDE = 16


class Run(NamedTuple):
    """Neighbouring rows of a shard, `start` to `end`; of them those of `allowed` (n,), all when None."""

    start: int
    end: int
    allowed: Mask | None


class Circle(Config):
    """All positions within a distance, such as that of a GPS fix."""

    lat: float = Field(ge=-90, le=90, description="WGS84 degrees")
    lon: float = Field(ge=-180, le=180, description="WGS84 degrees")
    radius_m: float = Field(gt=0, description="metres on the sphere")

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside."""
        inside: Mask = distance_m(lat, lon, self.lat, self.lon) <= self.radius_m
        return inside

    def bounds(self) -> list[Bounds]:
        """Boxes around it, two where it crosses longitude 180."""
        angle = self.radius_m / EARTH_RADIUS_M
        north, south = self.lat + np.degrees(angle), self.lat - np.degrees(angle)
        if north >= 90 or south <= -90:
            return [(-180.0, max(south, -90.0), 180.0, min(north, 90.0))]
        # A hair wider, so that rounding does not lose a photo on the edge.
        half = np.degrees(np.arcsin(min(np.sin(angle) / np.cos(np.radians(self.lat)), 1.0))) + 1e-9
        return _unwrapped(self.lon - half, south - 1e-9, self.lon + half, north + 1e-9)

    def surely_contains(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Mask:
        """Which boxes (n,) lie wholly inside: distance grows along parallels and meridians, corners decide."""
        corners = [self.contains(lat, lon) for lat in (south, north) for lon in (west, east)]
        inside: Mask = np.logical_and.reduce(corners)
        return inside


class Box(Config):
    """All positions between two meridians and two parallels; west > east crosses longitude 180."""

    west: float = Field(ge=-180, le=180)
    south: float = Field(ge=-90, le=90)
    east: float = Field(ge=-180, le=180)
    north: float = Field(ge=-90, le=90)

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside, the edge included."""
        across = (lon >= self.west) & (lon <= self.east)
        if self.west > self.east:
            across = (lon >= self.west) | (lon <= self.east)
        return across & (lat >= self.south) & (lat <= self.north)

    def bounds(self) -> list[Bounds]:
        """Itself, in two parts where it crosses longitude 180."""
        if self.west > self.east:
            return [(self.west, self.south, 180.0, self.north), (-180.0, self.south, self.east, self.north)]
        return [(self.west, self.south, self.east, self.north)]

    def surely_contains(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Mask:
        """Which boxes (n,) lie wholly inside."""
        return self.contains(south, west) & self.contains(north, east)


class Polygon(Config):
    """All positions inside a polygon on the plane of longitude and latitude; it must not cross longitude 180."""

    points: tuple[tuple[float, float], ...] = Field(
        min_length=3, description="(lat, lon) of its corners in order"
    )

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside: an odd number of edges lies east of them."""
        inside = np.zeros(len(lat), dtype=np.bool_)
        for (lat1, lon1), (lat2, lon2) in self._edges():
            if lat1 != lat2:
                crosses = (lat1 > lat) != (lat2 > lat)
                inside ^= crosses & (lon < (lon2 - lon1) * (lat - lat1) / (lat2 - lat1) + lon1)
        return inside

    def bounds(self) -> list[Bounds]:
        """The box around it."""
        lat, lon = np.array(self.points).T
        return [(float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max()))]

    def surely_contains(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Mask:
        """Which boxes (n,) lie wholly inside: no edge comes near, and the middle is inside."""
        clear = self.contains((south + north) / 2, (west + east) / 2)
        for (lat1, lon1), (lat2, lon2) in self._edges():
            beside = (max(lon1, lon2) < west) | (min(lon1, lon2) > east)
            clear &= beside | (max(lat1, lat2) < south) | (min(lat1, lat2) > north)
        return clear

    def _edges(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(zip(self.points, (*self.points[1:], self.points[0]), strict=True))


class Filter(Config):
    """Conditions that all must hold; those left out do not restrict."""

    area: Circle | Box | Polygon | None = None
    heading_deg: float | None = Field(default=None, description="direction the photos look in")
    heading_tolerance_deg: float = Field(default=45.0, ge=0, le=180, description="to either side")
    captured_from: str | None = Field(
        default=None, description="ISO 8601 prefix such as 2016 or 2016-06; the first moment it may mean"
    )
    captured_to: str | None = Field(default=None, description="likewise, the last moment it may mean")

    @model_validator(mode="after")
    def _has_order(self) -> Self:
        start, end = self.captured_from, self.captured_to
        if start is not None and end is not None and start[: len(end)] > end:
            raise ValueError(f"captured_from {start} lies behind captured_to {end}: no photo can fulfil that")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether every photo fulfils it."""
        return all(
            value is None for value in (self.area, self.heading_deg, self.captured_from, self.captured_to)
        )


def select(table: pa.Table, wanted: Filter) -> list[Run]:
    """The rows of a shard that fulfil a filter.

    Args:
        table: rows.arrow of the shard: columns cell, lat, lon, heading_deg, captured.
    """
    runs = [Run(0, len(table), None)] if wanted.area is None else _area_runs(table, wanted.area)
    if wanted.heading_deg is not None or wanted.captured_from is not None or wanted.captured_to is not None:
        runs = [_narrowed(table, run, wanted) for run in runs]
    return [run for run in runs if run.end > run.start and (run.allowed is None or run.allowed.any())]


def _area_runs(table: pa.Table, area: Circle | Box | Polygon) -> list[Run]:
    cells = table["cell"].chunk(0).to_numpy() if table["cell"].num_chunks else np.zeros(0, dtype=np.uint64)
    first, end, sure = _covering(area)
    starts, ends = np.searchsorted(cells, first), np.searchsorted(cells, end)
    runs = []
    for start, stop, whole in zip(starts.tolist(), ends.tolist(), sure.tolist(), strict=True):
        if stop > start:
            runs.append(Run(start, stop, None if whole else _inside(table, start, stop, area)))
    return runs


def _inside(table: pa.Table, start: int, end: int, area: Circle | Box | Polygon) -> Mask:
    lat, lon = (_values(table, name, start, end) for name in ("lat", "lon"))
    return area.contains(lat, lon)


def _covering(area: Circle | Box | Polygon) -> tuple[NDArray[np.uint64], NDArray[np.uint64], Mask]:
    """Ranges of cells, first to end, that hold an area, ascending, and whether each is sure to lie inside."""
    side = 1 << LEVEL
    boxes = [
        tuple(_grid_line(degrees, side, i % 2) for i, degrees in enumerate(box)) for box in area.bounds()
    ]
    widest = max(max(east - west, north - south) for west, south, east, north in boxes)
    shift = (widest // _CELLS_A_SIDE).bit_length()
    grids = [
        np.meshgrid(
            np.arange(west >> shift, (east >> shift) + 1), np.arange(south >> shift, (north >> shift) + 1)
        )
        for west, south, east, north in boxes
    ]
    x, y = (np.concatenate([grid[axis].ravel() for grid in grids]) for axis in (0, 1))
    # Two boxes may share cells.
    different, chosen = np.unique(curve_cells(x, y, LEVEL - shift), return_index=True)
    x, y, number = x[chosen], y[chosen], different.astype(np.uint64)
    edges_x, edges_y = 360 / (side >> shift), 180 / (side >> shift)
    rounding = 1e-9  # degrees: a photo may lie this far outside the cell it was put in
    sure = area.surely_contains(
        x * edges_x - 180 - rounding,
        y * edges_y - 90 - rounding,
        (x + 1) * edges_x - 180 + rounding,
        (y + 1) * edges_y - 90 + rounding,
    )
    # Neighbours along the curve of the same kind become one range.
    breaks = np.flatnonzero((np.diff(number) != 1) | (sure[1:] != sure[:-1])) + 1
    first = np.concatenate([[0], breaks])
    last = np.concatenate([breaks, [len(number)]]) - 1
    width = np.uint64(2 * shift)
    return number[first] << width, (number[last] + np.uint64(1)) << width, sure[first]


def _grid_line(degrees: float, side: int, is_latitude: int) -> int:
    """Column or line of the grid that a longitude or latitude lies in."""
    half = 90.0 if is_latitude else 180.0
    return min(max(int((degrees + half) / (2 * half) * side), 0), side - 1)


def _narrowed(table: pa.Table, run: Run, wanted: Filter) -> Run:
    allowed = np.ones(run.end - run.start, dtype=np.bool_) if run.allowed is None else run.allowed
    if wanted.heading_deg is not None:
        heading = _values(table, "heading_deg", run.start, run.end)
        turn = np.abs((heading - wanted.heading_deg + 180) % 360 - 180)
        allowed = allowed & (turn <= wanted.heading_tolerance_deg)
    if wanted.captured_from is not None or wanted.captured_to is not None:
        captured = table["captured"].slice(run.start, run.end - run.start)
        allowed = allowed & _in_time(captured, wanted.captured_from, wanted.captured_to)
    return Run(run.start, run.end, allowed)


def _in_time(captured: pa.ChunkedArray, start: str | None, end: str | None) -> Mask:
    """Whether all moments that an ISO 8601 prefix may mean lie between two others, (n,)."""
    fits = pc.is_valid(captured)
    if start is not None:  # 2016 is not surely after 2016-06, and sorts before it
        fits = pc.and_(fits, pc.greater_equal(captured, start))
    if end is not None:  # 2016 is not surely before 2016-06, but 2015 is
        fits = pc.and_(fits, pc.or_(pc.less(captured, end), pc.starts_with(captured, end)))
        prefixes = [end[:length] for length in range(len(end))]
        fits = pc.and_(fits, pc.invert(pc.is_in(captured, value_set=pa.array(prefixes, pa.string()))))
    mask: Mask = pc.fill_null(fits, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask


def _values(table: pa.Table, name: str, start: int, end: int) -> Floats:
    """A column of numbers, NaN for null."""
    column = table[name].slice(start, end - start)
    values: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _unwrapped(west: float, south: float, east: float, north: float) -> list[Bounds]:
    """Boxes with longitudes in [-180, 180] of one that may reach beyond."""
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    if west < -180:
        return [(west + 360, south, 180.0, north), (-180.0, south, east, north)]
    if east > 180:
        return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]
    return [(west, south, east, north)]
