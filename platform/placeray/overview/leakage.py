"""Leakage between sets: training photos that were taken where evaluation photos were taken.

All positions become points of the WGS84 ellipsoid in one frame of metres, so that borders of UTM zones, the
antimeridian and the poles need no care: over a street's length the straight line between two points is as
long as the way between them to far below a millimetre. Evaluation photos are held in memory (some 100 bytes
each), training photos are read in blocks; what is kept of them is one entry per leaking place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial import KDTree

from placeray import geo
from placeray.overview.figures import LeakFigures, LeakingPlace

COLUMNS = ("image_id", "dataset", "split", "role", "lat", "lon", "place_id")
# Coordinates are rounded: a photo exactly on the border counts as inside.
_TOLERANCE_M = 1e-6
CSV_COLUMNS = (
    "training", "place_id", "image_id", "lat", "lon", "evaluation", "evaluation_image_id", "evaluation_role",
    "distance_m",
)  # fmt: skip


class _Nearest(NamedTuple):
    """One leaking place: its photo nearest to an evaluation photo, which is number `at` of its set."""

    distance_m: float
    image_id: str
    place_id: str | None
    lat: float
    lon: float
    at: int


class EvaluationPhotos:
    """The positions of one evaluation source, gathered block by block; `tree` is built when they are all there."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._tree: KDTree | None = None
        self.ids: pa.ChunkedArray = pa.chunked_array([], pa.string())
        self.is_query: npt.NDArray[np.bool_] = np.empty(0, dtype=bool)

    def add(self, photos: pa.Table) -> None:
        """Rows of images/v1; those without a position take no part."""
        self._tables.append(_placed(photos).select(["image_id", "role", "lat", "lon"]))

    @property
    def tree(self) -> KDTree | None:
        """The search tree over all photos; None when none has a position."""
        if self._tree is None and self._tables:
            photos = pa.concat_tables(self._tables)
            self._tables = []
            if photos.num_rows:
                self.ids = photos["image_id"]
                self.is_query = pc.equal(photos["role"], "query").to_numpy()
                self._tree = KDTree(_points(photos), balanced_tree=False, compact_nodes=False)
        return self._tree


class Leaks:
    """The leakage of one pair of sets, added up over blocks of the training source."""

    def __init__(self, evaluation: EvaluationPhotos, radius_m: float) -> None:
        self._evaluation = evaluation
        self._radius_m = radius_m + _TOLERANCE_M
        self._hit = np.zeros(0, dtype=bool)
        self.photos = self.photos_in_places = 0
        self.places: dict[str, _Nearest] = {}

    def add(self, photos: pa.Table) -> None:
        """Compare rows of images/v1 (COLUMNS) of the training source with all evaluation photos."""
        tree = self._evaluation.tree
        photos = _placed(photos)
        if tree is None or not photos.num_rows:
            return
        points = _points(photos)
        distance, at = tree.query(points, distance_upper_bound=np.nextafter(self._radius_m, np.inf))
        near = np.flatnonzero(np.isfinite(distance))
        if not len(near):
            return
        self._mark_evaluation(tree, points[near])
        self.photos += len(near)
        self._keep_nearest(photos.take(pa.array(near)), distance[near], at[near])

    def figures(self, training: str, evaluation: str, shown: int) -> LeakFigures:
        """Counts, and the `shown` nearest places."""
        is_query = self._evaluation.is_query
        hit = self._hit if len(self._hit) else np.zeros(len(is_query), dtype=bool)
        return LeakFigures(
            training=training,
            evaluation=evaluation,
            photos=self.photos,
            photos_in_places=self.photos_in_places,
            places=sum(found.place_id is not None for found in self.places.values()),
            queries=int((hit & is_query).sum()),
            database=int((hit & ~is_query).sum()),
            nearest=[self._leaking_place(found) for found in sorted(self.places.values())[:shown]],
        )

    def rows(self, training: str, evaluation: str) -> Iterator[tuple[object, ...]]:
        """All leaking places as rows of CSV_COLUMNS, nearest first."""
        for found in sorted(self.places.values()):
            place = self._leaking_place(found)
            yield (
                training, place.place_id, place.image_id, place.lat, place.lon,
                evaluation, place.evaluation_image_id, place.evaluation_role, round(place.distance_m, 3),
            )  # fmt: skip

    def _leaking_place(self, found: _Nearest) -> LeakingPlace:
        return LeakingPlace(
            place_id=found.place_id,
            image_id=found.image_id,
            lat=found.lat,
            lon=found.lon,
            evaluation_image_id=self._evaluation.ids[found.at].as_py(),
            evaluation_role="query" if self._evaluation.is_query[found.at] else "database",
            distance_m=found.distance_m,
        )

    def _mark_evaluation(self, tree: KDTree, near_points: npt.NDArray[np.float64]) -> None:
        """Which evaluation photos have a training photo near; each is looked for until it is found once.

        The other way round, all neighbours of each training photo, costs hundreds of pairs per photo in a
        densely photographed city.
        """
        if not len(self._hit):
            self._hit = np.zeros(tree.n, dtype=bool)
        open_rows = np.flatnonzero(~self._hit)
        low, high = near_points.min(axis=0) - self._radius_m, near_points.max(axis=0) + self._radius_m
        candidates = tree.data[open_rows]
        inside = open_rows[((candidates >= low) & (candidates <= high)).all(axis=1)]
        distance, _ = KDTree(near_points).query(
            tree.data[inside], distance_upper_bound=np.nextafter(self._radius_m, np.inf)
        )
        self._hit[inside[np.isfinite(distance)]] = True

    def _keep_nearest(
        self, photos: pa.Table, distance: npt.NDArray[np.float64], at: npt.NDArray[np.int64]
    ) -> None:
        frame = photos.select(["image_id", "place_id", "lat", "lon"]).to_pandas()
        frame["distance_m"], frame["at"] = distance, at
        has_place = frame["place_id"].notna()
        self.photos_in_places += int(has_place.sum())
        frame["key"] = frame["place_id"].where(has_place, frame["image_id"])
        nearest = frame.sort_values(["distance_m", "image_id"]).drop_duplicates("key")
        for row in nearest.itertuples(index=False):
            place_id = None if pd.isna(row.place_id) else row.place_id
            found = _Nearest(row.distance_m, row.image_id, place_id, row.lat, row.lon, int(row.at))
            known = self.places.get(row.key)
            if known is None or found[:2] < known[:2]:
                self.places[row.key] = found


def _placed(photos: pa.Table) -> pa.Table:
    return photos.filter(pc.and_(photos["lat"].is_valid(), photos["lon"].is_valid()))


def _points(photos: pa.Table) -> npt.NDArray[np.float64]:
    return geo.earth_points(photos["lat"].to_numpy(), photos["lon"].to_numpy())
