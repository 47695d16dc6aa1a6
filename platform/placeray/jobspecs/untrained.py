"""The configuration of jobs/untrained.py."""

from pydantic import Field

from placeray.config import Config
from placeray.model.preprocess import PreprocessConfig
from placeray.model.selavpr import ModelConfig


class UntrainedJob(Config):
    """A model as training would start it, as a checkpoint."""

    output: str = Field(min_length=1, description="checkpoint folder to write: model.pt and card.json")
    model: ModelConfig = Field(description="the model; what is random in it follows its seeds")
    preprocess: PreprocessConfig = Field(default=PreprocessConfig(), description="from photo to input")
