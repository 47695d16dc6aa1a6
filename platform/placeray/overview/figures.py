"""The figures of a look: plain numbers and text, written as overview.json and read back by a second run."""

from typing import Any

from placeray.config import Config

HEADING_BIN_DEG = 15
NO_CITY = "(no city)"


class SourceFigures(Config):
    """One source (data set and split) of one input. Counts of photos, unless the name says otherwise.

    headings: per bin of HEADING_BIN_DEG from north, with the meaning the source gives its headings.
    hours: by the clock that the source writes, whatever zone it is of.
    photos_per_place: number of photos -> number of places.
    domains: name -> (places, photos).
    """

    name: str
    dataset: str
    split: str
    input: str
    positive_rule: dict[str, Any] | None
    read: int
    kept: int
    rejected: dict[str, int]
    places: int
    places_dropped_small: int
    photos_without_place: int
    roles: dict[str, int]
    cities: dict[str, int]
    years: dict[str, int]
    hours: dict[str, int]
    headings: list[int]
    with_position: int
    with_heading: int
    with_time: int
    photos_per_place: dict[str, int]
    domains: dict[str, tuple[int, int]]

    @property
    def is_training(self) -> bool:
        """Whether its photos are trained on."""
        return self.split == "train"


class RejectSample(Config):
    """Some inputs of one source's data set that were refused for one reason."""

    dataset: str
    reason: str
    rows: list[tuple[str, str]]  # source_uri, detail


class LeakingPlace(Config):
    """A training place (or a training photo of none) and the evaluation photo nearest to it."""

    place_id: str | None
    image_id: str
    lat: float
    lon: float
    evaluation_image_id: str
    evaluation_role: str
    distance_m: float


class LeakFigures(Config):
    """What of one training source lies within the radius of photos of one evaluation source.

    photos, photos_in_places, places: of the training source. queries, database: photos of the evaluation source.
    nearest: the nearest places first, as many as the page shows.
    """

    training: str
    evaluation: str
    photos: int
    photos_in_places: int
    places: int
    queries: int
    database: int
    nearest: list[LeakingPlace]


class Overview(Config):
    """All figures of a look; `pairs_compared` counts the pairs of sets that were tested for leakage."""

    title: str
    radius_m: float
    sources: list[SourceFigures]
    rejects: list[RejectSample]
    pairs_compared: int
    leaks: list[LeakFigures]
    notes: list[str]

    def total(self, name: str) -> int:
        """Sum of one count over all sources; for `rejected` over all reasons."""
        values = [getattr(source, name) for source in self.sources]
        return sum(sum(value.values()) if isinstance(value, dict) else value for value in values)
