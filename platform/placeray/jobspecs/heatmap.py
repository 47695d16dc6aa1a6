"""Configuration of jobs/heatmap.py: photos in, pictures of where a model looks out."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.model.preprocess import PreprocessConfig


class HeatMapJob(Config):
    """A checkpoint and some photos."""

    checkpoint: str = Field(description="checkpoint folder, published weights, or models:/name@alias")
    inputs: str = Field(description="a photo or a folder of photos")
    output: str = Field(description="folder for one PNG per photo")
    preprocess: PreprocessConfig | None = Field(
        default=None, description="null: as the checkpoint's card says; a larger size_px gives finer maps"
    )
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")
