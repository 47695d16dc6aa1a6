"""The configuration of jobs/inspect_map.py."""

from typing import Literal

from pydantic import Field

from placeray.config import Config
from placeray.retrieval.self_check import CheckConfig


class InspectMapJob(Config):
    """A map in, its account out."""

    map: str = Field(min_length=1, description="map that the index job wrote, local or s3://")
    version: str | None = Field(default=None, description="such as v0001; null takes the current one")
    check: CheckConfig = Field(default=CheckConfig(), description="how the map is tried on its own photos")
    verify: bool = Field(default=False, description="read all files again and compare their checksums")
    num_threads: int | None = Field(default=None, ge=1, description="of a search; null takes all cores")
    format: Literal["table", "json"] = Field(default="table", description="what is printed")
