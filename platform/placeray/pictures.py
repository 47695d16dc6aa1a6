"""Opened image files as upright RGB, whatever their tags and pixels are: one way for every reader."""

import struct

import numpy as np
import PIL.Image
from PIL import ExifTags

# What Pillow raises for bytes that are no image, and for tags that cannot be read.
NO_IMAGE = (OSError, PIL.Image.DecompressionBombError, SyntaxError, ValueError, IndexError, EOFError)
BROKEN_TAGS = (*NO_IMAGE, struct.error, KeyError, TypeError)
_TURNS = {  # by the orientation in EXIF
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in RGB, turned as its EXIF says; 16 bits of grey become their upper 8.

    Raises:
        Exception: of BROKEN_TAGS, where the bytes behind the picture cannot be decoded.
        ValueError: the pixels are floating-point numbers, which say nothing about what is white.
    """
    image.load()
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which nobody knows what is white")
    if image.mode.startswith("I"):  # `convert` would cut off all that is above 255
        image = PIL.Image.fromarray(np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """What makes a photo upright; None where nothing does, also for a good photo with broken tags.

    `ImageOps.exif_transpose` turns the same way, but it writes all tags anew and fails where one of them is broken.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN_TAGS:
        return None
