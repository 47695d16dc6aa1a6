"""The configuration of jobs/search.py."""

from typing import Self

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.retrieval.many import SearchConfig


class SearchJob(Config):
    """Described photos and a map in, answers out."""

    queries: str = Field(min_length=1, description="folder of described photos that embed wrote")
    map: str = Field(min_length=1, description="map that the index job wrote, local or s3://")
    version: str | None = Field(default=None, description="such as v0001; null takes the current one")
    output: str = Field(min_length=1, description="folder of the answers")
    calibration: str | None = Field(
        default=None, description="report folder of the evaluate job; null leaves confidence null"
    )
    search: SearchConfig = Field(default=SearchConfig(), description="how the map is searched")
    num_workers: int = Field(default=1, ge=1, description="Ray actors; one for each machine is best")
    cpus_per_worker: int | None = Field(
        default=None, ge=1, description="Ray CPUs and search threads of one; null takes those of a machine"
    )

    @model_validator(mode="after")
    def _calibration_fits(self) -> Self:
        if self.calibration is not None and (self.search.is_narrowed or self.search.one_per_panorama):
            raise ValueError(
                "calibration was measured on searches of the whole map, not with filter, near_m or "
                "one_per_panorama: leave it out, confidence is unknown then"
            )
        return self
