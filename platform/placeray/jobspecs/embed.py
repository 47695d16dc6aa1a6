"""The configuration of jobs/embed.py."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.model.describe import EmbedConfig
from placeray.model.preprocess import PreprocessConfig


class PhotoSelection(Config):
    """Which photos of a normalized data set are described; null takes all."""

    dataset: str | None = Field(default=None, description="name of the source, such as pitts30k")
    split: str | None = Field(default=None, description="train, val or test")
    role: str | None = Field(default=None, description="train, database or query")


class EmbedJob(Config):
    """Photos of a normalized data set in, their descriptors out."""

    normalized: str = Field(min_length=1, description="folder that normalize wrote")
    checkpoint: str = Field(
        min_length=1, description="checkpoint folder, published weights, or models:/name@alias"
    )
    output: str = Field(
        min_length=1, description="folder of the descriptors; belongs to these photos and this model alone"
    )
    select: PhotoSelection = Field(default=PhotoSelection(), description="which photos")
    embed: EmbedConfig = Field(default=EmbedConfig(), description="batches and number format")
    preprocess: PreprocessConfig | None = Field(
        default=None, description="null: as the checkpoint says; a map and its queries must share it"
    )
    num_workers: int = Field(default=2, ge=1, description="Ray actors, each with the model in memory")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one of them")
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="Ray GPUs of one of them; 0 runs on the CPU"
    )
    decode_threads: int = Field(
        default=2, ge=1, description="photos that one worker reads and decodes while the model is busy"
    )
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")
