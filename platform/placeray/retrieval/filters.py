"""Which photos may answer: those of an area, a direction, a time.

Rows lie along a Hilbert curve, so an area is a few runs of rows: cells of the curve wholly inside it are taken as they
are, of cells on its edge every photo is checked. A search of 1 % of a map then costs about 1 %. The other conditions
are checked photo by photo inside these runs. Filters are exact; a photo that lacks what a condition asks for (no
position, no heading, no time) does not fulfil it.
"""

from datetime import date
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from placeray.config import Config
from placeray.geo import EARTH_RADIUS_M, RIM_M, distance_m
from placeray.retrieval import popcount_scan
from placeray.retrieval.cells import LEVEL, NO_POSITION, curve_cells
from placeray.retrieval.moments import first_moment, last_moment, surely_between

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
# West, south, east, north in degrees; west <= east.
Bounds = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]

# Where a box of positions lies: wholly inside an area, wholly outside, or neither is sure.
INSIDE, EDGE, OUTSIDE = 1, 0, -1
Places = NDArray[np.int64]

# The box around an area is cut into up to this many cells a side, and those on the edge of the area again in four, so
# many times: more cells leave fewer photos to check, but take longer themselves.
_CELLS_A_SIDE = 16
_REFINEMENTS = 2
# Compiled, circles are cut once more: cells and short runs cost little there, photos to check as much.
_CIRCLE_REFINEMENTS = 3
# Runs nearer than this are searched as one, photos between them not allowed: a piece of its own would cost as much.
_ROWS_BETWEEN = 8000
# Up to this radius and latitude, distances in the plane are right to better than this share (checked by a test).
_NEAR_DATE_LINE = 170.0
_PLANE_RADIUS_M, _PLANE_LATITUDE, _PLANE_ERROR = 100_000.0, 75.0, 1e-3
_ROUNDING_ERROR = 1e-6  # of a share, far above what float64 loses on a circle of centimetres


class Run(NamedTuple):
    """Neighbouring rows of a shard, `start` to `end`; of them those of `allowed` (n,), all when None."""

    start: int
    end: int
    allowed: Mask | None


