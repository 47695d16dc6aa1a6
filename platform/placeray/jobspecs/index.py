"""The configuration of jobs/index.py."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.retrieval.plan import IndexConfig


class IndexJob(Config):
    """Descriptors in, a map to search out."""

    descriptors: str = Field(min_length=1, description="folder that embed wrote")
    checkpoint: str | None = Field(
        default=None,
        description="refuse descriptors that were not made by this model (folder, file or models:/name@alias); null "
        "takes whatever made them",
    )
    output: str = Field(
        min_length=1,
        description="folder of the map, on a disk; other descriptors make a new version of it. copy_map takes it to an "
        "object store",
    )
    queries: str | None = Field(
        default=None,
        description="descriptors of held-out queries to calibrate the lists with; null takes photos of the map",
    )
    index: IndexConfig = Field(default=IndexConfig(), description="how the map is cut and stored")
    num_workers: int = Field(default=2, ge=1, description="Ray actors; each writes one shard at a time")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one of them")
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")
