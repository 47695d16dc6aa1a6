"""Configuration of jobs/describe.py: photos in, descriptors as arrays out."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.model.describe import EmbedConfig
from placeray.model.preprocess import PreprocessConfig


class DescribeJob(Config):
    """A checkpoint and some photos; for whole data sets there is jobs/embed.py."""

    checkpoint: str = Field(description="checkpoint folder, published weights, or models:/name@alias")
    inputs: str = Field(
        description="a photo, a folder of photos, or a .npy of normalised float32 (N, 3, H, W)"
    )
    output: str = Field(
        pattern=r"\.npz$", description="arrays `float`, `codes` and `inputs`, as far as there are any"
    )
    preprocess: PreprocessConfig | None = Field(
        default=None,
        description="null: as the checkpoint's card says; a published file has none and gets the published "
        "evaluation's (322 px, normalised before the resize)",
    )
    embed: EmbedConfig = Field(default=EmbedConfig(batch_size=8), description="batches and number format")
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")
