"""Configuration of jobs/register.py: a checkpoint becomes a version of a registered model."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import TrackingConfig

# MLflow refuses `/` and `:` in names; `@` begins an alias, quotes would end a filter.
MODEL_NAME = r"^[^/:@'\"`\s]+$"


class StatementConfig(Config):
    """What a model card says that no checkpoint can know."""

    intended_use: str = Field(
        default="Visual place recognition: find the photos of a map that show the same place as a query photo. "
        "Not for recognising people, and not as the only source of a position where lives depend on it.",
        min_length=1,
        description="what the model is for, and what not",
    )
    licence: str = Field(
        default="Not stated. The code is Apache-2.0. The weights are bound by the licences of the backbone they "
        "start from (DINOv2: Apache-2.0) and of the photos they were trained on.",
        min_length=1,
        description="under which terms the weights may be used",
    )
    notes: tuple[str, ...] = Field(default=(), description="anything else a user must know")


class RegisterJob(Config):
    """A checkpoint in, a new version of a registered model out."""

    checkpoint: str = Field(min_length=1, description="checkpoint folder, or a file of published weights")
    name: str = Field(pattern=MODEL_NAME, description="name of the registered model")
    alias: str | None = Field(
        default="challenger", pattern=r"^[\w-]+$", description="alias of the new version; null gives it none"
    )
    statement: StatementConfig = Field(default=StatementConfig(), description="for the model card")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="the store it goes to")
