"""Augmentation for training: RandAugment as published, the same for the same seed."""

import functools

import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from placeray.config import Config


class AugmentConfig(Config):
    """RandAugment; the defaults are published."""

    num_ops: int = Field(
        default=3, ge=0, description="operations per photo, geometric and colour; 0 for none"
    )
    magnitude: int = Field(default=9, ge=0, le=30, description="strength of every operation, of 31 steps")


def augment(image: Image.Image, config: AugmentConfig, seed: int) -> Image.Image:
    """A changed copy of an RGB image of any size (resize first: small is fast).

    Args:
        seed: decides everything; make it from (seed, epoch, photo) so that a run can be repeated and resumed.
    """
    if config.num_ops == 0:
        return image
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed: Image.Image = _rand_augment(config)(image)
    return changed


@functools.cache
def _rand_augment(config: AugmentConfig) -> RandAugment:
    return RandAugment(
        config.num_ops, config.magnitude, num_magnitude_bins=31, interpolation=InterpolationMode.BILINEAR
    )
