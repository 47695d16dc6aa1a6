"""The configuration of jobs/copy_map.py."""

from pydantic import Field

from placeray.config import Config


class CopyMapJob(Config):
    """A map in, a copy of one of its versions out."""

    source: str = Field(min_length=1, description="folder of a map, local or s3://")
    target: str = Field(min_length=1, description="folder of the copy, local or s3://")
    version: str | None = Field(default=None, description="such as v0001; null takes the current one")
