"""Files read through memory maps: opened at once, resident only where touched, shared between processes."""

import contextlib
import errno
import mmap
import resource
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placeray.errors import MapError, PlacerayError, StorageError

# Not all that containers allow, up to a billion: programs started from here may go through every number there could be.
MANY_FILES = 1 << 17
ADVICE = "restore the file or build the map again"


def unreadable(path: Path, error: OSError, advice: str = ADVICE) -> PlacerayError:
    """What to raise for a file that cannot be opened: that the process has no room for more is no damage."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return StorageError(
            f"{path} cannot be opened ({error.strerror}): a map keeps three files of each shard open, "
            "raise `ulimit -n` or compact the map"
        )
    return MapError(f"{path} cannot be read ({error.strerror or error}): {advice}")


def allow_many_files() -> None:
    """Let this process open MANY_FILES if the system lets it: the usual 1024 are those of some 300 shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # refused: few shards open all the same
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class MappedFile:
    """One file as an array of bytes (n,) uint8; stays mapped as long as the array or a view of it lives."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        """Raises MapError naming the file when it is missing or not `expected_bytes` long."""
        check_size(path, expected_bytes)
        self._map: mmap.mmap | None = None
        self.bytes: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        if expected_bytes:  # an empty file cannot be mapped
            try:
                with path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise unreadable(path, error) from None
            self.bytes = np.frombuffer(self._map, dtype=np.uint8)

    def advise_random(self) -> None:
        """No read-ahead: without this, one row of 4 KB reads up to 8 MB (measured)."""
        self._advise("MADV_RANDOM", 0, len(self.bytes))

    def advise_needed(self, start: int, length: int) -> None:
        """Start reading these bytes in the background; `start` is a multiple of the page size."""
        self._advise("MADV_WILLNEED", start, length)

    def _advise(self, name: str, start: int, length: int) -> None:
        option = getattr(mmap, name, None)  # not every system has it; then reading is only slower
        if self._map is not None and option is not None:
            self._map.madvise(option, start, length)


def check_size(path: Path, expected_bytes: int) -> None:
    """Raises MapError when a file of a map is missing, truncated or too long."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):  # one step: between two the file may go with its version
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise MapError(f"{path} is missing: the map is damaged, {ADVICE}")
    actual = found.st_size
    if actual != expected_bytes:
        raise MapError(
            f"{path} has {actual} bytes, its shard.json says {expected_bytes}: the map is damaged, {ADVICE}"
        )
