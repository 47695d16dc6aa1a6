"""Counts of the photos of one source, added up block by block, and a sample of their positions."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from placeray.overview.blocks import smallest_ids
from placeray.overview.figures import HEADING_BIN_DEG, NO_CITY

COLUMNS = ("image_id", "dataset", "city", "split", "role", "lat", "lon", "heading_deg", "captured")
DOT_COLUMNS = ("image_id", "role", "lat", "lon")


class PhotoCounter:
    """Everything that is counted of one source, in memory that does not grow with its photos.

    dots: per city a table of DOT_COLUMNS, the photos of smallest image_id: ids are hashes, so this is an even
        sample, and the same whatever the order of the files.
    """

    def __init__(self, dots_per_city: int) -> None:
        self._dots_per_city = dots_per_city
        self.roles: Counter[str] = Counter()
        self.cities: Counter[str] = Counter()
        self.years: Counter[str] = Counter()
        self.hours: Counter[str] = Counter()
        self.headings = np.zeros(360 // HEADING_BIN_DEG, dtype=np.int64)
        self.with_position = self.with_heading = self.with_time = 0
        self.dots: dict[str, pa.Table] = {}

    def add(self, photos: pa.Table) -> None:
        """Count rows of images/v1 (COLUMNS) of this source."""
        photos = photos.set_column(
            photos.schema.get_field_index("city"), "city", photos["city"].fill_null(NO_CITY)
        )
        self.roles.update(_counts(photos["role"]))
        self.cities.update(_counts(photos["city"]))
        self._add_times(photos["captured"].drop_null())
        headings = photos["heading_deg"].drop_null().to_numpy()
        self.with_heading += len(headings)
        bins = np.floor(headings / HEADING_BIN_DEG).astype(np.int64) % len(self.headings)
        self.headings += np.bincount(bins, minlength=len(self.headings))
        placed = photos.filter(pc.and_(photos["lat"].is_valid(), photos["lon"].is_valid()))
        self.with_position += placed.num_rows
        for city in placed["city"].unique().to_pylist():
            self._sample(city, placed.filter(pc.equal(placed["city"], city)).select(DOT_COLUMNS))

    def figures(self) -> dict[str, Any]:
        """The part of SourceFigures that is counted here."""
        return {
            "roles": dict(sorted(self.roles.items())),
            "cities": dict(sorted(self.cities.items())),
            "years": dict(sorted(self.years.items())),
            "hours": dict(sorted(self.hours.items())),
            "headings": self.headings.tolist(),
            "with_position": self.with_position,
            "with_heading": self.with_heading,
            "with_time": self.with_time,
        }

    def _add_times(self, captured: pa.ChunkedArray) -> None:
        self.with_time += len(captured)
        self.years.update(_counts(pc.utf8_slice_codeunits(captured, 0, 4)))
        timed = captured.filter(pc.greater_equal(pc.utf8_length(captured), len("2016-06-12T09")))
        self.hours.update(_counts(pc.utf8_slice_codeunits(timed, 11, 13)))

    def _sample(self, city: str, photos: pa.Table) -> None:
        known = self.dots.get(city)
        candidates = photos if known is None else pa.concat_tables([known, photos])
        self.dots[city] = smallest_ids(candidates, self._dots_per_city).combine_chunks()


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}
