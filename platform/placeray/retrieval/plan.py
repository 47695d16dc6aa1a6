"""The plan of a map: which rows of which descriptor files go into which shard.

All photos are ordered by (cell, image_id), a total order that depends neither on file names nor on the number
of shards, and cut into shards of equal size. A shard knows its first and its end key, so that a worker finds
its own rows and nothing large travels to it.
"""

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from placeray import storage
from placeray.config import Config
from placeray.errors import MapError
from placeray.retrieval.cells import LEVEL, hilbert_cells
from placeray.retrieval.codes import check_code_bits
from placeray.retrieval.float_store import padded_row_bytes
from placeray.retrieval.manifest import FORMAT_VERSION, fingerprint
from placeray.retrieval.merge import check_num_rows

Plan = dict[str, Any]
KEY_COLUMNS = ["image_id", "lat", "lon"]
_HASHED_AT_ONCE = 100_000


class IndexConfig(Config):
    """How a map is cut and stored."""

    rows_per_shard: int = Field(
        default=1_000_000,
        ge=1,
        description="photos of one shard at most; a worker holds the codes of one shard",
    )
    descriptor_type: Literal["int8", "float16", "float32"] = Field(
        default="int8",
        description="how float descriptors are stored; int8 has one scale per photo and loses no recall",
    )
    lists: int | None = Field(
        default=None,
        ge=0,
        description="inverted lists, so that a search reads a part of the codes; 0 for none, null for 16 sqrt(photos) "
        "from 5 million photos on",
    )
    hit_rate: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="of the queries that the exhaustive shortlist answers, the share that the lists must answer too",
    )
    calibration_queries: int = Field(
        default=1000, ge=1, description="photos of the map to calibrate with where no queries are given"
    )


def plan_map(descriptors: str, config: IndexConfig, queries: str | None = None) -> Plan:
    """Plan the map of a finished descriptors folder, to be calibrated with those of `queries` if given.

    Returns:
        JSON-able: build_key, model, config, source, cell_level and `shards`, a list of parts for
        `build.build_shard`.

    Raises:
        StorageError: the folder is not finished.
        MapError: a photo appears twice, or the code length cannot be searched.
    """
    manifest = storage.read_manifest(descriptors)
    settings = _settings(manifest, config, descriptors)
    properties = manifest["properties"]
    return {
        "build_key": _build_key(manifest, config, settings, queries),
        "model": {**settings["model"], **_registered(properties)},
        "config": config.model_dump(),
        "cell_level": LEVEL,
        "source": {
            "descriptors_fingerprint": manifest["fingerprint"],
            "images_fingerprint": properties.get("images_fingerprint"),
            "positive_rule": properties.get("positive_rule"),
        },
        "shards": _plan_shards(descriptors, manifest["files"], settings, config.rows_per_shard),
    }


def build_key_of(descriptors: str, config: IndexConfig, queries: str | None = None) -> str:
    """The build_key that `plan_map` gives, without reading a row."""
    manifest = storage.read_manifest(descriptors)
    return _build_key(manifest, config, _settings(manifest, config, descriptors), queries)


def check_made_by(descriptors: str, model_id: str, what: str) -> None:
    """Raises MapError when a descriptors folder was made by another model than `model_id`, which `what` names."""
    found = storage.read_manifest(descriptors)["properties"]
    if found["model_id"] != model_id:
        named = found.get("registered")
        known_as = f" ({named['name']} version {named['version']})" if named else ""
        raise MapError(
            f"{storage.resolve(descriptors)} was described by model {found['model_id'][:12]}{known_as}, not by {what} "
            f"({model_id[:12]}): describe the photos with it first"
        )


def _registered(properties: dict[str, Any]) -> dict[str, Any]:
    """Which version of a registered model made the descriptors, where that is known."""
    return {"registered": properties["registered"]} if properties.get("registered") else {}


def _build_key(
    manifest: dict[str, Any], config: IndexConfig, settings: dict[str, Any], queries: str | None
) -> str:
    asked = None if queries is None else storage.read_manifest(queries)["fingerprint"]
    return fingerprint(
        [settings, config.model_dump(), manifest["fingerprint"], manifest["properties"], asked]
    )


def _settings(manifest: dict[str, Any], config: IndexConfig, descriptors: str) -> dict[str, Any]:
    """What decides the bytes of a shard besides its rows."""
    properties = manifest["properties"]
    model = {key: properties[key] for key in ("model_id", "preprocessing", "code_bits", "descriptor_dim")}
    if model["code_bits"]:
        check_code_bits(model["code_bits"])
    elif not model["descriptor_dim"]:
        raise MapError(
            f"{storage.resolve(descriptors)} holds neither codes nor float descriptors: nothing to index"
        )
    check_num_rows(manifest["rows"])
    return {
        "format_version": FORMAT_VERSION,
        "model": model,
        "cell_level": LEVEL,
        "descriptor_type": config.descriptor_type,
        "row_bytes": padded_row_bytes(model["descriptor_dim"], config.descriptor_type),
    }


