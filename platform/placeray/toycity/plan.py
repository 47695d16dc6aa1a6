"""What a layout is going to be: its photos, its tables, the faults planted in it, and its true counts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from placeray.toycity.photos import PhotoTask

KEPT = "kept"


@dataclass(frozen=True)
class PlantedFault:
    """One fault and what a good reader does with it: a reason of rejects/v1, or `kept`."""

    source: str  # layout and part, such as msls/helsinki
    path: str  # the photo, or the photo a row stands for; relative to the root of the city
    fault: str
    expected: str
    table: str | None = None  # the CSV, .mat or list that holds the faulty row
    row: int | None = None  # its number there, from 0, header not counted

    @property
    def is_reject(self) -> bool:
        """Whether the row or photo must not be kept."""
        return self.expected != KEPT


@dataclass
class LayoutPlan:
    """A layout before it is written. `read` counts the inputs of each part (a split, a city)."""

    name: str
    photos: list[PhotoTask] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[PlantedFault] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)

    def add_fault(
        self,
        part: str,
        path: str,
        fault: str,
        expected: str,
        table: str | None = None,
        row: int | None = None,
    ) -> None:
        """Record a planted fault of one part."""
        self.faults.append(PlantedFault(f"{self.name}/{part}", path, fault, expected, table, row))

    def counts(self) -> dict[str, Any]:
        """The true numbers: read = kept + rejected for every part."""
        return {"photos": len(self.photos), "parts": {part: self._part(part) for part in sorted(self.read)}}

    def _part(self, part: str) -> dict[str, Any]:
        rejected = Counter(
            f.expected for f in self.faults if f.source == f"{self.name}/{part}" and f.is_reject
        )
        read = self.read[part]
        return {
            "read": read,
            "kept": read - sum(rejected.values()),
            "rejected": dict(sorted(rejected.items())),
            "places": self.places[part],
        }
