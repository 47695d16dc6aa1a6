"""Publish a version of which every file is there."""

from pathlib import Path

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval.build import is_whole, shard_folder
from placeray.retrieval.lists import is_finished
from placeray.retrieval.locks import VERSIONS, alone
from placeray.retrieval.manifest import Manifest, publish


def publish_whole(root: str, manifest: Manifest, *, parent: str | None = None) -> Manifest:
    """`manifest.publish`, unless something was pruned since it was found there; nothing is pruned meanwhile.

    Raises:
        MapError: a shard, tombstones or inverted lists are missing; or as `publish`.
    """
    with alone(root, VERSIONS):
        missing = missing_files(root, manifest)
        if missing:
            raise MapError(
                f"{storage.join(root, missing[0])} is missing or not whole, it may have been pruned meanwhile: "
                "run it again, what is there is kept"
            )
        return publish(root, manifest, parent=parent)


def missing_files(root: str, manifest: Manifest) -> list[str]:
    """Shards, tombstones and inverted lists of a manifest that are not there as a whole, relative to the map."""
    shards = [
        entry["path"]
        for entry in manifest["shards"]
        if not is_whole(shard_folder(root, entry["shard"]["shard_id"]), entry["shard"])
    ]
    removed = [entry["tombstones"] for entry in manifest["shards"] if "tombstones" in entry]
    tombstones = [
        record["path"]
        for record in removed
        if _size(storage.local_path(storage.join(root, record["path"]))) != 4 * record["rows"]
    ]
    lists = [
        path
        for path in manifest["index"].get("files", [])
        if not is_finished(storage.local_path(storage.join(root, path)))
    ]
    return shards + tombstones + lists


def _size(path: Path) -> int | None:
    """Bytes of a file, None when it is not there."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
