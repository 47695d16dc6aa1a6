"""Copies of a map: from the disk it was built on to an object store, from there to the machines that serve it.

A copy holds whole versions. Files that are there already, by name and size, are not copied again, so the next version
costs what is new in it and an interrupted copy goes on. The order is that of a build: the records of shards and lists
after their files, the manifest after these, CURRENT last; a reader of the copy never sees half a version.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from placeray import storage
from placeray.errors import MapError, StorageError
from placeray.retrieval.build import SHARD_FILE
from placeray.retrieval.lists import LISTS_FILE, QUANTIZER_FILE
from placeray.retrieval.manifest import (
    CURRENT,
    Manifest,
    advance,
    current_version,
    read_map_manifest,
    versions,
    write_once,
)
from placeray.retrieval.prune import prune

FILES_AT_ONCE = 8
# Of the copy of a machine: the newest ones, as readers may still be about to open the one before.
VERSIONS_KEPT = 2
_BYTES_AT_ONCE = 8 << 20


class File(NamedTuple):
    """A file of a map."""

    path: str  # relative to the map
    bytes: int
    xxh3_128: str  # in hexadecimal


class Copied(NamedTuple):
    """What a copy did."""

    version: str
    files: int  # of the version
    files_copied: int
    bytes_copied: int
    seconds: float

    def line(self) -> str:
        """The line a person checks."""
        there = self.files - self.files_copied
        return (
            f"copy_map: {self.version}: {self.files} files, {there} were there, copied {self.files_copied} with "
            f"{self.bytes_copied / 1e6:.1f} MB in {self.seconds:.1f} s"
        )


def copy_map(
    source: str,
    target: str,
    version: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy one version of a map, CURRENT when None, to another folder; either may be in an object store.

    Every byte that is copied is compared with the checksum that it was built with. CURRENT of the copy becomes the
    newest version that is there.

    Only versions that both have are compared: give each map a folder of its own.

    Args:
        progress: is told after each file how many bytes are copied, and of how many.

    Raises:
        MapError: no map; a file that is missing or has other bytes; `target` is another map.
        StorageError: a place that cannot be read or written.
    """
    began = time.monotonic()
    source, target = storage.resolve(source), storage.resolve(target)
    if source == target:
        raise MapError(f"{source} is the map itself: copy it to another folder")
    manifest = read_map_manifest(source, version)
    name = manifest["version"]
    if not _is_same_map(source, target):
        raise MapError(f"{target} has other versions of the same names than {source}: choose another folder")
    files, records = _contents(source, manifest)
    there = storage.file_sizes(target)
    missing = [file for file in files if there.get(file.path) != file.bytes]
    _copy_all(source, target, missing, progress or (lambda done, total: None))
    for path, content in records.items():
        if there.get(path) != len(content):
            storage.write_bytes(storage.join(target, path), content)
    if f"{name}/{storage.MANIFEST}" not in there:
        write_once(target, manifest)
    advance(target)
    spent = time.monotonic() - began
    return Copied(name, len(files), len(missing), sum(file.bytes for file in missing), spent)


def local_copy(uri: str, version: str | None = None) -> str:
    """The folder of this machine's copy of a map in an object store, with a version of it, CURRENT when None.

    It lies below $PLACERAY_CACHE, or ~/.cache/placeray. Processes that want the same map wait for one another. Older
    versions of the copy go when a new one comes, and all of it when the map was replaced by another.

    Raises:
        MapError, StorageError: as `copy_map`.
    """
    remote = storage.resolve(uri)
    name = version or current_version(remote)
    cache = storage.resolve(os.environ.get("PLACERAY_CACHE") or "~/.cache/placeray")
    key = hashlib.sha256(f"{os.environ.get('AWS_ENDPOINT_URL', '')} {remote}".encode()).hexdigest()[:16]
    folder = storage.local_path(storage.join(cache, "maps", f"{remote.rsplit('/', 1)[1]}-{key}"))
    manifest = storage.read_bytes(storage.join(remote, name, storage.MANIFEST))
    if _has(folder / name, manifest):
        return str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".copying.lock").open("w")
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror}; PLACERAY_CACHE says where copies of maps lie"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a killed process loses it
        if not _has(folder / name, manifest):
            _fetch(remote, folder, name)
    return str(folder)


def _fetch(remote: str, folder: Path, name: str) -> None:
    """Copy a version, in place of what is left of a map that was replaced; the newest ends all but VERSIONS_KEPT."""
    storage.remove_litter(str(folder))
    if not _is_same_map(remote, str(folder)):
        for old in folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        (folder / CURRENT).unlink(missing_ok=True)
    copy_map(remote, str(folder), name)
    if name == versions(str(folder))[-1]:
        prune(str(folder), VERSIONS_KEPT)


def _has(folder: Path, manifest: bytes) -> bool:
    """Whether the folder of a version has this manifest."""
    found = folder / storage.MANIFEST
    return found.is_file() and found.read_bytes() == manifest


def _is_same_map(source: str, target: str) -> bool:
    """Whether the versions that both have are the same ones."""
    for name in sorted(set(versions(source)) & set(versions(target))):
        one, two = (
            storage.read_bytes(storage.join(root, name, storage.MANIFEST)) for root in (source, target)
        )
        if one != two:
            return False
    return True


def _contents(root: str, manifest: Manifest) -> tuple[list[File], dict[str, bytes]]:
    """The files of a version, and the records that say of some of them that they are whole, by path."""
    files: list[File] = []
    records: dict[str, bytes] = {}
    for entry in manifest["shards"]:
        files += _listed(entry["path"], entry["shard"])
        records[storage.join(entry["path"], SHARD_FILE)] = storage.json_bytes(entry["shard"])
        if "tombstones" in entry:
            removed = entry["tombstones"]
            files.append(File(removed["path"], 4 * removed["rows"], removed["xxh3_128"]))
    lists = manifest["index"].get("files", [])
    for number, folder in enumerate(lists):
        path = storage.join(folder, LISTS_FILE if number else QUANTIZER_FILE)
        record = storage.read_json(storage.join(root, path))
        if not isinstance(record, dict) or "files" not in record:
            raise MapError(f"{storage.join(root, path)} is damaged: restore it, then copy again")
        files += _listed(folder, record)
        records[path] = storage.json_bytes(record)
    for path in [*(file.path for file in files), *records]:
        if path.startswith("/") or ".." in path.split("/"):
            raise MapError(
                f"a manifest of {root} names {path!r}, which is not inside the map: it is not copied"
            )
    return files, records


def _listed(folder: str, record: Mapping[str, Any]) -> Iterator[File]:
    for name, file in record["files"].items():
        yield File(storage.join(folder, name), file["bytes"], file["xxh3_128"])


def _copy_all(source: str, target: str, files: Sequence[File], progress: Callable[[int, int], None]) -> None:
    """Copy files, several at once; the first error ends it when the files under way are done."""
    done, total = 0, sum(file.bytes for file in files)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        waiting = {pool.submit(_copy, source, target, file): file for file in files}
        try:
            for one in as_completed(waiting):
                one.result()
                done += waiting[one].bytes
                progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(source: str, target: str, file: File) -> None:
    uri, digest = storage.join(source, file.path), xxhash.xxh3_128()
    with storage.open_read(uri) as reader, storage.FileWriter(storage.join(target, file.path)) as writer:
        while block := reader.read(_BYTES_AT_ONCE):
            digest.update(block)
            writer.write(block)
        if digest.hexdigest() != file.xxh3_128:
            raise MapError(f"{uri} has other bytes than when it was built: restore it, then copy again")
