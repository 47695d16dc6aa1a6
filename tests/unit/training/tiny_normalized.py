"""Draws a small folder of normalized data: places of two domains and one validation set, in well under a second.

A place is a pattern of large coloured blocks; its photos are that pattern, shifted and brightened. The tests of the
training room and of training on Ray load this file by its path.
"""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from placeray import contracts, storage
from placeray.datasets.writing import write_parquet


def photo(place: int, variant: int, size: tuple[int, int] = (60, 48)) -> bytes:
    """JPEG bytes of a photo of a place."""
    blocks = np.random.default_rng(place).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    rng = np.random.default_rng([place, variant])
    pixels = np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST), np.int16)
    moved = np.roll(pixels, rng.integers(-3, 4, 2), axis=(0, 1)) + rng.integers(-20, 21)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_normalized(root: str, domains: dict[str, list[int]], val_places: int = 8) -> str:
    """Write places/, images/ and manifest.json.

    Args:
        domains: name -> number of photos of each of its places.
    """
    files, first = [], 0
    for name, counts in domains.items():
        files.append(write_parquet(f"{root}/places", f"toy/{name}.parquet", _places(name, first, counts)))
        first += len(counts)
    storage.commit_manifest(f"{root}/places", contracts.table_manifest("places/v1", files, made_by={}))
    for role, variants in (("database", [0]), ("query", [1])):
        table = _images(role, range(1000, 1000 + val_places), variants)
        write_parquet(f"{root}/images", f"toy/val-{role}/part-0.parquet", table)
    rules = {"toy/val": {"kind": "radius", "radius_m": 25.0}}
    storage.commit_manifest(root, {"contract": "normalized/v1", "positive_rules": rules})
    return root


def _places(domain: str, first: int, counts: list[int]) -> pa.Table:
    rows = []
    for place, count in enumerate(counts, start=first):
        photos = [
            {**_position(place), **_file(f"{place}-{k}"), "image": photo(place, k)} for k in range(count)
        ]
        rows.append(
            {
                "place_id": f"place-{place}",
                "dataset": "toy",
                "city": "toy",
                "domain": domain,
                "lat": 0.0,
                "lon": 0.0,
            }
            | {"num_photos": count, "photos": photos}
        )
    return pa.Table.from_pylist(rows, schema=contracts.table_schema("places/v1"))


def _images(role: str, places: range, variants: list[int]) -> pa.Table:
    rows = [
        {**_position(place), **_file(f"{place}-{k}-{role}"), "dataset": "toy", "split": "val", "role": role}
        | {"image": photo(place, k)}
        for place in places
        for k in variants
    ]
    return pa.Table.from_pylist(rows, schema=contracts.table_schema("images/v1"))


def _position(place: int) -> dict[str, Any]:
    return {"utm_east": 500_000.0 + 100 * place, "utm_north": 4_000_000.0, "utm_zone": "10S"}


def _file(name: str) -> dict[str, Any]:
    return {"image_id": name, "source_uri": f"{name}.jpg", "sha256": "0" * 64}


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) decoded in full."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