def read_keys(uri: str) -> pa.Table:
    """The sort key of every row of one descriptors file: columns cell (uint64) and image_id."""
    table = storage.read_table(uri, KEY_COLUMNS)
    return pa.table({"cell": cells_of(table), "image_id": table["image_id"].combine_chunks()})


def cells_of(table: pa.Table) -> NDArray[np.uint64]:
    """Cells (N,) of a table with lat and lon."""
    lat, lon = (table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("lat", "lon"))
    return hilbert_cells(lat, lon)


def sorted_order(keys: pa.Table) -> NDArray[np.int64]:
    """Row numbers (N,) of a key table in the order of the map."""
    order = pc.sort_indices(keys, sort_keys=[("cell", "ascending"), ("image_id", "ascending")])
    rows: NDArray[np.int64] = order.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def inside(keys: pa.Table, first: list[Any], end: list[Any] | None) -> NDArray[np.bool_]:
    """Which rows (N,) lie in first <= key < end; both are [cell, image_id]."""
    chosen = ~_before(keys, first)
    return chosen if end is None else chosen & _before(keys, end)


def _before(keys: pa.Table, bound: list[Any]) -> NDArray[np.bool_]:
    cells = keys["cell"].to_numpy(zero_copy_only=False)
    smaller_id = pc.less(keys["image_id"], bound[1]).to_numpy(zero_copy_only=False)
    before: NDArray[np.bool_] = (cells < np.uint64(bound[0])) | ((cells == np.uint64(bound[0])) & smaller_id)
    return before


def _plan_shards(
    descriptors: str, files: list[Any], settings: dict[str, Any], rows_per_shard: int
) -> list[Plan]:
    tables = [read_keys(storage.join(descriptors, file["path"])) for file in files]
    if not sum(len(table) for table in tables):
        return []
    file_of_row = np.repeat(np.arange(len(files), dtype=np.int32), [len(table) for table in tables])
    keys = pa.concat_tables(tables).combine_chunks()
    del tables  # 44 bytes a photo, which tens of millions need not pay twice
    _refuse_duplicates(keys, descriptors)
    order = sorted_order(keys)
    file_of_row = file_of_row[order]
    edges = list(range(0, len(order), rows_per_shard))
    bounds = [[keys["cell"][order[row]].as_py(), keys["image_id"][order[row]].as_py()] for row in edges]
    shards = []
    for number, start in enumerate(edges):
        rows_per_file = np.bincount(file_of_row[start : start + rows_per_shard], minlength=len(files))
        part = {
            "rows": int(rows_per_file.sum()),
            "settings": settings,
            "first": bounds[number],
            "end": bounds[number + 1] if number + 1 < len(bounds) else None,
            "inputs": [
                {"path": files[i]["path"], "sha256": files[i]["sha256"], "rows": int(rows_per_file[i])}
                for i in np.flatnonzero(rows_per_file)
            ],
        }
        key = fingerprint(part)
        # The number keeps a listing in row order; the key makes the name that of the content.
        shards.append({**part, "key": key, "name": f"{number:05d}-{key[:16]}"})
    return shards


def _refuse_duplicates(keys: pa.Table, descriptors: str) -> None:
    """Raises MapError naming a photo that appears twice: by sorting hashes, 8 bytes a photo."""
    hashes = np.concatenate([text_hashes(chunk) for chunk in keys["image_id"].chunks])
    order = np.sort(hashes)
    suspects = order[1:][order[1:] == order[:-1]]
    if not len(suspects):
        return
    ids = keys["image_id"].filter(pa.array(np.isin(hashes, suspects)))
    twice = [
        item["values"] for item in pc.value_counts(ids.combine_chunks()).to_pylist() if item["counts"] > 1
    ]
    if twice:
        raise MapError(
            f"photo {min(twice)} appears more than once in {storage.resolve(descriptors)}: a map holds each once"
        )


def text_hashes(texts: pa.StringArray) -> NDArray[np.uint64]:
    """A 64-bit hash (n,) of each text, none null; texts of a length are hashed together."""
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(data or b"", dtype=np.uint8)
    lengths = np.diff(offsets)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        for some in np.array_split(rows, -(-len(rows) // _HASHED_AT_ONCE)):
            padded = np.zeros((len(some), -(-length // 8) * 8), dtype=np.uint8)
            padded[:, :length] = letters[offsets[some][:, None] + np.arange(length)]
            value = np.full(len(some), length, dtype=np.uint64)
            for word in padded.view(
                np.uint64
            ).T:  # multiply and fold, an odd constant near 2**64 / golden ratio
                value = (value ^ word) * np.uint64(0x9E37_79B9_7F4A_7C15)
                value ^= value >> np.uint64(29)
            hashes[some] = value
    return hashes
