"""How training photos are changed; `training.rand_augment` does it."""

from pydantic import Field

from placeray.config import Config


class AugmentConfig(Config):
    """RandAugment with bilinear resampling; the defaults are published."""

    num_ops: int = Field(
        default=3, ge=0, description="operations per photo, geometric and colour; 0 for none"
    )
    magnitude: int = Field(default=9, ge=0, le=30, description="strength of every operation, of 31 steps")
