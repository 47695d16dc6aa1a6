"""Metrics: which database photos are right answers to a query, and recall@k with its uncertainty.

Shape letters: `Q` queries, `N` database photos, `K` ranked answers of a query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from scipy.spatial import cKDTree
from scipy.special import ndtri

from placeray.config import Config
from placeray.errors import ConfigError, DataError
from placeray.geo import to_utm, zone_key

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

POSITION_COLUMNS = ("lat", "lon", "utm_east", "utm_north", "utm_zone", "frame")
# Coordinates are written with a few decimals: a pair laid out exactly 25 m apart must not miss the radius by
# the last bit of its float64 easting (about 1e-9 m). One micrometre is far below any decimal ever written.
EDGE_M = 1e-6


class RadiusRule(Config):
    """A database photo is right when it was taken within `radius_m` of the query; the edge counts."""

    kind: Literal["radius"] = "radius"
    radius_m: float = Field(default=25.0, gt=0, description="largest distance that still counts, in metres")


class FramesRule(Config):
    """A database photo is right when its frame number differs from the query's by at most `window`."""

    kind: Literal["frames"] = "frames"
    window: int = Field(default=2, ge=0, description="largest frame difference that still counts")


class ExactRule(Config):
    """A database photo is right when it carries the query's own frame (pair) number."""

    kind: Literal["exact"] = "exact"


PositiveRule = Annotated[RadiusRule | FramesRule | ExactRule, Field(discriminator="kind")]
_RULE: TypeAdapter[RadiusRule | FramesRule | ExactRule] = TypeAdapter(PositiveRule)


@dataclass(frozen=True)
class Recall:
    """Share of queries whose first k answers hold a right one, for every k of `ks`.

    `all` divides by all queries (the VG family and SelaVPR++ do), `with_positive` only by those that have a
    right answer in the database (official MSLS does); its entries are NaN when there is no such query.
    """

    ks: tuple[int, ...]
    all: tuple[float, ...]
    with_positive: tuple[float, ...]
    num_queries: int
    num_with_positive: int

    def at(self, k: int) -> float:
        """Recall@k over all queries; raises KeyError for a k that was not asked for."""
        if k not in self.ks:
            raise KeyError(f"recall@{k} was not computed; computed are {list(self.ks)}")
        return self.all[self.ks.index(k)]


def parse_rule(document: Mapping[str, Any]) -> RadiusRule | FramesRule | ExactRule:
    """The rule a manifest states, such as {"kind": "radius", "radius_m": 25.0}; raises ConfigError."""
    try:
        return _RULE.validate_python(dict(document))
    except ValidationError as error:
        raise ConfigError(f"positive rule {dict(document)} is not understood: {error}") from None


def positives(rule: RadiusRule | FramesRule | ExactRule, database: pa.Table, queries: pa.Table) -> list[Rows]:
    """Row numbers of the right answers of every query, ascending.

    Args:
        rule:     what counts as right.
        database: N rows with the columns of POSITION_COLUMNS that the rule reads
                  (radius: lat, lon, utm_east, utm_north, utm_zone; frames and exact: frame).
        queries:  Q rows with the same columns.

    Returns:
        Q int64 arrays, each sorted; empty for a query without a right answer, or without a position.
    """
    if isinstance(rule, RadiusRule):
        return _within_radius(rule.radius_m, database, queries)
    window = rule.window if isinstance(rule, FramesRule) else 0
    return _within_frames(window, database, queries)


def first_hits(ranked: Rows, right: Sequence[Rows]) -> Rows:
    """Zero-based rank of the first right answer of every query; K where none of its K answers is right.

    Args:
        ranked: (Q, K) row numbers, best first; -1 pads a short list and is never right.
        right:  Q arrays of right row numbers (see `positives`).
    """
    num_queries, depth = ranked.shape
    if len(right) != num_queries:
        raise DataError(f"{num_queries} ranked queries but {len(right)} lists of right answers")
    hits = is_right(ranked, right)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), depth).astype(np.int64)


def is_right(ranked: Rows, right: Sequence[Rows]) -> NDArray[np.bool_]:
    """(Q, K) which of the ranked answers are right; the arguments are those of `first_hits`."""
    num_queries, _ = ranked.shape
    counts = np.fromiter((len(rows) for rows in right), np.int64, count=num_queries)
    flat = np.concatenate([*right, np.empty(0, np.int64)])
    # One sorted key per (query, row) pair: a membership test over all queries at once.
    stride = int(max(ranked.max(initial=0), flat.max(initial=0))) + 1
    owner = np.repeat(np.arange(num_queries, dtype=np.int64), counts)
    keys = np.arange(num_queries, dtype=np.int64)[:, None] * stride + ranked
    found: NDArray[np.bool_] = np.isin(keys, owner * stride + flat) & (ranked >= 0)
    return found


