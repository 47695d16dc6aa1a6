"""Files on disk and in object stores behind one set of functions; the only file that knows fsspec.

A uri is a local path, also as `file:///path`, or `s3://bucket/key`. A relative local path counts from $PLACERAY_ROOT
when that is set (a Ray job runs in a copy of the checkout, its data does not), otherwise from the current folder; `~`
and `${VARIABLE}` are expanded. Object stores have no rename, so a data set is committed by writing its `manifest.json`
last: a folder without one is unfinished and is refused by every reader.

Requests to an object store that fail for a passing reason (a lost connection, 500, 503) are repeated with growing
pauses, for about a quarter of a minute; AWS_MAX_ATTEMPTS and AWS_RETRY_MODE change that. Endpoint and keys come from
the standard variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY ...).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from placeray.errors import StorageError

MANIFEST = "manifest.json"
_LITTER = ".tmp-"  # in the names of files that are being written
_UPLOAD_BYTES = 16 << 20  # a larger object is uploaded in pieces of this size
_UPDATE_ATTEMPTS = 100  # of a file that others change too
# How S3 says that the condition of a write does not hold, or that two such writes met.
_REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")
# A larger local file is brought to disk in pieces of at least this size while it grows.
_SYNC_BYTES = 16 << 20


def resolve(uri: str | os.PathLike[str]) -> str:
    """The full uri: `~` and `${VARIABLE}` expanded, relative local paths made absolute.

    Raises:
        StorageError: the path names an environment variable that is not set.
    """
    text = str(uri)
    if text.startswith("/") and "$" not in text:  # nearly all: jobs name millions of photos in full
        return os.path.normpath(text)
    text = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset:
        raise StorageError(f"{uri} needs the environment variable {unset[1]}, which is not set")
    if is_remote(text):
        return text.rstrip("/")
    text = text.removeprefix("file://")
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
    full = resolve(uri)
    if not is_remote(full):
        return os.path.exists(full)
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        return bool(filesystem.exists(path))


def is_file(uri: str) -> bool:
    """Whether there is a file (an object) of exactly this name."""
    full = resolve(uri)
    if not is_remote(full):
        return os.path.isfile(full)
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        return bool(filesystem.isfile(path))


def list_files(root: str, suffix: str = "") -> list[str]:
    """All files below `root` whose name ends with `suffix`, full uris, sorted; a file is its own only one.

    Raises:
        StorageError: `root` is not there.
    """
    full = resolve(root)
    if is_file(full):
        return [full] if full.endswith(suffix) else []
    names = (name for folder in walk_files(root) for name in folder if name.endswith(suffix))
    return sorted(join(full, name) for name in names)


def walk_files(root: str) -> Iterator[list[str]]:
    """The files below `root`, relative to it, folder by folder and sorted within one; links to folders are followed.

    A local tree costs the memory of its largest folder; an object store lists a prefix at once.

    Raises:
        StorageError: `root` is not there.
    """
    full = resolve(root)
    if not exists(full):
        raise StorageError(f"no such folder: {full}")
    if not is_remote(full):
        with _explained(root):
            yield from _walk_local(full)
        return
    yield sorted(file_sizes(full))


def file_sizes(root: str) -> dict[str, int]:
    """Bytes of every file below `root` by its path relative to it; empty when there is no such folder."""
    full = resolve(root)
    if not is_remote(full):
        return dict(_local_sizes(full))
    filesystem, path = _open_filesystem(full)
    with _explained(full):
        found = filesystem.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    return {name[start:]: int(entry["size"]) for name, entry in found.items() if not name.endswith("/")}


def _local_sizes(full: str) -> Iterator[tuple[str, int]]:
    for folder in _walk_local(full) if os.path.isdir(full) else ():
        for name in folder:
            try:
                yield name, os.path.getsize(f"{full}/{name}")
            except FileNotFoundError:
                continue  # a writer renamed its temporary file just now


def _walk_local(full: str) -> Iterator[list[str]]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or error.filename == full:
            raise error  # a folder below may be deleted meanwhile

    for folder, below, names in os.walk(full, followlinks=True, onerror=fail):
        below[:] = sorted(name for name in below if not _leads_back(full, folder, name))
        prefix = os.path.relpath(folder, full) + "/" if folder != full else ""
        yield [prefix + name for name in sorted(names)]


def _leads_back(full: str, folder: str, name: str) -> bool:
    """Whether an entry of a folder is a link to a folder on the way down from `full`, or to one around such a folder:
    to follow it would never end.
    """
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    while True:  # each by its own name: another link on the way may have led elsewhere
        if os.path.commonpath([target, os.path.realpath(folder)]) == target:
            return True
        if folder == full:
            return False
        folder = os.path.dirname(folder)


def size(uri: str) -> int:
    """Bytes of one file."""
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        return int(filesystem.size(path))


def remove(uri: str) -> None:
    """Delete one file; nothing happens when it is not there."""
    filesystem, path = _open_filesystem(uri)
    with _explained(uri):
        if filesystem.exists(path):
            filesystem.rm_file(path)


def open_read(uri: str) -> BinaryIO:
    """A seekable binary reader. Raises StorageError when the file is not there."""
    full = resolve(uri)
    with _explained(uri):
        if not is_remote(full):
            return open(full, "rb")
        filesystem, path = _open_filesystem(uri)
        return cast(BinaryIO, filesystem.open(path, "rb"))


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The content of one file, or its bytes from `start` to before `end`. Raises StorageError when it is not there."""
    full = resolve(uri)
    with _explained(uri):
        if is_remote(full):
            filesystem, path = _open_filesystem(uri)
            return cast(bytes, filesystem.cat_file(path, start=start, end=end))
        with open(full, "rb", buffering=0) as file:
            if start:
                file.seek(start)
            return file.read(-1 if end is None else end - (start or 0))


