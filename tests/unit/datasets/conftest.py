"""Tiny raw trees, written by hand."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from placeray.datasets.source import Listing

WriteFile = Callable[[str, bytes | str], Path]


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """The bytes of a small photo; another seed is another photo."""

    def draw(seed: int = 0, size: tuple[int, int] = (32, 24)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG")
        return sink.getvalue()

    return draw


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write a file below tmp_path."""

    def write_file(path: str, data: bytes | str = b"not read") -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return file

    return write_file


@pytest.fixture
def check() -> Callable[[Listing], tuple[list[dict[str, Any]], dict[str, str]]]:
    """(rows of the photos, {base name of the reject: reason}) of a listing whose counts add up."""

    def rows_and_reasons(listing: Listing) -> tuple[list[dict[str, Any]], dict[str, str]]:
        assert listing.read == listing.photos.num_rows + listing.rejects.num_rows
        rejects = listing.rejects.to_pylist()
        assert all(reject["detail"] and reject["image_id"] for reject in rejects)
        return listing.photos.to_pylist(), {
            reject["source_uri"].rsplit("/", 1)[-1]: reject["reason"] for reject in rejects
        }

    return rows_and_reasons
