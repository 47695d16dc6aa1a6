"""The configuration of jobs/localize.py."""

from typing import Literal, Self

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.jobspecs.tracking import StoreConfig
from placeray.localization import LocalizeConfig
from placeray.retrieval.damage import Damaged


class LocalizeJob(Config):
    """Photos in, positions out."""

    photos: tuple[str, ...] = Field(min_length=1, description="photo files, or folders of them")
    checkpoint: str = Field(
        min_length=1,
        description="what the map was made with: checkpoint folder, published file, or models:/name@alias",
    )
    map: str = Field(min_length=1, description="map that the index job wrote, local or s3://")
    damaged: Damaged = Field(
        default="refuse",
        description="damaged shards refuse the map, or are left out and named on stderr (skip)",
    )
    calibration: str | None = Field(
        default=None, description="report folder of the evaluate job; null leaves confidence unknown"
    )
    max_photos: int | None = Field(
        default=None, ge=1, description="at most so many, evenly spread; null takes all"
    )
    localize: LocalizeConfig = Field(default=LocalizeConfig(), description="how photos are searched")
    format: Literal["table", "json"] = Field(default="table", description="what is printed")
    tracking: StoreConfig = Field(default=StoreConfig(), description="where registered models are looked up")

    @model_validator(mode="after")
    def _calibration_fits(self) -> Self:
        narrowed = not self.localize.within.is_empty
        if self.calibration is not None and (narrowed or self.localize.one_per_panorama):
            raise ValueError(
                "calibration was measured on searches of the whole map, not with within or one_per_panorama: leave it "
                "out, confidence is unknown then"
            )
        return self
