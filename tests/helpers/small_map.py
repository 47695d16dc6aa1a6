"""Small descriptors folders, and maps of them made without Ray."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.retrieval.build import build_shard
from placeray.retrieval.manifest import compose, publish, read_map_manifest
from placeray.retrieval.map_lists import (
    build_lists,
    calibrate,
    calibrated,
    learn_quantizer,
    plan_runs,
    queries_of_descriptors,
    wanted_lists,
)
from placeray.retrieval.plan import IndexConfig, plan_map

MODEL_ID = "a" * 64


def build_map(descriptors: str, root: str, **settings: Any) -> str:
    """A map without lists of a finished descriptors folder; `settings` of IndexConfig."""
    plan = plan_map(descriptors, IndexConfig(**settings))
    publish(root, compose(plan, [build_shard(part, descriptors, root) for part in plan["shards"]]))
    return root


def give_lists(root: str, config: IndexConfig, queries: str | None = None) -> dict[str, Any]:
    """What the index job does after the last shard, without Ray."""
    manifest = read_map_manifest(root)
    quantizer = learn_quantizer(root, manifest, wanted_lists(config, manifest))
    runs = plan_runs(manifest, quantizer)
    for run in runs:
        build_lists(root, run)
    asked = None if queries is None else queries_of_descriptors(queries, manifest)
    found = calibrate(root, manifest, quantizer, config, asked, num_threads=2)
    return publish(root, calibrated(manifest, quantizer, runs, found))


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