def recall_at_k(ranked: Rows, right: Sequence[Rows], ks: Sequence[int]) -> Recall:
    """Recall@k over all queries and over the queries that have a right answer (spec: datasets, A8).

    Args:
        ranked: (Q, K) row numbers, best first; -1 pads.
        right:  Q arrays of right row numbers.
        ks:     each between 1 and K.

    Raises:
        DataError: no queries, or a k beyond the K answers that were ranked.
    """
    num_queries, depth = ranked.shape
    if num_queries == 0:
        raise DataError("recall of no queries is undefined: the query table is empty")
    if not ks or min(ks) < 1 or max(ks) > depth:
        raise DataError(f"recall at {list(ks)} needs 1 <= k <= {depth}, the number of ranked answers")
    ranks = first_hits(ranked, right)
    has_positive = np.fromiter((len(rows) > 0 for rows in right), bool, count=num_queries)
    known = int(has_positive.sum())
    hits = [int((ranks < k).sum()) for k in ks]
    return Recall(
        ks=tuple(int(k) for k in ks),
        all=tuple(hit / num_queries for hit in hits),
        with_positive=tuple(hit / known if known else float("nan") for hit in hits),
        num_queries=num_queries,
        num_with_positive=known,
    )


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval that holds the true share behind an observed one (Wilson score, no continuity correction).

    It treats the `count` queries as independent; photos of one street are not, so it is the least doubt.
    """
    if count <= 0 or not 0.0 <= share <= 1.0:
        raise DataError(f"a Wilson interval needs 0 <= share <= 1 of count >= 1, got {share} of {count}")
    z = float(ndtri(0.5 + level / 2))
    middle = share + z * z / (2 * count)
    half = z * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def column(table: pa.Table, name: str) -> Floats:
    """One numeric column as (rows,) float64 with NaN for null; raises DataError naming a missing column."""
    if name not in table.column_names:
        raise DataError(f"column {name!r} is needed and missing; the table has {table.column_names}")
    values = table.column(name).cast(pa.float64())
    filled: Floats = values.fill_null(float("nan")).to_numpy()
    return filled


def _within_frames(window: int, database: pa.Table, queries: pa.Table) -> list[Rows]:
    frames, asked = column(database, "frame"), column(queries, "frame")
    known = np.flatnonzero(~np.isnan(frames)).astype(np.int64)
    order = known[np.argsort(frames[known], kind="stable")]
    ordered = frames[order]
    # NaN sorts behind every number, so a query without a frame gets an empty slice.
    first = np.searchsorted(ordered, asked - window, side="left")
    last = np.searchsorted(ordered, asked + window, side="right")
    return [np.sort(order[a:b]) for a, b in zip(first, last, strict=True)]


def _within_radius(radius_m: float, database: pa.Table, queries: pa.Table) -> list[Rows]:
    right: list[Rows] = [np.empty(0, np.int64)] * queries.num_rows
    spots, asked = _Spots.of(database), _Spots.of(queries)
    for grid in np.unique(asked.grid[asked.known]):
        members = np.flatnonzero(asked.known & (asked.grid == grid))
        rows, points = spots.in_grid(str(grid))
        if len(rows) == 0:
            continue
        near = cKDTree(points).query_ball_point(asked.points[members], radius_m + EDGE_M, return_sorted=True)
        for query, found in zip(members, near, strict=True):
            right[query] = np.sort(rows[np.asarray(found, np.int64)])
    return right


@dataclass(frozen=True)
class _Spots:
    """Positions of a table: (rows, 2) east and north in metres, each in the UTM grid `grid` names."""

    points: Floats
    degrees: Floats
    grid: NDArray[np.str_]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pa.Table) -> "_Spots":
        points = np.stack([column(table, "utm_east"), column(table, "utm_north")], axis=1)
        degrees = np.stack([column(table, "lat"), column(table, "lon")], axis=1)
        zones = np.asarray(table.column("utm_zone").fill_null("").to_pylist(), dtype=str)
        return cls(points, degrees, _grid_of(zones), np.asarray(~np.isnan(points).any(axis=1)))

    def in_grid(self, grid: str) -> tuple[Rows, Floats]:
        """Rows that can lie near a spot of `grid`, with their coordinates in that grid.

        UTM grids overlap in nothing but the ground: two photos 10 m apart on either side of a zone border
        (or of the equator) have unrelated eastings. Rows of a neighbouring grid are projected anew from
        their latitude and longitude into the grid of the query.
        """
        home = np.flatnonzero(self.known & (self.grid == grid)).astype(np.int64)
        away = np.flatnonzero(
            self.known & (self.grid != grid) & _borders(self.grid, grid) & ~np.isnan(self.degrees).any(axis=1)
        ).astype(np.int64)
        if len(away) == 0:
            return home, self.points[home]
        band = "N" if grid[-1] == "n" else "M"  # any band of the right hemisphere names the grid
        moved = to_utm(self.degrees[away, 0], self.degrees[away, 1], zone=f"{grid[:-1]}{band}")
        points = np.concatenate([self.points[home], np.stack([moved.east, moved.north], axis=1)])
        return np.concatenate([home, away]), points


def _grid_of(zones: NDArray[np.str_]) -> NDArray[np.str_]:
    """'10S' -> '10n' (see geo.zone_key); an unknown zone stays ''."""
    names, where = np.unique(zones, return_inverse=True)
    grids = np.where(names == "", "", zone_key(names))
    return np.asarray(grids[where.reshape(-1)], dtype=str)


def _borders(grids: NDArray[np.str_], grid: str) -> NDArray[np.bool_]:
    """Which grids can touch `grid`: zone numbers up to two apart (Svalbard leaves out every other one)."""
    if grid == "":
        return np.zeros(len(grids), bool)
    names, where = np.unique(grids, return_inverse=True)
    gaps = [abs(int(name[:-1]) - int(grid[:-1])) if name else 30 for name in names]
    return np.asarray([min(gap, 60 - gap) <= 2 for gap in gaps], bool)[where.reshape(-1)]
