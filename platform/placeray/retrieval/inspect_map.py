"""What a map consists of: sizes, versions, model, index, area. Reads manifests and one column, no codes."""

from collections import Counter
from typing import Any

import numpy as np

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval import lists
from placeray.retrieval.build import CODE_FILE, ROWS_FILE
from placeray.retrieval.float_store import SCALE_FILE
from placeray.retrieval.manifest import Manifest, read_map_manifest, versions
from placeray.retrieval.place_map import PlaceMap, default_shortlist

_KINDS = {CODE_FILE: "codes", SCALE_FILE: "scales", ROWS_FILE: "rows"}
KINDS = ("codes", "descriptors", "scales", "rows", "lists", "tombstones")


def facts_of(place_map: PlaceMap) -> dict[str, Any]:
    """A JSON-able account of an open map; bytes, rows, degrees."""
    manifest = place_map.manifest
    sizes = sizes_of(place_map.root, manifest)
    rows, total = len(place_map), sum(sizes.values())
    resident = resident_bytes(manifest, sizes)
    return {
        "map": storage.resolve(place_map.root),
        "version": place_map.version,
        "photos": rows,
        "live": place_map.num_live,
        "removed": rows - place_map.num_live,
        "bytes": {
            **sizes,
            "total": total,
            "all_versions": sum(storage.file_sizes(place_map.root).values()),
            "per_photo": total / rows if rows else None,
        },
        "memory": {
            "resident": resident,
            "resident_per_photo": resident / rows if rows else None,
            "mapped": total - resident,
        },
        "shards": _shards(manifest),
        "versions": [_version(place_map.root, name) for name in versions(place_map.root)],
        "model": dict(manifest["model"]),
        "default_shortlist": default_shortlist(rows),
        "descriptor_type": manifest["shards"][0]["shard"]["descriptor_type"] if manifest["shards"] else None,
        "index": index_facts(place_map.root, manifest),
        "area": {"bbox": manifest["geo"]["bbox"], "positions_known": _positions_known(place_map)},
    }


def sizes_of(root: str, manifest: Manifest) -> dict[str, int]:
    """Bytes of one version by kind of file; versions may share files."""
    sizes = Counter(dict.fromkeys(KINDS, 0))
    for entry in manifest["shards"]:
        for name, file in entry["shard"]["files"].items():
            sizes[_KINDS.get(name, "descriptors")] += file["bytes"]
        if "tombstones" in entry:
            sizes["tombstones"] += 4 * entry["tombstones"]["rows"]
    for path in manifest["index"].get("files", []):
        folder = storage.local_path(storage.join(root, path))
        sizes["lists"] += sum(item.stat().st_size for item in folder.glob("*") if item.is_file())
    return dict(sizes)


def resident_bytes(manifest: Manifest, sizes: dict[str, int]) -> int:
    """Bytes that a search at full speed wants in memory: what stage 1 scans, or all floats without codes.

    With lists those are the lists, which hold the codes once more; the plain codes are only read by exact and
    filtered searches. Stage 2 reads a few rows of the descriptors, so these may stay on disk.
    """
    if not manifest["model"]["code_bits"]:
        return sizes["descriptors"] + sizes["scales"]
    return sizes["lists"] if manifest["index"]["type"] == "ivf" else sizes["codes"]


def index_facts(root: str, manifest: Manifest) -> dict[str, Any]:
    """How stage 1 searches, and what the calibration of the lists found."""
    index = manifest["index"]
    if index["type"] != "ivf":
        return {"type": index["type"]}
    quantizer = lists.open_quantizer(storage.local_path(storage.join(root, index["quantizer"])))
    known = {name: index[name] for name in ("type", "nprobe", "calibration")}
    return {**known, "lists": len(quantizer.centroids)}


def verify(place_map: PlaceMap) -> int:
    """Read all files of the open version again; returns their bytes.

    Raises:
        MapError: names the first file whose bytes have changed. Tombstones were compared when the map was opened.
    """
    place_map.verify()
    for path in place_map.manifest["index"].get("files", []):
        lists.verify(storage.local_path(storage.join(place_map.root, path)))
    return sum(sizes_of(place_map.root, place_map.manifest).values())


def _shards(manifest: Manifest) -> dict[str, Any]:
    rows = [int(entry["shard"]["rows"]) for entry in manifest["shards"]]
    worn = [entry["tombstones"]["rows"] for entry in manifest["shards"] if "tombstones" in entry]
    return {
        "count": len(rows),
        "rows_min": min(rows, default=0),
        "rows_max": max(rows, default=0),
        "with_removed": len(worn),
    }


def _version(root: str, name: str) -> dict[str, Any]:
    """One line of the history; a damaged old version is told, not raised."""
    try:
        manifest = read_map_manifest(root, name)
    except MapError as error:
        return {"version": name, "error": str(error)}
    removed = sum(entry["tombstones"]["rows"] for entry in manifest["shards"] if "tombstones" in entry)
    return {
        "version": name,
        "created_at": manifest["created_at"],
        "rows": manifest["counts"]["rows"],
        "removed": removed,
        "parent": manifest["parent_version"],
    }


def _positions_known(place_map: PlaceMap) -> int:
    """Live photos with a position."""
    known = place_map.rows(["lat"])["lat"].is_valid().to_numpy()
    return int((known if place_map.live is None else known & place_map.live).sum(dtype=np.int64))
