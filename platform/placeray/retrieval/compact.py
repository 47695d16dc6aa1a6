"""Rebuild shards that hold many removed photos or lie across one another, from the shards themselves.

Codes, stored descriptors, their scales and the records are copied, never quantised again, so every answer keeps its
distance and similarity. The new shards are named by content: an interrupted compaction goes on.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from placeray import storage
from placeray.retrieval.build import (
    CODE_FILE,
    ROWS_FILE,
    SHARD_FILE,
    describe_shard,
    finished_shard,
    rows_schema,
    shard_folder,
    write_file,
)
from placeray.retrieval.float_store import FILE_OF_TYPE, SCALE_FILE
from placeray.retrieval.locks import alone, emptied
from placeray.retrieval.manifest import (
    FORMAT_VERSION,
    Manifest,
    advance,
    fingerprint,
    read_map_manifest,
)
from placeray.retrieval.mapped import MappedFile
from placeray.retrieval.plan import sorted_order
from placeray.retrieval.publishing import publish_whole
from placeray.retrieval.shard import Shard
from placeray.retrieval.tombstones import live_mask
from placeray.retrieval.update import origin_of, refresh_index, with_entries

Rows = NDArray[np.int64]
ROWS_AT_ONCE = 65_536


class _Old(NamedTuple):
    """A shard to rebuild and its rows that live on."""

    shard: Shard
    rows: Rows


def compact(root: str, *, max_dead: float = 0.2, max_overlap: float = 0.2) -> Manifest:
    """Publish a version whose shards are in order; the current one when there is nothing to do.

    Args:
        max_dead: share of removed photos from which on a shard is rebuilt.
        max_overlap: share of its photos in the cell range of another shard, likewise; both are rebuilt.

    Raises:
        MapError: the map is damaged, or another update was published meanwhile.
    """
    advance(root)
    parent = read_map_manifest(root)
    entries = parent["shards"]
    shards = [Shard(shard_folder(root, entry["shard"]["shard_id"]), entry["shard"]) for entry in entries]
    chosen = _chosen(entries, shards, max_dead, max_overlap)
    if not chosen:
        return parent
    old = []
    for number in chosen:
        live = live_mask(root, entries[number])
        num_rows = entries[number]["shard"]["rows"]
        old.append(_Old(shards[number], np.arange(num_rows) if live is None else np.flatnonzero(live)))
    new = [{"shard": shard} for shard in _rebuild(root, parent, old)]
    kept = [entry for number, entry in enumerate(entries) if number not in chosen]
    ordered = sorted([*kept, *new], key=lambda entry: (entry["shard"]["cells"], entry["shard"]["shard_id"]))
    manifest = with_entries(parent, ordered, [])
    manifest["build_key"] = fingerprint([parent["build_key"], "compact", max_dead, max_overlap])
    # The last update is still in: running it again does nothing.
    manifest["update"] = {**parent.get("update", {}), **origin_of(parent)}
    manifest = refresh_index(root, manifest)
    return publish_whole(root, manifest, parent=parent["version"])


def _chosen(
    entries: list[Mapping[str, Any]], shards: list[Shard], max_dead: float, max_overlap: float
) -> list[int]:
    chosen = set()
    for number, (entry, shard) in enumerate(zip(entries, shards, strict=True)):
        num_rows = entry["shard"]["rows"]
        if entry.get("tombstones", {"rows": 0})["rows"] > max_dead * num_rows:
            chosen.add(number)
        cells = shard.table["cell"].to_numpy()
        for other, its in enumerate(entries):
            first, last = (np.uint64(cell) for cell in its["shard"]["cells"])
            if other == number or first == last:  # one cell cannot be cut further
                continue
            inside = np.searchsorted(cells, last, "left") - np.searchsorted(cells, first, "right")
            if inside > max_overlap * num_rows:
                chosen |= {number, other}
    return sorted(chosen)


def _rebuild(root: str, parent: Manifest, old: list[_Old]) -> list[dict[str, Any]]:
    """The live rows of some shards, in order, as new shards."""
    sources = np.repeat(np.arange(len(old)), [len(part.rows) for part in old])
    rows = np.concatenate([part.rows for part in old])
    keys = pa.concat_tables(
        [part.shard.table.select(["cell", "image_id"]).take(pa.array(part.rows)) for part in old]
    )
    order = sorted_order(keys.combine_chunks())
    per_shard = parent["config"]["rows_per_shard"]
    shards = []
    for start in range(0, len(order), per_shard):
        here = order[start : start + per_shard]
        part = _part(parent, old, sources[here], rows[here], start // per_shard)
        with alone(root, part["name"]):
            shards.append(finished_shard(part, root) or _write(root, part, old, sources[here], rows[here]))
    return shards


def _part(parent: Manifest, old: list[_Old], sources: Rows, rows: Rows, number: int) -> dict[str, Any]:
    record = old[0].shard.record
    model = {
        key: parent["model"][key] for key in ("model_id", "preprocessing", "code_bits", "descriptor_dim")
    }
    counts = np.bincount(sources, minlength=len(old))
    part = {
        "rows": len(rows),
        "settings": {
            "format_version": FORMAT_VERSION,
            "model": model,
            "cell_level": parent["geo"]["cell_level"],
            "descriptor_type": record["descriptor_type"],
            "row_bytes": record["row_bytes"],
        },
        "inputs": [
            {"path": f"shards/{old[i].shard.record['shard_id']}", "sha256": old[i].shard.record["key"],
             "rows": int(counts[i])}
            for i in np.flatnonzero(counts)
        ],
    }  # fmt: skip
    # The bytes of the row numbers: millions of them are too slow to hash as text.
    taken = [
        [old[i].shard.record["key"], hashlib.sha256(rows[sources == i].astype("<u4").tobytes()).hexdigest()]
        for i in np.flatnonzero(counts)
    ]
    key = fingerprint([part, taken])
    return {**part, "key": key, "name": f"{number:05d}-{key[:16]}"}


def _write(root: str, part: dict[str, Any], old: list[_Old], sources: Rows, rows: Rows) -> dict[str, Any]:
    folder = emptied(shard_folder(root, part["name"]))
    settings = part["settings"]
    widths = {}
    if settings["model"]["code_bits"]:
        widths[CODE_FILE] = settings["model"]["code_bits"] // 8
    if settings["model"]["descriptor_dim"]:
        widths[FILE_OF_TYPE[settings["descriptor_type"]]] = settings["row_bytes"]
        if settings["descriptor_type"] == "int8":
            widths[SCALE_FILE] = 4
    for name, width in widths.items():
        files = [
            MappedFile(item.shard.folder / name, item.shard.record["rows"] * width).bytes.reshape(-1, width)
            for item in old
        ]
        _copy(folder / name, files, sources, rows, width)
    tables = [item.shard.table.take(pa.array(rows[sources == i])) for i, item in enumerate(old)]
    by_source = np.argsort(sources, kind="stable")
    table = (
        pa.concat_tables(tables).take(pa.array(np.argsort(by_source))).combine_chunks().cast(rows_schema())
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_file(folder / ROWS_FILE, sink.getvalue())
    shard = describe_shard(part, folder, table)
    storage.write_json(str(folder / SHARD_FILE), shard)
    return shard


def _copy(path: Any, files: list[NDArray[np.uint8]], sources: Rows, rows: Rows, width: int) -> None:
    """Write rows of several files to one, a piece at a time."""
    target = np.memmap(path, np.uint8, mode="w+", shape=(len(rows), width))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        piece = np.empty((len(rows[some]), width), dtype=np.uint8)
        for number in np.unique(sources[some]):
            mine = sources[some] == number
            piece[mine] = files[number][rows[some][mine]]
        target[some] = piece
    target.flush()