def report_uri(output: str, part: Mapping[str, Any]) -> str:
    """Where a worker leaves the report of a part, last: a part with one is finished."""
    return join(output, "work", f"{part['name']}.report.json")


def read_files(uris: Sequence[str], at_once: int) -> Iterator[bytes | None]:
    """The content of every file, in order; None where there is no such file.

    An object store is asked by `at_once` threads. Local files are read by the calling thread, which tells the system
    in time what comes next: with threads, half of the processor time of a job went into passing the interpreter
    around. `4 * at_once` files are ahead at most, of local ones no more than 64.

    Raises:
        StorageError: a file is there but cannot be read (rights, network, disk).
    """
    paths = [resolve(uri) for uri in uris]
    if any(is_remote(path) for path in paths):
        yield from _fetched_files(paths, at_once)
        return
    ahead: deque[tuple[str, int | None]] = deque()
    try:
        for path in paths:
            ahead.append((path, _open_ahead(path)))
            if len(ahead) > min(4 * at_once, 64):
                yield _read_opened(*ahead.popleft())
        while ahead:
            yield _read_opened(*ahead.popleft())
    finally:
        for _, descriptor in ahead:
            if descriptor is not None:
                os.close(descriptor)


def _open_ahead(path: str) -> int | None:
    """Descriptor of a local file whose content the system begins to bring into memory; None when it is not there."""
    with _explained(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            if os.path.exists(path):
                raise
            return None
        if hasattr(os, "posix_fadvise"):  # not on macOS
            with contextlib.suppress(OSError):  # it is a hint
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        return descriptor


def _read_opened(path: str, descriptor: int | None) -> bytes | None:
    """The content of a file, which is closed."""
    if descriptor is None:
        return None
    try:
        with _explained(path), open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _fetched_files(uris: Sequence[str], at_once: int) -> Iterator[bytes | None]:
    ahead: deque[Future[bytes | None]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for uri in uris:
                ahead.append(pool.submit(_read_if_there, uri))
                if len(ahead) > 4 * at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _read_if_there(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except StorageError:
        if exists(uri):
            raise
        return None


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file so that a reader sees all of it or nothing; parent folders are made."""
    full = resolve(uri)
    if is_remote(full):
        filesystem, path = _open_filesystem(uri)
        with _explained(uri, write=True):
            filesystem.pipe_file(path, data)
        return
    with FileWriter(uri) as file:
        file.write(data)


def check_can_write(uri: str) -> None:
    """Try whether a file can be written at `uri`, before the work goes into what it is to hold; no trace is left.

    The rights of a folder are not asked, they do not tell everything. An object store is not tried: to take back what
    was tried needs a right of its own.

    Raises:
        StorageError: there is a folder of that name, or the folder it would be in cannot be written or made.
    """
    full = resolve(uri)
    if is_remote(full):
        return
    if os.path.isdir(full):
        raise StorageError(f"cannot write {full}: it is a folder; choose another output")
    there = os.path.dirname(os.path.abspath(full))
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    try:
        with tempfile.TemporaryDirectory(prefix=_LITTER, dir=there):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {full}: {there}: {error.strerror}") from None


def create_bytes(uri: str, data: bytes) -> bool:
    """Write one file unless there is one already, whoever else writes at the same moment; whether `data` is there now.

    Raises:
        StorageError: it cannot be written, or the object store knows no conditional writes.
    """
    full = resolve(uri)
    if is_remote(full):
        # A request that got through though its answer was lost is repeated, and then finds its own file.
        return _put_if(full, data, IfNoneMatch="*") or read_bytes(full) == data
    draft = f"{full}{_LITTER}{uuid.uuid4().hex[:12]}"
    write_bytes(draft, data)
    try:
        with _explained(uri, write=True):
            os.link(draft, full)
    except StorageError:
        if not os.path.exists(full):
            raise
        return read_bytes(full) == data
    finally:
        os.unlink(draft)
    return True


def update_bytes(uri: str, change: Callable[[bytes | None], bytes | None]) -> None:
    """Replace the content of one small file by what `change` makes of it, whoever else does so at the same moment.

    Args:
        change: from the content, None where there is no file, to the new one, None to leave it. It is called again when
            somebody else was faster.

    Raises:
        StorageError: as `create_bytes`.
    """
    full = resolve(uri)
    if not is_remote(full):
        with _explained(uri, write=True):
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(f"{full}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a killed process loses it
                changed = change(_read_if_there(full))
                if changed is not None:
                    write_bytes(full, changed)
        return
    for _ in range(_UPDATE_ATTEMPTS):
        # Before the content: if that is newer, the tag does not fit and it is tried again.
        tag = _entity_tag(full)
        changed = change(None if tag is None else _read_if_there(full))
        if changed is None or _put_if(full, changed, **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"})):
            return
        time.sleep(random.uniform(0, 0.1))
    raise StorageError(f"{full}: others changed it {_UPDATE_ATTEMPTS} times meanwhile; run it again")


def _entity_tag(full: str) -> str | None:
    """What an object store calls this content of an object; None when there is none.

    Without its quotation marks: S3 takes it either way, Ceph with them compares them too.
    """
    filesystem, path = _open_filesystem(full)
    with _explained(full):
        try:
            return str(filesystem.info(path)["ETag"]).strip('"')
        except FileNotFoundError:
            return None


def _put_if(full: str, data: bytes, **condition: str) -> bool:
    """Write an object if a condition holds at that moment; whether it did."""
    if not full.startswith("s3://"):
        raise StorageError(f"{full}: only s3:// and local paths can be written by several at once")
    filesystem, path = _open_filesystem(full)
    with _explained(full, write=True):
        try:
            filesystem.pipe_file(path, data, **condition)
        except OSError as error:
            if _code(error) in _REFUSED:
                return False
            raise
    return True


def _code(error: OSError) -> str:
    """The code of an answer of S3, such as NoSuchKey."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


class FileWriter:
    """A new file, written piece by piece, that a reader sees as a whole or not at all.

    Locally a temporary file is synced and renamed when the block ends; an object store publishes an upload when it
    is complete. When the block ends with an error nothing is left. `size` and `sha256` tell what was written. A large
    local file is brought to disk by a thread while it grows, so that its commit has little left to wait for.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.size = 0
        self.closed = False  # what a parquet writer asks of its sink
        self._discarded = False
        self._hash = hashlib.sha256()
        self._full = resolve(uri)
        self._temporary = f"{self._full}{_LITTER}{uuid.uuid4().hex[:12]}"
        self._syncing: Future[None] | None = None
        self._syncer: ThreadPoolExecutor | None = None
        self._sync_from = 0
        with _explained(uri, write=True):
            self._file = self._open()

    def _open(self) -> Any:
        if is_remote(self._full):
            filesystem, path = _open_filesystem(self.uri)
            return filesystem.open(path, "wb", block_size=_UPLOAD_BYTES)
        os.makedirs(os.path.dirname(self._full), exist_ok=True)
        return open(self._temporary, "wb", buffering=0)

    @property
    def sha256(self) -> str:
        """Hash of everything written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def write(self, data: Any) -> int:
        """Append bytes. What a buffer in front still has of a file that was discarded is dropped."""
        view = memoryview(data).cast("B")
        if self._discarded:
            return len(view)
        with _explained(self.uri, write=True):
            written = 0
            while written < len(view):  # an unbuffered file may take less than it is given
                written += self._file.write(view[written:])
            self.size += len(view)
            self._sync_behind()
        self._hash.update(view)
        return len(view)

    def _sync_behind(self) -> None:
        """Let the thread sync what is there, unless that is little or it is still at it."""
        if self.size - self._sync_from < _SYNC_BYTES or is_remote(self._full):
            return
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()  # the system tells of a lost write once, and only here
        self._syncer = self._syncer or ThreadPoolExecutor(1)
        self._syncing = self._syncer.submit(os.fsync, self._file.fileno())
        self._sync_from = self.size

    def _wait_for_syncer(self) -> None:
        """Raises OSError when what it synced was lost."""
        if self._syncer is not None and self._syncing is not None:
            self._syncer.shutdown()
            self._syncing.result()

    def flush(self) -> None:
        """Nothing is seen before the commit, so there is nothing to flush."""

    def close(self) -> None:
        """A buffer in front that goes away calls this; a file is published by `commit` alone."""

    def commit(self) -> None:
        """Publish the file."""
        try:
            with _explained(self.uri, write=True):
                self._publish()
        except BaseException:
            self.discard()
            raise
        self.closed = True

    def _publish(self) -> None:
        if is_remote(self._full):
            self._file.close()
            return
        self._wait_for_syncer()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._full)

    def discard(self) -> None:
        """Leave no trace."""
        self.closed = self._discarded = True
        if is_remote(self._full):
            self._file.closed = True  # closing would publish what is there
            with contextlib.suppress(
                Exception
            ):  # a store that is away cannot be told; nobody sees the upload
                self._file.discard()
            return
        with contextlib.suppress(OSError):  # whatever the disk says, the file goes
            self._wait_for_syncer()
        self._file.close()
        if os.path.exists(self._temporary):
            os.unlink(self._temporary)


def remove_litter(root: str) -> None:
    """Delete the temporary files that killed writers left below `root`."""
    full = resolve(root)
    if is_remote(full):
        return
    for folder in _walk_local(full):
        for name in folder:
            if re.search(re.escape(_LITTER) + "[0-9a-f]{12}$", name):
                # A writer that is still at work may have taken it away.
                with _explained(name, write=True), contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{full}/{name}")


def read_text(uri: str) -> str:
    """The content of a UTF-8 file. Raises StorageError when it is missing or in another encoding."""
    try:
        return read_bytes(uri).decode("utf-8")
    except UnicodeDecodeError:
        raise StorageError(f"{resolve(uri)} is not UTF-8 text") from None


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
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One parquet file, or some of its columns."""
    with open_read(uri) as file:
        try:
            return pq.read_table(file, columns=columns, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"{resolve(uri)} cannot be read as parquet: {error}") from None


def read_schema(uri: str) -> pa.Schema:
    """Names and types of the columns of one parquet file."""
    with open_read(uri) as file:
        try:
            return pq.read_schema(file)
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
        raise StorageError(
            f"{full} is in an object store and this step needs a local path; maps are copied from "
            "and to object stores by jobs/copy_map.py"
        )
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
        return cast(tuple[Any, str], fsspec.core.url_to_fs(full, **_options(full.split("://")[0])))
    except ImportError as error:
        raise StorageError(f"{full} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise StorageError(f"{full}: {error}") from None


def _options(scheme: str) -> dict[str, Any]:
    """Listings are never cached: other processes write what this one is about to read."""
    if scheme != "s3":
        return {}
    if os.environ.keys() & {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"}:
        return {"use_listings_cache": False}
    retries = {"max_attempts": 6, "mode": "standard"}
    return {"use_listings_cache": False, "config_kwargs": {"retries": retries}}


class _explained:
    """Turns what a file system raises into one sentence with the full uri."""

    def __init__(self, uri: str, write: bool = False) -> None:
        self.uri = uri
        self.write = write

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StorageError):
            return
        full = resolve(self.uri)
        # The packages behind s3:// are not part of the base install, so their errors are known by where they are from.
        from_client = type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp")
        if is_remote(full) and (from_client or isinstance(error, OSError)):
            raise StorageError(self._about_object_store(full, error)) from None
        if isinstance(error, FileNotFoundError) and not self.write:
            raise StorageError(f"no such file: {full}") from None
        if isinstance(error, OSError):
            raise StorageError(f"{full}: {error.strerror or str(error) or type(error).__name__}") from None

    def _about_object_store(self, full: str, error: BaseException) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        name = type(error).__name__
        if isinstance(error, FileNotFoundError):
            return f"{full}: there is no such bucket" if self.write else f"no such file: {full}"
        if isinstance(error, PermissionError) or "Credential" in name:
            return (
                f"{full}: the object store refuses access ({reason}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and their rights on the bucket"
            )
        if "Connect" in name or "Timeout" in name:
            return (
                f"{full}: the object store does not answer ({reason}); check AWS_ENDPOINT_URL and the network"
            )
        return f"{full}: the object store failed ({reason})"
