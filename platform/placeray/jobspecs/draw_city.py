"""The job that draws a toy city."""

from pydantic import Field

from placeray.config import Config
from placeray.toycity.config import ToyCityConfig


class DrawCityJob(Config):
    """Where the city goes and what it consists of."""

    output: str = Field(
        min_length=1, description="local folder; each layout gets a folder of its own below it"
    )
    num_workers: int | None = Field(
        default=None,
        ge=1,
        description="processes that draw; null takes one per core. The bytes do not depend on it",
    )
    city: ToyCityConfig = ToyCityConfig()
