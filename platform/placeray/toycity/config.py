"""What a toy city consists of: how large each layout is, how hard the photos are, which faults are planted."""

from typing import Self

from pydantic import Field, model_validator

from placeray.config import Config


class DifficultyConfig(Config):
    """How much two photos of one place differ; 0 = hardly, 1 = as in the demo, per kind of change."""

    light: float = Field(default=1.0, ge=0, le=1, description="weather, time of day, night with lit windows")
    season: float = Field(default=1.0, ge=0, le=1, description="months of the year, leaves, snow")
    camera: float = Field(default=1.0, ge=0, le=2, description="exposure, white balance, gamma, noise, blur")
    viewpoint: float = Field(default=1.0, ge=0, le=1, description="steps along and across, heading, focal length")
    occluders: float = Field(default=1.0, ge=0, le=3, description="cars, vans and people in front of the camera")
