"""The manifests of a map: one immutable document per version, and CURRENT, the name of the version to open.

    <map>/CURRENT                  one line, such as v0002; replaced by rename, or by a conditional write of S3
    <map>/v0002/manifest.json      [index_manifest/v1], written when all its shards are there
    <map>/shards/<shard id>/       named by content and never rewritten, so versions share shards
    <map>/tombstones/              removed rows of shards, likewise

A reader refuses a format newer than its own, and any feature listed under `requires` that it does not know:
that is how a later placeray can add what changes answers (removed photos, for example) without an older one
giving wrong ones. Unknown keys elsewhere are additions that a reader may ignore.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from placeray import __version__, storage
from placeray.contracts import validate_document
from placeray.errors import ContractError, MapError, StorageError

FORMAT_VERSION = 1
TOMBSTONES = "tombstones"
KNOWN_FEATURES: frozenset[str] = frozenset({TOMBSTONES})
CURRENT = "CURRENT"
SEAL = "fingerprint"
_VERSION = re.compile(r"v\d{4,}")

Manifest = dict[str, Any]


def fingerprint(value: Any) -> str:
    """SHA-256 in hexadecimal of a JSON-able value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def versions(root: str) -> list[str]:
    """The published versions of a map, oldest first; empty when there is no map."""
    full = storage.resolve(root)
    if not storage.is_remote(full):
        names = _local_names(full)
    elif storage.exists(root):
        start = len(full) + 1  # other maps may lie in folders below this one
        found = [uri[start:] for uri in storage.list_files(root, f"/{storage.MANIFEST}")]
        names = [path.removesuffix(f"/{storage.MANIFEST}") for path in found]
    else:
        names = []
    return sorted((name for name in names if _VERSION.fullmatch(name)), key=lambda name: int(name[1:]))


def _local_names(full: str) -> list[str]:
    """The versions right below a local folder; shards are not looked at, others may be deleting them."""
    try:
        names = os.listdir(full)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{full}: {error.strerror}") from None
    return [
        name
        for name in names
        if _VERSION.fullmatch(name) and storage.is_file(storage.join(full, name, storage.MANIFEST))
    ]


def current_version(root: str) -> str:
    """The version that CURRENT names.

    Raises:
        MapError: there is no map, or CURRENT is damaged.
        StorageError: CURRENT cannot be read (rights, network, disk).
    """
    try:
        name = storage.read_text(storage.join(root, CURRENT)).strip()
    except StorageError:
        if storage.exists(storage.join(root, CURRENT)):
            raise
        raise MapError(
            f"{storage.resolve(root)} is no finished map, it has no file {CURRENT}: run jobs/index.py (again)"
        ) from None
    if not _VERSION.fullmatch(name):
        raise MapError(
            f"{storage.resolve(root)}/{CURRENT} says {name[:40]!r}, which is no version such as v0001"
        )
    return name


def read_map_manifest(root: str, version: str | None = None) -> Manifest:
    """The manifest of one version, of CURRENT when None.

    Raises:
        MapError: missing, damaged, of a newer format, or with a feature that this reader does not know.
    """
    name = version or current_version(root)
    where = storage.resolve(storage.join(root, name, storage.MANIFEST))
    try:
        manifest = storage.read_json(where)
    except StorageError as error:
        raise MapError(f"version {name} of the map {storage.resolve(root)} cannot be read: {error}") from None
    check_format(manifest, where)
    try:
        validate_document(manifest, "index_manifest/v1")
        for entry in manifest["shards"]:
            validate_document(entry["shard"], "shard/v1")
            check_format(entry["shard"], f"{where}, shard {entry['shard']['shard_id']},")
    except ContractError as error:
        raise MapError(f"{where} is damaged: {error}") from None
    if SEAL in manifest and manifest[SEAL] != _seal(manifest):  # maps of an earlier placeray have none
        raise MapError(f"{where} is damaged: it says something else than when it was written")
    _check_consistent(manifest, where)
    return dict(manifest)


def _seal(manifest: Mapping[str, Any]) -> str:
    """What a manifest says as one number: a flipped byte may leave a document that fits the schema."""
    return fingerprint({key: value for key, value in manifest.items() if key != SEAL})


