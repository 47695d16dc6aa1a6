"""Sample queries of an evaluation source and the map photos that its rule calls right, nearest first."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from placeray import geo
from placeray.overview.blocks import smallest_ids

COLUMNS = (
    "image_id", "dataset", "split", "role", "city", "lat", "lon", "utm_east", "utm_north", "frame", "heading_deg",
    "captured",
)  # fmt: skip
Floats = npt.NDArray[np.float64]


class PhotoRow(NamedTuple):
    """A row of images/v1 and where it is; `gap` is metres or frames to the query, None for the query itself."""

    image_id: str
    file: str
    row: int
    values: dict[str, Any]
    gap: float | None


class QuerySampler:
    """The queries of smallest image_id, or map photos where a set has no queries."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._best: dict[str, list[PhotoRow]] = {"query": [], "database": []}

    def add(self, photos: pa.Table) -> None:
        """Look at rows of images/v1 (COLUMNS, file, row) of this source."""
        for role, best in self._best.items():
            rows = photos.filter(pc.equal(photos["role"], role))
            found = best + photo_rows(smallest_ids(rows, self._num_samples))
            self._best[role] = sorted(found, key=lambda row: row.image_id)[: self._num_samples]

    @property
    def samples(self) -> list[PhotoRow]:
        """At most `num_samples` photos."""
        return self._best["query"] or self._best["database"]


class AnswerFinder:
    """The `num_answers` nearest right answers for one query, over all blocks of its source."""

    def __init__(self, query: PhotoRow, rule: Mapping[str, Any] | None, num_answers: int) -> None:
        self.query = query
        self.rule = rule
        self._num_answers = num_answers
        self.answers: list[PhotoRow] = []

    def add(self, photos: pa.Table) -> None:
        """Look at rows of images/v1 (COLUMNS, file, row) of the query's source."""
        if self.rule is None or self.query.values["role"] != "query":
            return
        gaps = self._gaps(photos)
        right = np.flatnonzero((gaps <= _limit(self.rule)) & _is_database(photos))
        nearest = right[np.argsort(gaps[right], kind="stable")][: self._num_answers]
        found = self.answers + [
            row._replace(gap=float(gaps[at]))
            for row, at in zip(photo_rows(photos.take(pa.array(nearest))), nearest, strict=True)
        ]
        self.answers = sorted(found, key=lambda row: (row.gap, row.image_id))[: self._num_answers]

    def _gaps(self, photos: pa.Table) -> Floats:
        """Metres or frames between the query and each photo; NaN where it cannot be told."""
        mine, kind = self.query.values, self.rule["kind"] if self.rule else ""
        if kind != "radius":
            return np.abs(_floats(photos, "frame") - (np.nan if mine["frame"] is None else mine["frame"]))
        if mine["lat"] is not None:
            here = geo.earth_points(mine["lat"], mine["lon"])
            there = geo.earth_points(_floats(photos, "lat"), _floats(photos, "lon"))
            return np.asarray(np.linalg.norm(there - here, axis=-1))
        if mine["utm_east"] is None:
            return np.full(photos.num_rows, np.nan)
        # Metres without a zone: sets that write made-up positions, such as frame numbers times a length.
        return np.hypot(
            _floats(photos, "utm_east") - mine["utm_east"], _floats(photos, "utm_north") - mine["utm_north"]
        )


def photo_rows(photos: pa.Table) -> list[PhotoRow]:
    """Rows of images/v1 as records."""
    return [
        PhotoRow(row["image_id"], row.pop("file"), row.pop("row"), row, None) for row in photos.to_pylist()
    ]


def _limit(rule: Mapping[str, Any]) -> float:
    """The largest gap that is right, inclusive: metres for a radius, else frames."""
    return float(
        {"radius": rule.get("radius_m"), "frames": rule.get("window"), "exact": 0}[rule["kind"]] or 0
    )


def _is_database(photos: pa.Table) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.equal(photos["role"], "database").to_numpy())


def _floats(photos: pa.Table, name: str) -> Floats:
    return np.asarray(photos[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
