"""From the bytes of a photo to the network's input: the one place for training, embedding and queries.

Two orders of the same steps: `platform` resizes the photo with PIL and then normalises (what training always
did); `reference` normalises and then resizes the tensor (what the published evaluation does). Descriptors
differ by up to 5e-5 between them, and by 5e-4 through the antialias of `reference`.
"""

import io
import re
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from placeray.config import Config
from placeray.errors import DataError
from placeray.pictures import BROKEN_TAGS, upright_rgb

# ImageNet statistics, which DINOv2 was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class PreprocessConfig(Config):
    """Size and order of the steps. A map and its queries must share one `id`."""

    size_px: int = Field(
        default=224, ge=1, description="side of the square input; the aspect ratio is ignored"
    )
    order: Literal["platform", "reference"] = Field(
        default="platform", description="platform: resize, then normalise; reference: normalise, then resize"
    )
    antialias: bool = Field(
        default=True,
        description="for `reference` only: torchvision before 0.17 did not antialias; PIL always does",
    )

    @property
    def id(self) -> str:
        """A short name that two configs share exactly when they give the same input."""
        plain = "-plain" if self.order == "reference" and not self.antialias else ""
        return f"{self.order}-{self.size_px}{plain}"

    @classmethod
    def from_id(cls, text: str) -> "PreprocessConfig":
        """The config that an `id` was made from. Raises DataError for any other text."""
        found = re.fullmatch(r"(platform|reference)-(\d+)(-plain)?", text)
        if found is None:
            raise DataError(f"{text!r} names no preprocessing; an example is {cls().id!r}")
        return cls.model_validate(
            {"order": found[1], "size_px": int(found[2]), "antialias": found[3] is None}
        )


# What the published evaluation runs, in today's torchvision.
REFERENCE = PreprocessConfig(size_px=322, order="reference")


def decode(data: bytes, at_least_px: int | None = None) -> Image.Image:
    """Decode a photo to upright RGB.

    Args:
        data: the bytes of a JPEG, PNG or other image file.
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 scale as long as both sides keep this many
            pixels, which is several times faster; None decodes in full.

    Raises:
        DataError: the bytes are no image, the image is cut off, or its pixels are floating-point numbers.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if at_least_px is not None:
            image.draft("RGB", (at_least_px, at_least_px))
        return upright_rgb(image)
    except UnidentifiedImageError:
        raise DataError("cannot decode the image: the bytes are no image") from None
    except BROKEN_TAGS as error:
        raise DataError(f"cannot decode the image: {error}") from None


def to_input(image: Image.Image, config: PreprocessConfig) -> Tensor:
    """RGB image -> (3, size, size) float32 normalised."""
    if config.order == "platform":
        return normalise(to_pixels(image, config.size_px))
    tensor = normalise(np.array(image))
    size = [config.size_px, config.size_px]
    return resize(tensor, size, InterpolationMode.BILINEAR, antialias=config.antialias)


def decode_to_input(data: bytes, config: PreprocessConfig) -> Tensor:
    """Bytes of a photo -> (3, size, size) float32 normalised. Raises DataError."""
    return to_input(decode(data, config.size_px if config.order == "platform" else None), config)


def to_pixels(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """RGB image -> (size, size, 3) uint8, by PIL's bilinear resize; a quarter of the bytes of `to_input`."""
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
    return np.array(image)


def normalise(pixels: NDArray[np.uint8] | Tensor) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32: (pixels / 255 - mean) / std, one photo or a batch."""
    tensor = torch.as_tensor(pixels).movedim(-1, -3).to(torch.float32).div(255)
    mean = tensor.new_tensor(MEAN)[:, None, None]
    std = tensor.new_tensor(STD)[:, None, None]
    return tensor.sub(mean).div(std).contiguous()