class Circle(Config):
    """All positions within a distance, such as that of a GPS fix."""

    lat: float = Field(ge=-90, le=90, description="WGS84 degrees")
    lon: float = Field(ge=-180, le=180, description="WGS84 degrees")
    radius_m: float = Field(gt=0, allow_inf_nan=False, description="metres on the sphere")

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside: by a plane, and on the sphere where the plane is too coarse to tell."""
        if not self.is_small:
            return self._contains_on_sphere(lat, lon)
        metres = self._plane_m(lat, lon)
        inside: Mask = metres <= self.radius_m
        unsure = np.flatnonzero(np.abs(metres - self.radius_m) <= self.rim_error * self.radius_m)
        inside[unsure] = self._contains_on_sphere(lat[unsure], lon[unsure])
        return inside

    @property
    def rim_error(self) -> float:
        """To what share the plane is right about distances of a radius: its error grows with their square."""
        return _ROUNDING_ERROR + _PLANE_ERROR * (self.radius_m / _PLANE_RADIUS_M) ** 2

    @property
    def is_small(self) -> bool:
        """Whether a plane around its middle is good enough to decide by."""
        return self.radius_m <= _PLANE_RADIUS_M and abs(self.lat) <= _PLANE_LATITUDE

    def _contains_on_sphere(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside, by great-circle distance."""
        inside: Mask = distance_m(lat, lon, self.lat, self.lon) <= self.radius_m + RIM_M
        return inside

    def _plane_m(self, lat: Floats, lon: Floats) -> Floats:
        """Distances as if the earth were flat between the parallels of the two positions."""
        north = (lat - self.lat) * (np.pi / 180)
        east = lon - self.lon
        if (
            abs(self.lon) > _NEAR_DATE_LINE
        ):  # elsewhere, what lies beyond the line is too far away in any case
            east = np.mod(east + 180, 360) - 180
        east *= np.pi / 180
        here = np.radians(self.lat)
        # The cosine of the latitude half way, to second order.
        east *= np.cos(here) - (0.5 * np.sin(here)) * north - (0.125 * np.cos(here)) * north * north
        metres: Floats = EARTH_RADIUS_M * np.sqrt(north * north + east * east)
        return metres

    def bounds(self) -> list[Bounds]:
        """Boxes around it, two where it crosses longitude 180."""
        angle = self.radius_m / EARTH_RADIUS_M
        north, south = self.lat + np.degrees(angle), self.lat - np.degrees(angle)
        if north >= 90 or south <= -90:
            return [(-180.0, max(south, -90.0), 180.0, min(north, 90.0))]
        # A hair wider, so that rounding does not lose a photo on the edge.
        half = np.degrees(np.arcsin(min(np.sin(angle) / np.cos(np.radians(self.lat)), 1.0))) + 1e-9
        return _unwrapped(self.lon - half, south - 1e-9, self.lon + half, north + 1e-9)

    def classify(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Places:
        """Where boxes (n,) lie: no photo of one is farther from its middle than half its sides together."""
        lat, lon = (south + north) / 2, (west + east) / 2
        if self.is_small:
            middle = self._plane_m(lat, lon)
            error = _PLANE_ERROR * middle
        else:
            middle, error = distance_m(lat, lon, self.lat, self.lon), np.zeros(len(lat))
        wide = np.cos(np.radians(np.clip(np.minimum(np.abs(south), np.abs(north)), 0, 90)))
        wide = np.where(south * north < 0, 1.0, wide)
        reach = error + EARTH_RADIUS_M * (np.radians(north - south) + np.radians(east - west) * wide) / 2
        places = np.where(middle + reach <= self.radius_m, INSIDE, EDGE)
        return np.where(middle - reach > self.radius_m, OUTSIDE, places)


class Box(Config):
    """All positions between two meridians and two parallels; west > east crosses longitude 180."""

    west: float = Field(ge=-180, le=180)
    south: float = Field(ge=-90, le=90)
    east: float = Field(ge=-180, le=180)
    north: float = Field(ge=-90, le=90)

    @field_validator("north")
    @classmethod
    def _has_height(cls, north: float, others: ValidationInfo) -> float:
        south = others.data.get("south", north)
        if south > north:
            raise ValueError(f"south={south} lies north of north={north}: no photo can lie between")
        return north

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside, the edge included; longitudes 180 and -180 are the same."""
        inside = np.zeros(len(lat), dtype=np.bool_)
        for west, south, east, north in self.bounds():
            inside |= (west <= lon) & (lon <= east) & (south <= lat) & (lat <= north)
        return inside

    def bounds(self) -> list[Bounds]:
        """Itself, in two parts where it crosses longitude 180 or ends there."""
        parts = [(self.west, self.east)]
        if self.west > self.east:
            parts = [(self.west, 180.0), (-180.0, self.east)]
        elif self.east == 180.0:
            parts.append((-180.0, -180.0))
        elif self.west == -180.0:
            parts.append((180.0, 180.0))
        return [(west, self.south, east, self.north) for west, east in parts]

    def classify(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Places:
        """Where boxes (n,) lie; none is outside, as only those of `bounds` are asked for."""
        inside = np.zeros(len(west), dtype=np.bool_)
        for first, lowest, last, highest in self.bounds():
            inside |= (first <= west) & (east <= last) & (lowest <= south) & (north <= highest)
        return np.where(inside, INSIDE, EDGE)


class Polygon(Config):
    """All positions inside a polygon on the plane of longitude and latitude; it must not cross longitude 180."""

    points: Points = Field(min_length=3, description="(lat, lon) of its corners in order")

    @field_validator("points")
    @classmethod
    def _lie_on_the_plane(cls, points: Points) -> Points:
        for lat, lon in points:
            if not (abs(lat) <= 90 and abs(lon) <= 180):
                raise ValueError(f"corner ({lat}, {lon}) is no (lat, lon) in degrees")
        for (_, lon1), (_, lon2) in pairwise((*points, points[0])):
            if abs(lon1 - lon2) > 180:
                raise ValueError(
                    f"the edge from longitude {lon1} to {lon2} crosses longitude 180: search with a box or a circle, "
                    "or once with a polygon on either side"
                )
        return points

    def contains(self, lat: Floats, lon: Floats) -> Mask:
        """Which positions (n,) lie inside: an odd number of edges lies east of them."""
        inside, lon = np.zeros(len(lat), dtype=np.bool_), np.where(lon == 180, -180, lon)
        for (lat1, lon1), (lat2, lon2) in self._edges():
            if lat1 != lat2:
                crosses = (lat1 > lat) != (lat2 > lat)
                inside ^= crosses & (lon < (lon2 - lon1) * (lat - lat1) / (lat2 - lat1) + lon1)
        return inside

    def bounds(self) -> list[Bounds]:
        """The box around it, and longitude 180 where it begins at -180, which is the same."""
        lat, lon = np.array(self.points).T
        south, north = float(lat.min()), float(lat.max())
        around = [(float(lon.min()), south, float(lon.max()), north)]
        return [*around, (180.0, south, 180.0, north)] if lon.min() == -180 else around

    def classify(self, west: Floats, south: Floats, east: Floats, north: Floats) -> Places:
        """Where boxes (n,) lie: where no edge comes near, their middle decides."""
        clear = np.ones(len(west), dtype=np.bool_)
        for (lat1, lon1), (lat2, lon2) in self._edges():
            beside = (max(lon1, lon2) < west) | (min(lon1, lon2) > east)
            clear &= beside | (max(lat1, lat2) < south) | (min(lat1, lat2) > north)
        if len(self.bounds()) > 1:
            clear &= east < 180
        inside = self.contains((south + north) / 2, (west + east) / 2)
        return np.where(clear, np.where(inside, INSIDE, OUTSIDE), EDGE)

    def _edges(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(zip(self.points, (*self.points[1:], self.points[0]), strict=True))


class Filter(Config):
    """Conditions that all must hold; those left out do not restrict."""

    area: Circle | Box | Polygon | None = None
    heading_deg: float | None = Field(
        default=None, allow_inf_nan=False, description="direction the photos look in"
    )
    heading_tolerance_deg: float = Field(default=45.0, ge=0, le=180, description="to either side")
    captured_from: str | None = Field(
        default=None, description="ISO 8601 prefix such as 2016 or 2016-06; the first moment it may mean"
    )
    captured_to: str | None = Field(default=None, description="likewise, the last moment it may mean")

    @field_validator("captured_from", "captured_to", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """YAML makes a number of 2016, a date of 2016-06-12 and a datetime of what is longer."""
        if isinstance(value, date):
            return value.isoformat()
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("captured_from", "captured_to")
    @classmethod
    def _may_be_a_moment(cls, beginning: str | None) -> str | None:
        if beginning is not None:
            first_moment(beginning)
        return beginning

    @model_validator(mode="after")
    def _has_order(self) -> Self:
        start, end = self.time_span
        if start is not None and end is not None and start[: len(end)] > end:
            times = f"captured_from {self.captured_from} lies behind captured_to {self.captured_to}"
            raise ValueError(f"{times}: no photo can fulfil that")
        return self

    @property
    def time_span(self) -> tuple[str | None, str | None]:
        """The first and the last moment asked for, as `surely_between` wants them."""
        start, end = self.captured_from, self.captured_to
        return start and first_moment(start), end and last_moment(end)

    @property
    def is_empty(self) -> bool:
        """Whether every photo fulfils it."""
        return all(
            value is None for value in (self.area, self.heading_deg, self.captured_from, self.captured_to)
        )

    @property
    def small_circle(self) -> Circle | None:
        """The circle, where that is all it asks for and a plane is good enough for it."""
        alone = self.heading_deg is None and self.captured_from is None and self.captured_to is None
        return self.area if alone and isinstance(self.area, Circle) and self.area.is_small else None


class Positions:
    """The columns of a shard's rows.arrow that filters read, as arrays over the same memory."""

    def __init__(self, table: pa.Table) -> None:
        """`table` has columns cell, lat, lon, heading_deg and captured; rows without a position come last."""
        self._table = table
        cells = _values(table, "cell", 0, len(table))
        known = int(np.searchsorted(cells, NO_POSITION))
        self.cells: NDArray[np.uint64] = cells[:known]
        self.lat, self.lon = (_values(table, name, 0, known) for name in ("lat", "lon"))

    def __len__(self) -> int:
        return len(self._table)

    def headings(self, start: int, end: int) -> Floats:
        """Degrees (n,) of some rows, NaN for null."""
        return _values(self._table, "heading_deg", start, end)

    def captured(self, start: int, end: int) -> pa.ChunkedArray:
        """Times (n,) of some rows."""
        return self._table["captured"].slice(start, end - start)


class Cover(NamedTuple):
    """Ranges of cells that hold an area, ascending and apart; found once for all shards."""

    first: NDArray[np.uint64]
    end: NDArray[np.uint64]
    sure: Mask  # whether all photos of a range lie in the area

    def touches(self, first_cells: NDArray[np.uint64], last_cells: NDArray[np.uint64]) -> Mask:
        """Which shards (n,), whose cells begin and end with these, may have photos in a range."""
        ended = np.searchsorted(self.end, first_cells, side="right")
        begun = np.searchsorted(self.first, last_cells, side="right")
        touched: Mask = ended < begun
        return touched


def select(photos: Positions, wanted: Filter, cover: Cover | None = None) -> list[Run]:
    """The rows of a shard that fulfil a filter, ascending.

    Args:
        cover: `cover` of the area, where several shards are asked.
    """
    runs = [Run(0, len(photos), None)]
    if wanted.area is not None:
        runs = _area_runs(photos, wanted.area, cover or cover_area(wanted.area))
    if wanted.heading_deg is not None or wanted.captured_from is not None or wanted.captured_to is not None:
        runs = [_narrowed(photos, run, wanted) for run in runs]
    return [run for run in runs if run.end > run.start and (run.allowed is None or run.allowed.any())]


def _area_runs(photos: Positions, area: Circle | Box | Polygon, cover: Cover) -> list[Run]:
    starts, ends, sure = _covered_rows(photos.cells, cover)
    if not len(starts):
        return []
    # Runs that are near each other are pieces of rows; the masks of all pieces lie one after the other.
    edges = np.concatenate([[0], np.flatnonzero(starts[1:] - ends[:-1] > _ROWS_BETWEEN) + 1])
    counts = np.diff(edges, append=len(starts))
    begin, end = starts[edges], ends[edges + counts - 1]
    masks = np.concatenate([[0], np.cumsum(end - begin)])
    allowed = _allowed(
        photos, area, starts, ends, sure, np.repeat(begin - masks[:-1], counts), int(masks[-1])
    )
    whole = np.add.reduceat((ends - starts) * sure, edges) == end - begin
    return [
        Run(first, last, None if every else allowed[mask : mask + last - first])
        for first, last, mask, every in zip(
            begin.tolist(), end.tolist(), masks.tolist(), whole.tolist(), strict=False
        )
    ]


def _covered_rows(
    cells: NDArray[np.uint64], cover: Cover
) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    """Starts and ends of the rows in every range of cells that has any, and which ranges are sure."""
    first, end, sure = cover
    loops = _loops()
    if loops is not None:
        starts, ends, which = np.empty((3, len(first)), dtype=np.int64)
        count = loops.locate(cells, first, end, starts, ends, which)
        return starts[:count], ends[:count], sure[which[:count]]
    starts, ends = np.searchsorted(cells, first), np.searchsorted(cells, end)
    filled = ends > starts
    return starts[filled], ends[filled], sure[filled]


def _allowed(
    photos: Positions,
    area: Circle | Box | Polygon,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    sure: Mask,
    before: NDArray[np.int64],
    count: int,
) -> Mask:
    """Which rows of runs lie in the area (count,): row r of run i stands at r - before[i]."""
    allowed = np.zeros(count, dtype=np.bool_)
    loops = _circle_loops(area)
    if loops is not None and isinstance(area, Circle):
        loops.mark(plane_of(area), photos.lat, photos.lon, starts, ends, sure, before, allowed.view(np.uint8))
        return allowed
    for start, end in zip((starts - before)[sure].tolist(), (ends - before)[sure].tolist(), strict=True):
        allowed[start:end] = True
    to_check = _spans(starts[~sure], ends[~sure])
    places = to_check - np.repeat(before[~sure], (ends - starts)[~sure])
    allowed[places] = area.contains(photos.lat[to_check], photos.lon[to_check])
    return allowed


def _loops() -> ModuleType | None:
    """Compiled loops, where they are at hand."""
    if not popcount_scan.loaded():
        return None
    from placeray.retrieval import area_kernels

    return area_kernels


def _circle_loops(area: Circle | Box | Polygon) -> ModuleType | None:
    """The same for a circle that a plane is good enough for."""
    return _loops() if isinstance(area, Circle) and area.is_small else None


def plane_of(circle: Circle) -> Any:
    """The circle as the compiled loops want it."""
    from placeray.retrieval.area_kernels import Plane

    here = np.radians(circle.lat)
    return Plane(
        circle.lat, circle.lon, circle.radius_m, _PLANE_ERROR, circle.rim_error, abs(circle.lon) > _NEAR_DATE_LINE,
        float(np.cos(here)), float(np.sin(here)),
    )  # fmt: skip


def _spans(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from each start to before its end."""
    lengths = ends - starts
    skipped = starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(starts) else starts
    return np.arange(int(lengths.sum())) + np.repeat(skipped, lengths)


def cover_area(area: Circle | Box | Polygon) -> Cover:
    """Ranges of cells that hold an area: large cells inside it, small ones along its edge."""
    boxes = [tuple(_grid_line(degrees, i % 2) for i, degrees in enumerate(box)) for box in area.bounds()]
    widest = max(max(east - west, north - south) for west, south, east, north in boxes)
    shift = (widest // _CELLS_A_SIDE).bit_length()
    loops = _circle_loops(area)
    if loops is not None and len(boxes) == 1:
        return _cover_circle(area, loops, boxes[0], max(shift - _CIRCLE_REFINEMENTS, 0))
    finest = max(shift - _REFINEMENTS, 0)
    x, y = _grid(boxes, shift)
    corners, shifts, kinds = [], [], []
    while True:
        places = _classify(area, x, y, shift)
        last = shift == finest
        taken = places != OUTSIDE if last else places == INSIDE
        corners.append((x[taken] << shift, y[taken] << shift))
        shifts.append(np.full(int(taken.sum()), shift))
        kinds.append(places[taken] == INSIDE)
        if last:
            break
        x, y = _quartered(x[places == EDGE], y[places == EDGE])
        shift -= 1
    x, y = (np.concatenate(part) for part in zip(*corners, strict=True))
    widths = (2 * np.concatenate(shifts)).astype(np.uint64)
    return _ranges(curve_cells(x, y, LEVEL).astype(np.uint64), widths, np.concatenate(kinds))


def _cover_circle(circle: Any, loops: ModuleType, box: tuple[int, ...], finest: int) -> Cover:
    west, south, east, north = box
    bounds = np.array([west, east, south, north])
    room = 1024
    while True:
        found = Cover(np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.bool_))
        count = loops.cover(plane_of(circle), bounds, finest, *found)
        if count <= room:
            return Cover(found.first[:count], found.end[:count], found.sure[:count])
        room = count


def _ranges(inside: NDArray[np.uint64], widths: NDArray[np.uint64], sure: Mask) -> Cover:
    """Cells around the cells `inside`, of 2**widths finest ones each: first and end, neighbours of a kind joined."""
    first = inside >> widths << widths
    order = np.argsort(first)
    first, widths, sure = first[order], widths[order], sure[order]
    end = first + (np.uint64(1) << widths)
    if not len(first):
        return Cover(first, end, sure)
    breaks = np.flatnonzero((first[1:] != end[:-1]) | (sure[1:] != sure[:-1])) + 1
    begin = np.concatenate([[0], breaks])
    return Cover(first[begin], end[np.concatenate([breaks, [len(end)]]) - 1], sure[begin])


def _grid(boxes: list[tuple[int, ...]], shift: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and lines of the cells, 2**shift finest ones wide, that boxes of grid lines touch, each cell once."""
    grids = [
        np.mgrid[west >> shift : (east >> shift) + 1, south >> shift : (north >> shift) + 1].reshape(2, -1)
        for west, south, east, north in boxes
    ]
    columns, lines = grids[0] if len(grids) == 1 else np.unique(np.concatenate(grids, axis=1), axis=1)
    return columns, lines


def _quartered(x: NDArray[np.int64], y: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The four cells of half the width in each cell."""
    return (
        (2 * x[:, None] + np.array([0, 0, 1, 1])).ravel(),
        (2 * y[:, None] + np.array([0, 1, 0, 1])).ravel(),
    )


def _classify(area: Circle | Box | Polygon, x: NDArray[np.int64], y: NDArray[np.int64], shift: int) -> Places:
    side = 1 << (LEVEL - shift)
    rounding = 1e-9  # degrees: a photo may lie this far outside the cell it was put in
    west, south = x * (360 / side) - 180 - rounding, y * (180 / side) - 90 - rounding
    return area.classify(west, south, west + 360 / side + 2 * rounding, south + 180 / side + 2 * rounding)


def _grid_line(degrees: float, is_latitude: int) -> int:
    """Column or line of the finest grid that a longitude or latitude lies in."""
    side, half = 1 << LEVEL, 90.0 if is_latitude else 180.0
    return min(max(int((degrees + half) / (2 * half) * side), 0), side - 1)


def _narrowed(photos: Positions, run: Run, wanted: Filter) -> Run:
    allowed = np.ones(run.end - run.start, dtype=np.bool_) if run.allowed is None else run.allowed
    if wanted.heading_deg is not None:
        turn = np.abs((photos.headings(run.start, run.end) - wanted.heading_deg + 180) % 360 - 180)
        allowed = allowed & (turn <= wanted.heading_tolerance_deg)
    if wanted.captured_from is not None or wanted.captured_to is not None:
        allowed = allowed & surely_between(photos.captured(run.start, run.end), *wanted.time_span)
    return Run(run.start, run.end, allowed)


def _values(table: pa.Table, name: str, start: int, end: int) -> NDArray[Any]:
    """Numbers of a column, NaN for null; a view where there is none."""
    column = table[name].slice(start, end - start)
    if column.num_chunks != 1 or column.null_count:
        return column.to_numpy(zero_copy_only=False)
    values: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
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
