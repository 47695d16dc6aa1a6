"""RandAugment that any number of threads can run, with PIL alone: the operations and strengths of torchvision's.

torchvision's version draws from torch's global generator: threads that share it are not repeatable. This one draws
from its own generator, costs a third (no dispatch, no tensors of magnitudes), and gives the same pixels for the same
operation (tests/unit/training/test_rand_augment.py). Published setting: 3 operations, magnitude 9 of 31, bilinear.
"""

from collections.abc import Callable
from random import Random

from PIL import Image, ImageEnhance, ImageOps

from placeray.model.augment import AugmentConfig

NUM_MAGNITUDES = 31
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 150.0 / 331.0  # of the side
_LARGEST_TURN_DEG = 30.0
_LARGEST_CHANGE = 0.9  # of brightness, colour, contrast, sharpness

# (image, strength in 0..1, sign) -> image
Operation = Callable[[Image.Image, float, int], Image.Image]


def rand_augment(image: Image.Image, config: AugmentConfig, random: Random) -> Image.Image:
    """Apply `num_ops` operations drawn with replacement, each with strength magnitude / 30 and a random sign."""
    strength = config.magnitude / (NUM_MAGNITUDES - 1)
    for _ in range(config.num_ops):
        operation = OPERATIONS[_NAMES[random.randrange(len(_NAMES))]]
        image = operation(image, strength, random.choice((1, -1)))
    return image


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _moved(image: Image.Image, right: int, down: int) -> Image.Image:
    """By whole pixels, so copied instead of resampled: the same pixels in a sixtieth of the time."""
    moved = Image.new(image.mode, image.size)
    moved.paste(image, (right, down))
    return moved


def _shear_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, (1.0, sign * strength * _LARGEST_SHEAR, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, sign * strength * _LARGEST_SHEAR, 1.0, 0.0))


def _translate_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _moved(image, int(sign * strength * _LARGEST_SHIFT * image.width), 0)


def _translate_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _moved(image, 0, int(sign * strength * _LARGEST_SHIFT * image.height))


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(sign * strength * _LARGEST_TURN_DEG, Image.Resampling.BILINEAR)


def _brightness(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.0 + sign * strength * _LARGEST_CHANGE)


def _color(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1.0 + sign * strength * _LARGEST_CHANGE)


def _contrast(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1.0 + sign * strength * _LARGEST_CHANGE)


def _sharpness(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1.0 + sign * strength * _LARGEST_CHANGE)


def _posterize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.posterize(image, round(8 - 4 * strength))


def _solarize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 255.0 * (1.0 - strength))  # type: ignore[arg-type]  # any number is compared


def _autocontrast(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.equalize(image)


def _identity(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image


OPERATIONS: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
_NAMES = tuple(OPERATIONS)
