"""The configuration of jobs/normalize.py."""

from pydantic import Field

from placeray.config import Config
from placeray.datasets.planning import NormalizeConfig


class NormalizeJob(Config):
    """Raw data sets in, one normalized data set out."""

    output: str = Field(
        min_length=1, description="folder of images/, places/ and rejects/; belongs to this config alone"
    )
    normalize: NormalizeConfig
    num_workers: int = Field(default=2, ge=1, description="Ray actors that read and write photos")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one of them")
