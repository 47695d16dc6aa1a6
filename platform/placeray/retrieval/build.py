"""Write one shard of a map from descriptor files.

    codes.u8        packed codes, raw, row by row                     (models with a hash branch)
    desc.i8         float descriptors, raw padded rows, or desc.f16 / desc.f32   (models with a float branch)
    desc_scale.f32  one scale per row, for int8
    rows.arrow      who the photos are: all other columns of descriptors/v1 and the cell, Arrow IPC
    shard.json      [shard/v1], last, so its presence = finished: contents, sizes and checksums of the files

The work is done in two passes over the inputs (keys, then rows), so a worker holds the codes and row records
of one shard and one row group of descriptors, not the descriptors of the shard. The same plan gives the same
bytes.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from placeray import storage
from placeray.contracts import table_schema, validate_document, validate_table
from placeray.errors import MapError, StorageError
from placeray.retrieval.float_store import FILE_OF_TYPE, SCALE_FILE
from placeray.retrieval.locks import alone, emptied
from placeray.retrieval.manifest import FORMAT_VERSION
from placeray.retrieval.plan import cells_of, inside, read_keys, sorted_order
from placeray.retrieval.quantize import quantize

CODE_FILE, ROWS_FILE, SHARD_FILE = "codes.u8", "rows.arrow", "shard.json"
NOT_IN_ROWS = ("code", "descriptor")


def build_shard(part: Mapping[str, Any], descriptors: str, root: str) -> dict[str, Any]:
    """Write `<root>/shards/<name>/` for one part of `plan.plan_map`, unless it is finished, and return its shard.json.

    Of several writers of one shard the others wait for the first and find it finished.

    Raises:
        MapError: the descriptors have changed since the map was planned, or do not fit what their manifest
        says.
        StorageError: `root` is in an object store; a map is memory-mapped and lives on a local disk.
    """
    with alone(root, part["name"]):
        return finished_shard(part, root) or _write_shard(part, descriptors, root)


def _write_shard(part: Mapping[str, Any], descriptors: str, root: str) -> dict[str, Any]:
    folder = emptied(shard_folder(root, part["name"]))
    chosen = _place_rows(part, descriptors)
    files = _Files(folder, part)
    records = []
    for uri, rows, positions in chosen:
        for table, where in _selected(uri, rows, positions):
            files.write(table, where, uri)
            records.append((table.drop_columns(list(NOT_IN_ROWS)), where))
    table = _in_order(records)
    files.close(table)
    shard = describe_shard(part, folder, table)
    storage.write_json(str(folder / SHARD_FILE), shard)
    return shard


def rows_schema() -> pa.Schema:
    """Columns of rows.arrow: descriptors/v1 without code and descriptor, and the cell."""
    contract = table_schema("descriptors/v1", {"descriptor": 1})
    return pa.schema([*(field for field in contract if field.name not in NOT_IN_ROWS), ("cell", pa.uint64())])


def finished_shard(part: Mapping[str, Any], root: str) -> dict[str, Any] | None:
    """The shard.json of a part that is built already, from the same inputs and with all bytes, else None."""
    folder = shard_folder(root, part["name"])
    try:
        shard = storage.read_json(str(folder / SHARD_FILE))
    except StorageError:
        return None
    try:
        return shard if shard["key"] == part["key"] and is_whole(folder, shard) else None
    except (LookupError, TypeError, AttributeError):
        return None  # a damaged record: the shard is built again


def is_whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether all files of a shard are there with the sizes that its shard.json says."""
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == file["bytes"]
        for name, file in shard["files"].items()
    )


def shard_folder(root: str, name: str) -> Path:
    """Where a shard of the map at `root` lives."""
    return storage.local_path(storage.join(root, "shards", name))


def checksum(path: Path) -> str:
    """xxh3 (128 bits) of a file in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _place_rows(
    part: Mapping[str, Any], descriptors: str
) -> list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """(file, its rows that belong to the shard, their rows in the shard), for every input."""
    uris = [storage.join(descriptors, item["path"]) for item in part["inputs"]]
    rows, keys = [], []
    for uri, item in zip(uris, part["inputs"], strict=True):
        all_keys = read_keys(uri)
        chosen = np.flatnonzero(inside(all_keys, part["first"], part["end"]))
        if len(chosen) != item["rows"]:
            raise MapError(f"{uri} has changed since the map was planned: run the index job again")
        rows.append(chosen)
        keys.append(all_keys.take(pa.array(chosen)))
    order = sorted_order(pa.concat_tables(keys).combine_chunks())
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order))
    ends = np.cumsum([len(chosen) for chosen in rows])
    return list(zip(uris, rows, np.split(positions, ends[:-1]), strict=True))


def _selected(
    uri: str, rows: NDArray[np.int64], positions: NDArray[np.int64]
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The chosen rows of one parquet file, a row group at a time, with their rows in the shard."""
    with storage.open_read(uri) as file:
        parquet = pq.ParquetFile(file)
        validate_table(parquet.schema_arrow, "descriptors/v1")
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            here = slice(*np.searchsorted(rows, [start, end]))
            if len(rows[here]):
                yield parquet.read_row_group(group).take(pa.array(rows[here] - start)), positions[here]
            start = end