def _check_consistent(manifest: Mapping[str, Any], where: str) -> None:
    """Raises MapError when a manifest contradicts itself: what tells damage of one without a fingerprint."""
    try:
        wrong = next(_contradictions(manifest), None)
    except (LookupError, TypeError):
        wrong = "its tombstones or its index lack something or have it of another type"
    if wrong is not None:
        raise MapError(f"{where} is damaged: {wrong}")


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What of a manifest, valid by its schema, does not fit the rest of it: a phrase each."""
    first_row, removed = 0, 0
    for entry in manifest["shards"]:
        shard = entry["shard"]
        name = shard["shard_id"]
        if entry["path"] != f"shards/{name}":
            yield f"the path of shard {name} is {entry['path']}"
        if entry["first_row"] != first_row:
            yield f"shard {name} begins at row {entry['first_row']} instead of {first_row}"
        for key in ("code_bits", "descriptor_dim"):
            if shard[key] != manifest["model"][key]:
                yield f"{key} of shard {name} is {shard[key]}, that of its model {manifest['model'][key]}"
        first_row += shard["rows"]
        if TOMBSTONES in entry:
            _, _, rows = (entry[TOMBSTONES][key] for key in ("path", "xxh3_128", "rows"))
            removed += rows
    counted = {"removed": 0, **manifest["counts"]}  # a map that was never updated does not count them
    for key, right in (("rows", first_row), ("shards", len(manifest["shards"])), ("removed", removed)):
        if counted[key] != right:
            yield f"it counts {counted[key]} {key}, its shards have {right}"
    if (TOMBSTONES in manifest["requires"]) != any(TOMBSTONES in entry for entry in manifest["shards"]):
        yield f"`requires` and its shards differ about {TOMBSTONES}"
    index = manifest["index"]
    if index["type"] == "ivf" and not (index["files"] and index["quantizer"] and index["nprobe"] > 0):
        yield "its inverted lists lack files, quantizer or nprobe"


def check_format(document: Any, where: str) -> None:
    """Raises MapError when a manifest or shard.json is newer than this code, or is none."""
    found = document.get("format_version") if isinstance(document, Mapping) else None
    if not isinstance(found, int):
        raise MapError(f"{where} is damaged: it does not say its format_version")
    if found > FORMAT_VERSION:
        raise MapError(
            f"{where} has format {found}, placeray {__version__} reads up to {FORMAT_VERSION}: "
            "install a newer placeray or build the map again"
        )
    required = document.get("requires", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise MapError(f"{where} is damaged: `requires` is no list of names")
    unknown = sorted(set(required) - KNOWN_FEATURES)
    if unknown:
        raise MapError(
            f"{where} needs {', '.join(unknown)}, which placeray {__version__} does not know: "
            "its answers would be wrong, install a newer placeray"
        )


def check_model(
    manifest: Manifest, where: str, model_id: str, code_bits: int, descriptor_dim: int, preprocessing: str
) -> None:
    """Raises MapError when queries described so cannot be compared with the map that is called `where`.

    The commonest silent failure of such systems: the answers of another model look like answers.
    """
    mine = manifest["model"]
    theirs = {
        "model_id": model_id,
        "code_bits": code_bits,
        "descriptor_dim": descriptor_dim,
        "preprocessing": preprocessing,
    }
    different = [
        f"{key} {theirs[key]!r} instead of {mine[key]!r}" for key in theirs if theirs[key] != mine[key]
    ]
    if different:
        named = mine.get("registered")
        made_by = f" of {named['name']} version {named['version']}" if named else ""
        raise MapError(
            f"the queries do not fit {where}{made_by}: {', '.join(different)}; "
            "describe them with the model of the map, or build the map with theirs"
        )


def compose(plan: Mapping[str, Any], shards: list[dict[str, Any]]) -> Manifest:
    """The manifest of a map, without its version, from its plan and all shard.json in order."""
    entries, first_row = [], 0
    for shard in shards:
        entries.append({"path": f"shards/{shard['shard_id']}", "first_row": first_row, "shard": shard})
        first_row += shard["rows"]
    boxes = [shard["bbox"] for shard in shards if shard["bbox"] is not None]
    return {
        "format_version": FORMAT_VERSION,
        "requires": [],
        "build_key": plan["build_key"],
        "builder": {"name": "placeray", "version": __version__},
        "model": plan["model"],
        "config": plan["config"],
        "source": plan["source"],
        "geo": {"order": "hilbert", "cell_level": plan["cell_level"], "bbox": _around(boxes)},
        "index": {"type": "flat"},
        "counts": {
            "rows": first_row,
            "shards": len(shards),
            "bytes": sum(file["bytes"] for shard in shards for file in shard["files"].values()),
        },
        "shards": entries,
    }


def find_build(root: str, build_key: str) -> str | None:
    """The newest version that was built from the same inputs with the same settings, or is an update of that; or None.

    The build itself may have been pruned: an update remembers its key.
    """
    for name in reversed(versions(root)):
        try:
            manifest = read_map_manifest(root, name)
        except MapError:
            continue  # a damaged old version is no reason not to publish a new one
        if build_key in (manifest["build_key"], manifest.get("update", {}).get("build_key")):
            return name
    return None


def publish(root: str, manifest: Manifest, *, parent: str | None = None) -> Manifest:
    """Write the next version of a map and make the newest one CURRENT; returns the manifest with its version.

    Args:
        parent: the version that `manifest` continues; the newest one when None.

    Raises:
        ContractError: the manifest does not fit index_manifest/v1.
        MapError: somebody else has published a version after `parent`.
    """
    if parent is None:
        parent = versions(root)[-1] if versions(root) else None
    name = f"v{int(parent[1:]) + 1 if parent else 1:04d}"
    complete = {
        **manifest,
        "version": name,
        "parent_version": parent,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    complete[SEAL] = _seal(complete)
    validate_document(complete, "index_manifest/v1")
    write_once(root, complete)
    advance(root)
    return complete


def write_once(root: str, manifest: Manifest) -> None:
    """Write the manifest of a version, unless there is one.

    Raises:
        MapError: there is another one.
    """
    name = manifest["version"]
    uri = storage.join(root, name, storage.MANIFEST)
    if not storage.create_bytes(uri, storage.json_bytes(manifest)):
        raise MapError(f"another update published {name} meanwhile: run it again")


def advance(root: str) -> None:
    """Make the newest version CURRENT, unless it is; of several writers at once none can move it back."""
    try:
        if current_version(root) == versions(root)[-1]:
            return
    except MapError:
        pass  # no CURRENT yet, or a damaged one

    def newest(found: bytes | None) -> bytes | None:
        name = f"{versions(root)[-1]}\n".encode()
        return None if found == name else name

    storage.update_bytes(storage.join(root, CURRENT), newest)


def _around(boxes: list[list[float]]) -> list[float] | None:
    """West, south, east, north around several such boxes."""
    if not boxes:
        return None
    west, south, east, north = zip(*boxes, strict=True)
    return [min(west), min(south), max(east), max(north)]
