"""Preprocessing: both orders, the ids, and photos as cameras write them."""

import io
import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms import functional as classic

from placeray.errors import DataError
from placeray.model.preprocess import (
    MEAN,
    REFERENCE,
    STD,
    PreprocessConfig,
    decode,
    decode_to_input,
    normalise,
    to_input,
    to_pixels,
)


def photo(width: int = 90, height: int = 70) -> Image.Image:
    """A smooth field with edges, so that scale and orientation show."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack(
        [255 * x / width, 255 * y / height, 255 * ((6 * x // width + 5 * y // height) % 2)], axis=-1
    )
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("antialias", [True, False])
def test_the_reference_order_is_that_of_torchvision(antialias: bool) -> None:
    """To tensor, normalise, resize the tensor: the published evaluation, step by step."""
    image = photo()
    tensor = classic.normalize(classic.to_tensor(image), MEAN, STD)
    expected = torchvision.transforms.Resize((56, 56), antialias=antialias)(tensor)
    found = to_input(image, PreprocessConfig(size_px=56, order="reference", antialias=antialias))
    assert torch.equal(found, expected)


def test_the_platform_order_resizes_first() -> None:
    image = photo()
    expected = classic.normalize(
        classic.to_tensor(image.resize((56, 56), Image.Resampling.BILINEAR)), MEAN, STD
    )
    found = to_input(image, PreprocessConfig(size_px=56))
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_a_batch_is_normalised_as_its_photos_are() -> None:
    pixels = np.stack([to_pixels(photo(), 28), to_pixels(photo(50, 90), 28)])
    together = normalise(pixels)
    assert together.shape == (2, 3, 28, 28)
    for index in range(2):
        assert torch.equal(together[index], normalise(pixels[index]))


@pytest.mark.parametrize(
    "config",
    [
        PreprocessConfig(),
        PreprocessConfig(size_px=112),
        REFERENCE,
        PreprocessConfig(size_px=322, order="reference", antialias=False),
    ],
)
def test_the_id_says_everything(config: PreprocessConfig) -> None:
    assert PreprocessConfig.from_id(config.id) == config


def test_ids_differ_exactly_where_inputs_do() -> None:
    assert PreprocessConfig(antialias=False).id == PreprocessConfig(antialias=True).id == "platform-224"
    assert REFERENCE.id == "reference-322"
    assert PreprocessConfig(size_px=322, order="reference", antialias=False).id == "reference-322-plain"
    with pytest.raises(DataError, match="'fancy-7' names no preprocessing"):
        PreprocessConfig.from_id("fancy-7")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_any_kind_of_image_becomes_rgb(mode: str) -> None:
    image = photo().convert("L").convert("I").convert("I;16") if mode == "I;16" else photo().convert(mode)
    found = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert found.mode == "RGB"
    assert found.size == (90, 70)


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    data = encoded(photo(), "JPEG", exif=exif, quality=95)
    assert decode(data).size == (70, 90)
    turned = np.asarray(decode(data), dtype=float)
    expected = np.asarray(photo().rotate(-90, expand=True), dtype=float)
    assert np.abs(turned - expected).mean() < 10  # of 255; any other turn differs by more than 60


@pytest.mark.parametrize(
    ("at_least", "size"), [(None, (800, 640)), (400, (800, 640)), (320, (400, 320)), (70, (100, 80))]
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_large_enough(at_least, size) -> None:
    data = encoded(photo(800, 640), "JPEG")
    assert decode(data, at_least).size == size


def test_a_reduced_scale_hardly_changes_the_input() -> None:
    data = encoded(photo(800, 640), "JPEG", quality=95)
    fast = decode_to_input(data, PreprocessConfig(size_px=56))
    full = to_input(decode(data), PreprocessConfig(size_px=56))
    assert (fast - full).abs().mean() < 0.02  # of a standard deviation of natural images


def test_the_reference_order_decodes_in_full() -> None:
    data = encoded(photo(800, 640), "JPEG")
    config = PreprocessConfig(size_px=56, order="reference")
    assert torch.equal(decode_to_input(data, config), to_input(decode(data), config))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(photo(), "JPEG")[:900],
        encoded(photo())[:200],
        encoded(photo())[:-30],
    ],
    ids=["empty", "text", "half a jpeg", "half a png", "a png without its end"],
)
def test_what_cannot_be_decoded_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cannot decode the image: \w"):
        decode(data)


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    found = np.asarray(decode(encoded(Image.fromarray(grey))))
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_good_photo_with_a_broken_tag_is_turned_upright() -> None:
    turned, resolution = (
        struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
        struct.pack("<HHI4s", 0x011A, 2, 4, b"abc"),
    )
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + turned + resolution + bytes(4)  # resolution is text
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0" + tags)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data).size == (70, 90)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="nobody knows what is white"):
        decode(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))