class _Files:
    """The raw files of a shard while they are being filled, row by row in any order."""

    def __init__(self, folder: Path, part: Mapping[str, Any]) -> None:
        settings, model = part["settings"], part["settings"]["model"]
        self._folder, self._type = folder, settings["descriptor_type"]
        self._code_bytes, self._dim = model["code_bits"] // 8, model["descriptor_dim"]
        num_rows = part["rows"]
        self._codes = np.zeros((num_rows, self._code_bytes), dtype=np.uint8) if self._code_bytes else None
        self._scales = np.zeros(num_rows, dtype=np.float32)
        self._rows: NDArray[np.generic] | None = None
        self._map: np.memmap[Any, Any] | None = None
        if self._dim:
            path = folder / FILE_OF_TYPE[self._type]
            self._map = np.memmap(path, np.uint8, mode="w+", shape=(num_rows, settings["row_bytes"]))
            self._rows = np.asarray(self._map).view(self._type)[:, : self._dim]

    def write(self, table: pa.Table, where: NDArray[np.int64], uri: str) -> None:
        """Put the codes and descriptors of some rows at `where`."""
        if self._codes is not None:
            self._codes[where] = _codes(table, self._code_bytes, uri)
        if self._rows is not None:
            floats = _descriptors(table, self._dim, uri)
            if self._type == "int8":
                self._rows[where], self._scales[where] = quantize(floats)
            else:
                self._rows[where] = floats.astype(self._type)

    def close(self, table: pa.Table) -> None:
        """Flush everything to disk, with the records of the rows."""
        if self._codes is not None:
            write_file(self._folder / CODE_FILE, self._codes.data)
        if self._map is not None:
            self._map.flush()
            if self._type == "int8":
                write_file(self._folder / SCALE_FILE, self._scales.data)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_file(self._folder / ROWS_FILE, sink.getvalue())


def _codes(table: pa.Table, code_bytes: int, uri: str) -> NDArray[np.uint8]:
    column = table["code"].combine_chunks()
    if column.null_count:
        raise MapError(
            f"{uri} has {column.null_count} photos without a code, its manifest promises one for each"
        )
    text = b"".join(column.to_pylist())
    if len(text) != len(column) * code_bytes:
        raise MapError(
            f"{uri} has codes of another length than the {code_bytes * 8} bits its manifest promises"
        )
    return np.frombuffer(text, dtype=np.uint8).reshape(len(column), code_bytes)


def _descriptors(table: pa.Table, descriptor_dim: int, uri: str) -> NDArray[np.float32]:
    """Unit-length rows (n, D) of a table; rounding to 16 bits had cost them up to 1e-4 of their length."""
    column = table["descriptor"].combine_chunks()
    if column.null_count:
        raise MapError(
            f"{uri} has {column.null_count} photos without a descriptor, its manifest promises one for each"
        )
    if column.type.list_size != descriptor_dim:
        raise MapError(
            f"{uri} has descriptors of {column.type.list_size} dimensions, its manifest says {descriptor_dim}"
        )
    floats = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, descriptor_dim)
    if not np.isfinite(floats).all():
        raise MapError(f"{uri} has descriptors that are not finite: embed its photos again")
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (floats / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _in_order(records: list[tuple[pa.Table, NDArray[np.int64]]]) -> pa.Table:
    """All row records in the order of the shard, as one record batch, with the cell."""
    table = pa.concat_tables([table for table, _ in records])
    positions = np.concatenate([where for _, where in records])
    table = table.take(pa.array(np.argsort(positions))).combine_chunks()
    return table.append_column("cell", pa.array(cells_of(table))).cast(rows_schema())


def write_file(path: Path, data: Any) -> None:
    """Write and sync one file."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def describe_shard(part: Mapping[str, Any], folder: Path, table: pa.Table) -> dict[str, Any]:
    """The shard.json of a shard whose files are written; `table` is its rows.arrow."""
    settings, model = part["settings"], part["settings"]["model"]
    names = [ROWS_FILE]
    if model["code_bits"]:
        names.append(CODE_FILE)
    if model["descriptor_dim"]:
        names.append(FILE_OF_TYPE[settings["descriptor_type"]])
        names += [SCALE_FILE] if settings["descriptor_type"] == "int8" else []
    shard = {
        "format_version": FORMAT_VERSION,
        "requires": [],
        "shard_id": part["name"],
        "key": part["key"],
        "rows": part["rows"],
        "code_bits": model["code_bits"],
        "descriptor_dim": model["descriptor_dim"],
        "descriptor_type": settings["descriptor_type"],
        "row_bytes": settings["row_bytes"],
        "bbox": _bbox(table),
        "cells": [table["cell"][0].as_py(), table["cell"][-1].as_py()],
        "inputs": part["inputs"],
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "xxh3_128": checksum(folder / name)}
            for name in sorted(names)
        },
    }
    validate_document(shard, "shard/v1")
    return shard


def _bbox(table: pa.Table) -> list[float] | None:
    """West, south, east, north of the photos that have a position."""
    lat, lon = (table[name].drop_null().to_numpy() for name in ("lat", "lon"))
    if not len(lat):
        return None
    return [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())]
