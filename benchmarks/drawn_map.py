"""Maps of drawn photos for the benchmarks of search: codes of three kinds of city, written as the index job does.

    c     1000 styles, streets of 50 places in one of them, places along them: codes cluster well
    ou    streets of 200 places, each a little different from the one before: closest to a drive
    iid   places that have nothing in common: the worst case for inverted lists

Ten photos show a place, each with 5 to 15 % of the bits of its place flipped; a query flips 10 to 28 %.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from placeray.retrieval.build import rows_schema
from placeray.retrieval.cells import LEVEL, hilbert_cells
from placeray.retrieval.float_store import FILE_OF_TYPE, SCALE_FILE, padded_row_bytes
from placeray.retrieval.manifest import FORMAT_VERSION, Manifest, compose, publish
from placeray.storage import write_json

CODE_BITS, PHOTOS_PER_PLACE, KINDS = 512, 10, ("c", "ou", "iid")
_AT_ONCE = 100_000


class City(NamedTuple):
    """Photos in row order, and queries."""

    codes: np.ndarray  # (N, 64) uint8
    lat: (
        np.ndarray
    )  # (N,) degrees; the photos of a place share a position, places are hundreds of metres apart
    lon: np.ndarray
    queries: np.ndarray  # (Q, 64) uint8
    asked: np.ndarray  # (Q,) the place of each query


def draw(kind: str, num_photos: int, num_queries: int, seed: int = 0) -> City:
    """A city of `num_photos`, a multiple of ten."""
    rng = np.random.default_rng(seed)
    places = num_photos // PHOTOS_PER_PLACE
    centres = _CENTRES[kind](rng, places)
    codes = flipped(rng, np.repeat(centres, PHOTOS_PER_PLACE, axis=0), 0.05, 0.15)
    # Positions in the order of the curve, so that neighbours in the city are neighbours in the files, as in a real map.
    lat, lon = 46 + 3 * rng.random(places), 5 + 5 * rng.random(places)
    order = np.argsort(hilbert_cells(lat, lon))
    lat, lon = (np.repeat(values[order], PHOTOS_PER_PLACE) for values in (lat, lon))
    asked = rng.choice(places, num_queries, replace=False)
    return City(codes, lat, lon, flipped(rng, centres[asked], 0.10, 0.28), asked)


def flipped(rng: np.random.Generator, codes: np.ndarray, least: float, most: float) -> np.ndarray:
    """Codes with a share of their bits flipped that differs from row to row."""
    changed = np.empty_like(codes)
    for start in range(0, len(codes), _AT_ONCE):
        some = codes[start : start + _AT_ONCE]
        share = rng.uniform(least, most, (len(some), 1)).astype(np.float32)
        changed[start : start + len(some)] = some ^ np.packbits(
            rng.random((len(some), CODE_BITS), np.float32) < share, axis=1
        )
    return changed


def _independent(rng: np.random.Generator, places: int) -> np.ndarray:
    return rng.integers(0, 256, (places, CODE_BITS // 8), dtype=np.uint8)


def _in_styles(rng: np.random.Generator, places: int) -> np.ndarray:
    styles = _independent(rng, 1000)
    streets = flipped(rng, styles[rng.integers(0, 1000, -(-places // 50))], 0.15, 0.25)
    return flipped(rng, np.repeat(streets, 50, axis=0)[:places], 0.10, 0.20)


def _along_streets(rng: np.random.Generator, places: int) -> np.ndarray:
    """Every component walks along the street and stays 0.8 of what it was; a weak style of 50 lies under it."""
    streets = -(-places // 200)
    centres = np.empty((streets, 200, CODE_BITS // 8), np.uint8)
    styles = 0.5 * rng.standard_normal((50, CODE_BITS), np.float32)
    for start in range(0, streets, 500):
        count = min(500, streets - start)
        walk = rng.standard_normal((count, CODE_BITS), np.float32)
        style = styles[rng.integers(0, 50, count)]
        for place in range(200):
            walk = 0.8 * walk + 0.6 * rng.standard_normal((count, CODE_BITS), np.float32)
            centres[start : start + count, place] = np.packbits(walk + style >= 0, axis=1)
    return centres.reshape(-1, CODE_BITS // 8)[:places]


_CENTRES = {"c": _in_styles, "ou": _along_streets, "iid": _independent}


class Store(NamedTuple):
    """8-bit descriptors that all rows of a map repeat: row r has those of r % len(rows)."""

    rows: np.ndarray  # (n, D) int8
    scales: np.ndarray  # (n,) float32


def write_map(
    root: Path,
    city: City,
    store: Store | None = None,
    *,
    like: Path | None = None,
    rows_per_shard: int = 1_000_000,
) -> Manifest:
    """Write the files of a map as the index job does, without its inputs, and publish it.

    Descriptors of 2.8 million photos with 4096 floats would take 23 GB as input, so they are drawn here. Checksums are
    left out. `like` is a map of as many rows whose descriptor files are linked instead of being written again.
    """
    dim = 0 if store is None else store.rows.shape[1]
    row_bytes = padded_row_bytes(dim, "int8") if dim else 0
    shards = []
    for number, start in enumerate(range(0, len(city.codes), rows_per_shard)):
        end = min(start + rows_per_shard, len(city.codes))
        name = f"{number:05d}-{'0' * 16}"
        folder = root / "shards" / name
        folder.mkdir(parents=True)
        city.codes[start:end].tofile(folder / "codes.u8")
        cells = _write_rows(folder / "rows.arrow", city, start, end)
        names = ["codes.u8", "rows.arrow"]
        if store is not None:
            names += [FILE_OF_TYPE["int8"], SCALE_FILE]
            _write_store(
                folder, store, start, end, row_bytes, None if like is None else like / "shards" / name
            )
        shard = {
            "format_version": FORMAT_VERSION, "requires": [], "shard_id": name, "key": "0" * 64, "rows": end - start,
            "code_bits": CODE_BITS, "descriptor_dim": dim, "descriptor_type": "int8", "row_bytes": row_bytes,
            "bbox": [5.0, 46.0, 10.0, 49.0], "cells": cells, "inputs": [],
            "files": {f: {"bytes": (folder / f).stat().st_size, "xxh3_128": "0" * 32} for f in names},
        }  # fmt: skip
        write_json(str(folder / "shard.json"), shard)
        shards.append(shard)
    model = {"model_id": "drawn", "preprocessing": "none", "code_bits": CODE_BITS, "descriptor_dim": dim}
    rule = {"kind": "radius", "radius_m": 25.0}
    source = {"descriptors_fingerprint": "0" * 64, "images_fingerprint": None, "positive_rule": rule}
    plan = {"build_key": "0" * 64, "model": model, "config": {}, "source": source, "cell_level": LEVEL}
    return publish(str(root), compose(plan, shards))


def _write_rows(path: Path, city: City, start: int, end: int) -> list[int]:
    cells = hilbert_cells(city.lat[start:end], city.lon[start:end])
    names = pa.array([f"{row:09d}" for row in range(start, end)])
    known = {
        "image_id": names,
        "source_uri": names,
        "lat": pa.array(city.lat[start:end]),
        "lon": pa.array(city.lon[start:end]),
        "cell": pa.array(cells),
    }
    schema = rows_schema()
    table = pa.table([known.get(f.name, pa.nulls(end - start, f.type)) for f in schema], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    return [int(cells[0]), int(cells[-1])]


def _write_store(folder: Path, store: Store, start: int, end: int, row_bytes: int, like: Path | None) -> None:
    store.scales[np.arange(start, end) % len(store.scales)].tofile(folder / SCALE_FILE)
    if like is not None:
        os.link(like / FILE_OF_TYPE["int8"], folder / FILE_OF_TYPE["int8"])
        return
    padded = np.zeros((len(store.rows), row_bytes), np.int8)
    padded[:, : store.rows.shape[1]] = store.rows
    with (folder / FILE_OF_TYPE["int8"]).open("wb") as file:
        while start < end:
            first = start % len(padded)
            count = min(len(padded) - first, end - start)
            padded[first : first + count].tofile(file)
            start += count
