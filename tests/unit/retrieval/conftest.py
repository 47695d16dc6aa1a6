"""Small descriptors folders and maps for the tests of retrieval."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.retrieval.build import build_shard
from placeray.retrieval.manifest import compose, publish
from placeray.retrieval.plan import IndexConfig, plan_map

MODEL_ID = "a" * 64


def write_descriptors(
    root: str,
    codes: Any = None,
    floats: Any = None,
    *,
    lat: Any = None,
    lon: Any = None,
    more: dict[str, list[Any]] | None = None,
    num_files: int = 1,
    model_id: str = MODEL_ID,
) -> str:
    """A finished descriptors folder: photo i is called `photo-<i>` and lies at (lat[i], lon[i]).

    `more` has values of further columns, such as heading_deg.
    """
    count = len(codes) if codes is not None else len(floats)
    dim = 0 if floats is None else floats.shape[1]
    files = []
    for number, rows in enumerate(np.array_split(np.arange(count), num_files)):
        table = _table(rows, codes, floats, lat, lon, dim, more or {})
        name = f"part/{number}.parquet"
        storage.write_table(storage.join(root, name), table, row_group_size=7)
        data = storage.read_bytes(storage.join(root, name))
        digest = hashlib.sha256(data).hexdigest()
        files.append({"path": name, "rows": len(rows), "bytes": len(data), "sha256": digest})
    properties = {
        "model_id": model_id,
        "preprocessing": "platform-56",
        "code_bits": 0 if codes is None else codes.shape[1] * 8,
        "descriptor_dim": dim,
        "images_fingerprint": "f" * 64,
        "positive_rule": {"kind": "radius", "radius_m": 25.0},
    }
    storage.commit_manifest(root, table_manifest("descriptors/v1", files, made_by={}, properties=properties))
    return root


def _table(
    rows: Any, codes: Any, floats: Any, lat: Any, lon: Any, dim: int, more: dict[str, list[Any]]
) -> pa.Table:
    schema = table_schema("descriptors/v1", {"descriptor": dim})
    columns: dict[str, Any] = {name: [None] * len(rows) for name in schema.names}
    columns["image_id"] = [f"photo-{row:06d}" for row in rows]
    columns["source_uri"] = [f"photos/{row}.jpg" for row in rows]
    for name, values in (("lat", lat), ("lon", lon)):
        if values is not None:
            columns[name] = [None if np.isnan(values[row]) else float(values[row]) for row in rows]
    for name, values in more.items():
        columns[name] = [values[row] for row in rows]
    if codes is not None:
        columns["code"] = [codes[row].tobytes() for row in rows]
    if floats is not None:
        columns["descriptor"] = list(floats[rows].astype(np.float16))
    return pa.table(
        {name: pa.array(value, schema.field(name).type) for name, value in columns.items()}, schema
    )


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Hundreds of tiny maps are built here; whether they outlive a power cut is not the question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def make_descriptors(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`make_descriptors(codes, floats, lat=, lon=, num_files=) -> uri`, a new folder each time."""
    root, numbers = tmp_path_factory.mktemp("descriptors"), itertools.count()
    return lambda *args, **more: write_descriptors(str(root / str(next(numbers))), *args, **more)


@pytest.fixture(scope="session")
def make_map(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`make_map(descriptors, rows_per_shard=...) -> uri`, a new folder each time, built without Ray."""
    folder, numbers = tmp_path_factory.mktemp("maps"), itertools.count()

    def make(descriptors: str, root: str | None = None, **settings: Any) -> str:
        root = root or str(folder / str(next(numbers)))
        plan = plan_map(descriptors, IndexConfig(**settings))
        publish(root, compose(plan, [build_shard(part, descriptors, root) for part in plan["shards"]]))
        return root

    return make


@pytest.fixture(scope="session")
def draw_tied() -> Callable[..., tuple[Any, Any]]:
    """`draw_tied(rng, count, bits, dim) -> codes, unit floats`, many equal: every cut falls among ties."""

    def draw(rng: np.random.Generator, count: int, bits: int, dim: int) -> tuple[Any, Any]:
        styles = rng.integers(0, 256, (4, bits // 8), dtype=np.uint8)
        codes = styles[rng.integers(0, 4, count)]
        flipped = rng.random(count) < 0.3
        codes[flipped, 0] ^= np.uint8(1) << rng.integers(0, 8, int(flipped.sum())).astype(np.uint8)
        noise = 0.2 * rng.standard_normal((count, dim)) * (rng.random((count, 1)) < 0.5)
        floats = rng.standard_normal((6, dim))[rng.integers(0, 6, count)] + noise
        return codes, (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)

    return draw


@pytest.fixture(scope="session")
def draw_random() -> Callable[..., tuple[Any, Any]]:
    """`draw_random(rng, count, bits, dim) -> codes, unit floats`, all different."""

    def draw(rng: np.random.Generator, count: int, bits: int, dim: int) -> tuple[Any, Any]:
        floats = rng.standard_normal((count, dim))
        unit = (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)
        return rng.integers(0, 256, (count, bits // 8), dtype=np.uint8), unit

    return draw
