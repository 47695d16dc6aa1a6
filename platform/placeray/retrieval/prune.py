"""Delete old versions of a map and the files that no remaining version needs."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval.locks import VERSIONS, alone
from placeray.retrieval.manifest import advance, read_map_manifest, versions
from placeray.retrieval.tombstones import FOLDER

# An update that is running has written shards which no manifest names yet.
MIN_AGE_S = 3600.0


class Pruned(NamedTuple):
    """What was deleted, as paths relative to the map."""

    versions: list[str]
    files: list[str]


def prune(root: str, keep_versions: int, *, force: bool = False) -> Pruned:
    """Keep the newest versions of a map and what they need; leftovers younger than an hour only go with `force`.

    Whoever has a version open keeps its memory maps: the bytes stay until they are closed. An update under way that
    counted on what goes is told to run again.

    Raises:
        MapError: keep_versions < 1, no map, or a kept manifest cannot be read; then nothing is deleted.
    """
    with alone(root, VERSIONS):
        return _prune(root, keep_versions, force)


def _prune(root: str, keep_versions: int, force: bool) -> Pruned:
    existing = versions(root)
    if keep_versions < 1 or not existing:
        raise MapError(
            f"keep_versions={keep_versions} of {len(existing)} versions: there must be one to keep"
        )
    advance(root)  # CURRENT is the newest and therefore kept
    needed: set[str] = set()
    for name in existing[-keep_versions:]:
        manifest = read_map_manifest(root, name)
        needed.update(entry["path"] for entry in manifest["shards"])
        needed.update(entry["tombstones"]["path"] for entry in manifest["shards"] if "tombstones" in entry)
        needed.update(manifest["index"].get("files", []))
    folder = storage.local_path(root)
    old = existing[:-keep_versions]
    freed: set[str] = set()
    for name in old:
        try:
            manifest = read_map_manifest(root, name)
        except MapError:
            continue  # damaged: what it used goes by age
        freed.update(entry["path"] for entry in manifest["shards"])
        freed.update(entry["tombstones"]["path"] for entry in manifest["shards"] if "tombstones" in entry)
        freed.update(manifest["index"].get("files", []))
    for name in old:
        _delete(folder / name)
    gone = []
    for path in _candidates(folder):
        relative = path.relative_to(folder).as_posix()
        if relative not in needed and (force or relative in freed or time.time() - _newest(path) > MIN_AGE_S):
            _delete(path)
            gone.append(relative)
    return Pruned(old, gone)


def _candidates(folder: Path) -> list[Path]:
    """What versions share, inner folders of inverted lists before the outer ones."""
    lists = [path for path in (folder / "ivf").glob("*") if path.is_dir()]
    inner = [path for outer in lists for path in outer.iterdir() if path.is_dir()]
    return sorted([*(folder / "shards").glob("*"), *(folder / FOLDER).glob("*"), *inner]) + sorted(lists)


def _newest(path: Path) -> float:
    """When a file, or the last file of a folder, was written; now, where one goes meanwhile: its writer renames it."""
    try:
        return max(item.stat().st_mtime for item in (path, *(path.rglob("*") if path.is_dir() else ())))
    except FileNotFoundError:
        return time.time()


def _delete(path: Path) -> None:
    """Delete a file or folder, also while a writer renames what is in it."""
    while path.is_dir():
        with suppress(FileNotFoundError):  # gone meanwhile, the rest may be there
            shutil.rmtree(path)
    path.unlink(missing_ok=True)
