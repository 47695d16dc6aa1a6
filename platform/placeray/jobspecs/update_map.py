"""The configuration of jobs/update_map.py."""

from pydantic import Field

from placeray.config import Config
from placeray.retrieval.update import UpdateConfig


class UpdateMapJob(Config):
    """A map and what changes in it: photos added or removed, shards put in order, old versions deleted."""

    map: str = Field(min_length=1, description="folder of the map, on a local disk")
    descriptors: str | None = Field(default=None, description="folder that embed wrote: photos to add")
    update: UpdateConfig = Field(default=UpdateConfig(), description="replacing and removing photos")
    compact: bool = Field(default=False, description="then rebuild worn shards, as a further version")
    max_dead: float = Field(
        default=0.2, ge=0, le=1, description="share of removed photos from which a shard is worn"
    )
    max_overlap: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="likewise, share of its photos in the cell range of another shard",
    )
    keep_versions: int | None = Field(
        default=None, ge=1, description="then delete older versions; null keeps all"
    )
    num_workers: int = Field(
        default=2, ge=1, description="Ray actors that write new shards, one at a time each"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one of them")
