"""Configuration of jobs/convert.py: look into a checkpoint, and write it in another form."""

from typing import Literal, Self

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.model.preprocess import PreprocessConfig


class ConvertJob(Config):
    """Without `output` the job only says what the checkpoint holds."""

    checkpoint: str = Field(description="checkpoint folder, published weights, or models:/name@alias")
    output: str | None = Field(default=None, description="folder or file to write; null writes nothing")
    form: Literal["folder", "published", "hub"] = Field(
        default="folder",
        description="folder: model.pt and card.json; published: a file as the published evaluation reads it; "
        "hub: the same with `module.` before every name, as its torch.hub entry wants it",
    )
    preprocess: PreprocessConfig | None = Field(
        default=None, description="how photos become inputs, for the card; null: as the checkpoint says"
    )
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")

    @model_validator(mode="after")
    def _a_published_file_has_no_card(self) -> Self:
        if self.form != "folder" and self.preprocess is not None:
            raise ValueError(f"form={self.form} has no card, so preprocess would be lost: leave it out")
        return self
