"""One writer at a time for what a map shares between its versions.

Shards and lists are named by their content, so two updates of the same photos want to write the same files, and one
may be published and open while the other is about to begin. A lock is a file in `<map>/.locks`; a process that is
killed loses it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from placeray import storage

_FOLDER = ".locks"
# Who publishes a version or deletes what no version names.
VERSIONS = "versions"


@contextmanager
def alone(root: str, name: str) -> Iterator[None]:
    """Inside, nobody else is who asked for the same name.

    Raises:
        StorageError: `root` is in an object store; a map is memory-mapped and lives on a local disk.
    """
    folder = storage.local_path(storage.join(root, _FOLDER))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name.replace("/", "-")
    while True:
        with path.open("w") as file:
            # Some file systems have no locks; there nothing but the callers' own look protects.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(file.fileno(), path):
                continue  # whoever had it before has taken it away
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def emptied(folder: Path) -> Path:
    """A folder without files. What was there is unlinked, not cut: whoever has it mapped keeps the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink()
    return folder
