"""Our RandAugment gives torchvision's pixels, operation by operation, and the same photo for the same seed."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from placeray.model.augment import AugmentConfig
from placeray.training import rand_augment as ours


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8))
    return coarse.resize((112, 112), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("magnitude", [0, 3, 9, 17, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", sorted(ours.OPERATIONS))
def test_each_operation_gives_torchvisions_pixels(
    photo: Image.Image, name: str, sign: int, magnitude: int
) -> None:
    theirs = RandAugment(interpolation=InterpolationMode.BILINEAR)
    make_magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    magnitudes = make_magnitudes(31, photo.height, photo.width)
    value = 0.0 if magnitudes is None else float(magnitudes[magnitude]) * (sign if signed else 1)
    expected = theirs._apply_image_or_video_transform(
        photo, name, value, InterpolationMode.BILINEAR, {Image.Image: None}
    )
    got = ours.OPERATIONS[name](photo, magnitude / 30, sign)
    difference = np.abs(np.asarray(got, np.int16) - np.asarray(expected, np.int16))
    # torchvision's magnitudes are float32, its shears pass through atan and tan: a pixel may round the other way.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


def test_every_operation_of_torchvision_is_there() -> None:
    assert set(ours.OPERATIONS) == set(RandAugment._AUGMENTATION_SPACE)


def test_the_same_seed_gives_the_same_photo_and_others_differ(photo: Image.Image) -> None:
    config = AugmentConfig()
    first, again, other = (
        np.asarray(ours.rand_augment(photo, config, Random(seed))) for seed in ("7/1/3", "7/1/3", "7/2/3")
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_operation_leaves_the_photo(photo: Image.Image) -> None:
    assert ours.rand_augment(photo, AugmentConfig(num_ops=0), Random(0)) is photo


def test_all_operations_are_drawn_equally_often(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[str] = Counter()
    for name in list(ours.OPERATIONS):
        monkeypatch.setitem(
            ours.OPERATIONS, name, lambda image, strength, sign, name=name: drawn.update([name]) or image
        )
    random = Random(0)
    for _ in range(2000):
        ours.rand_augment(photo, AugmentConfig(num_ops=7), random)
    assert min(drawn.values()) > 900, drawn
    assert max(drawn.values()) < 1100, drawn
