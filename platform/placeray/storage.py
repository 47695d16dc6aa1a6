"""Files on disk and in object stores behind one set of functions; the only file that knows fsspec.

A uri is a local path or `s3://bucket/key`. A relative local path counts from $PLACERAY_ROOT when that is set
(a Ray job runs in a copy of the checkout, its data does not), otherwise from the current folder; `~` and
`${VARIABLE}` are expanded. Object stores have no rename, so a data set is committed by writing its
`manifest.json` last: a folder without one is unfinished and is refused by every reader.
"""

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from placeray.errors import StorageError

MANIFEST = "manifest.json"


def resolve(uri: str | os.PathLike[str]) -> str:
    """The full uri: `~` and `${VARIABLE}` expanded, relative local paths made absolute.

    Raises:
        StorageError: the path names an environment variable that is not set.
    """
    text = os.path.expanduser(os.path.expandvars(str(uri)))
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset:
        raise StorageError(f"{uri} needs the environment variable {unset[1]}, which is not set")
    if is_remote(text):
        return text.rstrip("/")
    root = os.environ.get("PLACERAY_ROOT") or os.getcwd()
    return os.path.normpath(os.path.join(root, text))


def is_remote(uri: str) -> bool:
    """Whether a uri names an object store or server (`scheme://`) and no local file."""
    return "://" in uri and not uri.startswith("file://")


def join(base: str, *parts: str) -> str:
    """`base/part/...` with single slashes."""
    return "/".join([str(base).rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or folder (a key or prefix) is there."""
    filesystem, path = _open_filesystem(uri)
    return bool(filesystem.exists(path))


def list_files(root: str, suffix: str = "") -> list[str]:
    """All files below `root` whose name ends with `suffix`, full uris, sorted.

    Raises:
        StorageError: `root` is not there.
    """
    filesystem, path = _open_filesystem(root)
    if not filesystem.exists(path):
        raise StorageError(f"no such folder: {resolve(root)}")
    scheme = resolve(root).split("://")[0] + "://" if is_remote(resolve(root)) else ""
    # Some clients write an empty object `folder/` for a folder: that is no file.
    names = (name for name in filesystem.find(path) if not name.endswith("/"))
    return sorted(scheme + name for name in names if name.endswith(suffix))


def size(uri: str) -> int:
    """Bytes of one file."""
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        return int(filesystem.size(path))


def remove(uri: str) -> None:
    """Delete one file; nothing happens when it is not there."""
    filesystem, path = _open_filesystem(uri)
    if filesystem.exists(path):
        filesystem.rm_file(path)


def open_read(uri: str) -> BinaryIO:
    """A seekable binary reader. Raises StorageError when the file is not there."""
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        return cast(BinaryIO, filesystem.open(path, "rb"))


def read_bytes(uri: str) -> bytes:
    """The whole content of one file. Raises StorageError when it is not there."""
    with open_read(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file so that a reader sees all of it or nothing; parent folders are made.

    Locally a temporary file is synced and renamed; an object store publishes a put when it is complete.
    """
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.tmp-{uuid.uuid4().hex[:12]}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise


def read_text(uri: str) -> str:
    """The content of a UTF-8 file."""
    return read_bytes(uri).decode("utf-8")


def write_text(uri: str, text: str) -> None:
    """Write a UTF-8 file, all or nothing."""
    write_bytes(uri, text.encode("utf-8"))


def read_json(uri: str) -> Any:
    """The value in a JSON file. Raises StorageError when it is missing or no JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(
            f"{resolve(uri)} is not valid JSON ({error}); it is damaged, make it again"
        ) from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, all or nothing; the same value gives the same bytes."""
    write_text(uri, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One parquet file, or some of its columns."""
    with open_read(uri) as file:
        try:
            return pq.read_table(file, columns=columns, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"{resolve(uri)} cannot be read as parquet: {error}") from None


def write_table(uri: str, table: pa.Table, **parquet_options: Any) -> None:
    """Write one parquet file, all or nothing; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **parquet_options)
    write_bytes(uri, sink.getvalue().to_pybytes())


def local_path(uri: str) -> Path:
    """The path of a local file, for what must be memory-mapped.

    Raises:
        StorageError: the uri is in an object store.
    """
    full = resolve(uri)
    if is_remote(full):
        raise StorageError(f"{full} is in an object store; this step needs a local path, copy it first")
    return Path(full)


def commit_manifest(root: str, manifest: dict[str, Any]) -> None:
    """Publish a data set: its manifest is the last file written."""
    write_json(join(root, MANIFEST), manifest)


def has_manifest(root: str) -> bool:
    """Whether the step that writes this folder has finished."""
    return exists(join(root, MANIFEST))


def read_manifest(root: str) -> dict[str, Any]:
    """The manifest of a finished data set.

    Raises:
        StorageError: there is none, so the step that writes the folder has not finished.
    """
    if not has_manifest(root):
        raise StorageError(
            f"{resolve(root)} has no {MANIFEST}: the step that writes it has not run or not finished; run it again"
        )
    return cast(dict[str, Any], read_json(join(root, MANIFEST)))


def _open_filesystem(uri: str) -> tuple[Any, str]:
    full = resolve(uri)
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(full, **_OPTIONS.get(full.split("://")[0], {})))
    except ImportError as error:
        raise StorageError(f"{full} needs a package that is not installed: {error}") from None


# Listings are never cached: other processes write what this one is about to read.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"use_listings_cache": False}}


class _explained:
    """Turns what a file system raises into one sentence with the full uri."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise StorageError(f"no such file: {resolve(self.uri)}") from None
        if isinstance(error, OSError):
            reason = error.strerror or str(error) or type(error).__name__
            raise StorageError(f"{resolve(self.uri)}: {reason}") from None
