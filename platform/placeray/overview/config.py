"""What is looked at, and how much of it is shown."""

from pydantic import Field

from placeray.config import Config


class LookConfig(Config):
    """Normalized data sets and the amounts of the page; every choice of samples is made by hash, not at random."""

    inputs: tuple[str, ...] = Field(min_length=1, description="outputs of jobs/normalize.py")
    title: str = Field(default="Look at your data", min_length=1, description="line above the headline")
    leakage_radius_m: float = Field(
        default=25.0, gt=0, description="a training photo this near to an evaluation photo leaks, inclusive"
    )
    places_per_source: int = Field(default=3, ge=0, description="sample places (or queries) on the sheet")
    photos_per_place: int = Field(default=6, ge=1, description="photos of one of them, at most")
    rejects_per_reason: int = Field(default=3, ge=0, description="sample rows per source and reason")
    leaks_shown: int = Field(
        default=10, ge=0, description="nearest places on the page per pair; leakage.csv holds all"
    )
    dots_per_city: int = Field(default=2000, ge=1, description="photos drawn on the map of one city")
    max_cities: int = Field(default=60, ge=1, description="maps; the cities of most photos come first")
    thumbnail_px: int = Field(default=220, ge=16, description="width of the photos on the sheet")
    rows_per_block: int = Field(default=200_000, ge=1, description="rows of columns in memory at a time")
