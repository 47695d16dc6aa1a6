"""Counts of the places of one source, and the few of them that the sheet shows."""

import heapq
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

COLUMNS = ("place_id", "dataset", "domain", "num_photos")


class PlaceRow(NamedTuple):
    """Where a place is: `row` of a file of places/v1."""

    place_id: str
    file: str
    row: int


class PlaceCounter:
    """Places and photos per domain, photos per place, and a sample of places chosen by the hash of their ids."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._samples: list[tuple[int, PlaceRow]] = []
        self.photos_per_place: Counter[int] = Counter()
        self.domain_places: Counter[str] = Counter()
        self.domain_photos: Counter[str] = Counter()

    def add(self, places: pa.Table) -> None:
        """Count rows of places/v1 (COLUMNS, file, row) of this source."""
        self.photos_per_place.update(places["num_photos"].to_pylist())
        sums = places.group_by("domain").aggregate([("num_photos", "sum"), ("num_photos", "count")])
        for row in sums.to_pylist():
            self.domain_places[row["domain"]] += row["num_photos_count"]
            self.domain_photos[row["domain"]] += row["num_photos_sum"]
        names = places["place_id"].to_pylist()
        hashes = ((xxhash.xxh3_64_intdigest(name.encode()), at) for at, name in enumerate(names))
        for digest, at in heapq.nsmallest(self._num_samples, hashes):
            row = PlaceRow(names[at], places["file"][at].as_py(), places["row"][at].as_py())
            self._samples.append((digest, row))
        self._samples = sorted(self._samples)[: self._num_samples]

    @property
    def samples(self) -> list[PlaceRow]:
        """At most `num_samples` places."""
        return [row for _, row in self._samples]

    def figures(self) -> dict[str, Any]:
        """The part of SourceFigures that is counted here."""
        return {
            "photos_per_place": {str(size): count for size, count in sorted(self.photos_per_place.items())},
            "domains": {
                name: (places, self.domain_photos[name])
                for name, places in sorted(self.domain_places.items())
            },
        }
