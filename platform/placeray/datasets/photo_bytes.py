"""One photo's bytes: read, checked, hashed, and on request made smaller."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import PIL.Image
from pydantic import Field

from placeray import storage
from placeray.config import Config
from placeray.pictures import upright_rgb


class PhotoStorage(Config):
    """What is checked of every photo that is read, and what is stored of it."""

    decode_check: Literal["full", "header", "none"] = Field(
        default="full",
        description="full finds truncated files; header reads the size alone; none trusts the bytes",
    )
    min_side_px: int = Field(
        default=16, ge=1, description="a photo with a shorter side is rejected as too_small"
    )
    max_side_px: int | None = Field(
        default=None,
        ge=16,
        description="shrink larger photos to this longer side and store them as JPEG; null = never",
    )
    jpeg_quality: int = Field(
        default=92, ge=1, le=100, description="of photos stored anew because of max_side_px"
    )
    max_file_bytes: int = Field(
        default=512 << 20,
        ge=1 << 20,
        description="a file is closed, and the next one begun, once it holds so many bytes; it may end 8 MiB, or one "
        "place, above",
    )
    read_threads: int = Field(
        default=4, ge=1, description="photos that one worker fetches from an object store at the same time"
    )


class PhotoBytes(NamedTuple):
    """A photo as it is stored; sizes are None when the header was not read."""

    data: bytes
    sha256: str
    width: int | None
    height: int | None


class Rejection(NamedTuple):
    """Why a photo is not kept."""

    reason: str
    detail: str


def read_photos(uris: Sequence[str], config: PhotoStorage) -> Iterator[PhotoBytes | Rejection]:
    """Read and check photos, in order.

    Only fetching is ever left to threads (see `storage.read_files`): several that decode in one worker would take
    turns on its core.

    Raises:
        StorageError: a file is there but cannot be read (rights, network, disk): not the photo's fault.
    """
    for data in storage.read_files(uris, config.read_threads):
        if data is None:
            yield Rejection("missing_file", "there is no such file")
        else:
            yield check_photo(data, config)


def _hashed(data: bytes, width: int | None = None, height: int | None = None) -> PhotoBytes:
    return PhotoBytes(data, hashlib.sha256(data).hexdigest(), width, height)


def check_photo(data: bytes, config: PhotoStorage) -> PhotoBytes | Rejection:
    """Check bytes as `decode_check` says, shrink them if configured, hash what is stored."""
    if config.decode_check == "none" and config.max_side_px is None:
        return _hashed(data)
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if min(width, height) < config.min_side_px:
                return Rejection(
                    "too_small", f"{width} x {height} pixels, the shorter side needs {config.min_side_px}"
                )
            if config.max_side_px is not None and max(width, height) > config.max_side_px:
                data, width, height = _shrink(image, config)
            elif config.decode_check == "full":
                image.draft("RGB", (width // 8, height // 8))  # an eighth of the size shows every truncation
                image.load()
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError) as error:
        return Rejection(
            "decode_error", "no image" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        )
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        return Rejection("decode_error", str(error))
    return _hashed(data, width, height)


def _shrink(image: PIL.Image.Image, config: PhotoStorage) -> tuple[bytes, int, int]:
    """A small JPEG. It has no EXIF, so it is turned upright; whoever reads an original does that by its EXIF."""
    assert config.max_side_px is not None
    colour = upright_rgb(image)
    scale = config.max_side_px / max(colour.size)
    size = (max(1, round(colour.width * scale)), max(1, round(colour.height * scale)))
    small = colour.resize(size, PIL.Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=config.jpeg_quality)
    return sink.getvalue(), *size
