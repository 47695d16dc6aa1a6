"""Adding photos to a map against building the map, in one process.

    python benchmarks/update_map.py [--photos 2000000] [--added 20000]

build   plan_map, build_shard for all, compose, publish: what the index job does without Ray
add     run_update with new photos all over the area, each time on a fresh copy of the map (hard links); median of 3
remove  run_update that removes as many photos, likewise; no target

512-bit codes, 64 dimensions in 8 bits, positions. The descriptor files of the build lie in the order of the map, so
that each shard reads few rows in vain: the fastest build. Takes a minute or two and 2 GB of disk.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.retrieval.build import build_shard
from placeray.retrieval.cells import hilbert_cells
from placeray.retrieval.manifest import compose, publish
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig, plan_map
from placeray.retrieval.update import UpdateConfig, run_update

CODE_BITS, DIM, ROWS_PER_FILE, ROUNDS = 512, 64, 50_000, 3
TARGETS = {"add_1pct_vs_build": "<= 0.03"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=2_000_000)
    parser.add_argument("--added", type=int, default=20_000)
    parser.add_argument("--folder", help="where to write; a temporary folder when left out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="placeray-update-", dir=asked.folder) as name:
        folder = Path(name)
        old = write_descriptors(folder / "old", asked.photos, seed=0)
        new = write_descriptors(folder / "new", asked.added, seed=1)
        removed = tuple(storage.read_table(f"{old}/0.parquet", ["image_id"])["image_id"].to_pylist())
        removed = removed[: asked.added]
        os.sync()
        measure.say(f"wrote descriptors of {asked.photos} and {asked.added} photos")
        root = folder / "map"
        build_s = seconds_of(lambda: build(old, str(root)))
        measure.say(f"build: {build_s:.2f} s")
        add_s = on_copies(
            root, lambda copy: run_update(copy, UpdateConfig(), new), asked.photos + asked.added
        )
        remove_s = on_copies(
            root, lambda copy: run_update(copy, UpdateConfig(remove=removed)), asked.photos - len(removed)
        )
    measure.finish(
        "update_map",
        {"add_1pct_vs_build": add_s / build_s, "remove_1pct_vs_build": remove_s / build_s},
        TARGETS,
        photos=asked.photos,
        added=asked.added,
        build_s=round(build_s, 2),
        add_s=round(add_s, 3),
        remove_s=round(remove_s, 3),
    )


def build(descriptors: str, root: str) -> None:
    """A first version of a map."""
    plan = plan_map(descriptors, IndexConfig())
    publish(root, compose(plan, [build_shard(part, descriptors, root) for part in plan["shards"]]))


def on_copies(root: Path, update: Callable[[str], object], expected: int) -> float:
    """Median seconds of an update of fresh copies, after which a map must have `expected` photos."""
    seconds = []
    for number in range(ROUNDS):
        copy = root.with_name(f"copy-{number}")
        shutil.copytree(root, copy, copy_function=os.link)
        os.sync()
        seconds.append(seconds_of(lambda where=str(copy): update(where)))  # type: ignore[misc]
        measure.say(f"update {number + 1}/{ROUNDS}: {seconds[-1]:.3f} s")
        with PlaceMap.open(str(copy)) as place_map:
            assert place_map.num_live == expected, f"{place_map.num_live} photos instead of {expected}"
        shutil.rmtree(copy)
    return statistics.median(seconds)


def seconds_of(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def write_descriptors(folder: Path, count: int, seed: int) -> str:
    """A finished descriptors folder of drawn photos in an area of 3 by 5 degrees, in the order of the map."""
    rng = np.random.default_rng(seed)
    lat, lon = 46 + 3 * rng.random(count), 5 + 5 * rng.random(count)
    order = np.argsort(hilbert_cells(lat, lon))
    lat, lon = lat[order], lon[order]
    schema = table_schema("descriptors/v1", {"descriptor": DIM})
    files = []
    for start in range(0, count, ROWS_PER_FILE):
        rows = range(start, min(start + ROWS_PER_FILE, count))
        codes = rng.integers(0, 256, len(rows) * CODE_BITS // 8, dtype=np.uint8)
        floats = rng.standard_normal((len(rows), DIM), np.float32)
        floats /= np.linalg.norm(floats, axis=1, keepdims=True)
        ids = [hashlib.sha256(f"{seed}/{row}".encode()).hexdigest()[:20] for row in rows]
        columns = {
            "image_id": ids,
            "source_uri": [f"photos/{name}.jpg" for name in ids],
            "lat": lat[rows.start : rows.stop],
            "lon": lon[rows.start : rows.stop],
            "code": [
                codes[at : at + CODE_BITS // 8].tobytes() for at in range(0, len(codes), CODE_BITS // 8)
            ],
            "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(floats.astype(np.float16).ravel()), DIM),
        }
        arrays = [
            pa.array(columns.get(name, [None] * len(rows)), schema.field(name).type) for name in schema.names
        ]
        path = f"{start // ROWS_PER_FILE}.parquet"
        storage.write_table(str(folder / path), pa.table(arrays, schema=schema))
        data = (folder / path).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        files.append({"path": path, "rows": len(rows), "bytes": len(data), "sha256": digest})
    properties = {
        "model_id": "a" * 64,
        "preprocessing": "drawn",
        "code_bits": CODE_BITS,
        "descriptor_dim": DIM,
        "images_fingerprint": "f" * 64,
        "positive_rule": {"kind": "radius", "radius_m": 25.0},
    }
    storage.commit_manifest(
        str(folder), table_manifest("descriptors/v1", files, made_by={}, properties=properties)
    )
    return str(folder)


if __name__ == "__main__":
    main()
