"""The float descriptors of a map on disk: raw rows, memory-mapped, fetched a shortlist at a time.

A row is int8 with its scale in a second file (default), float16 or float32. Rows are padded so that the usual
sizes never straddle a page: cold, 100 rows of a shortlist cost 100 reads of the disk and no more.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval import popcount_scan
from placeray.retrieval.mapped import MappedFile
from placeray.retrieval.row_ranges import RowRanges

# A shard, where its rows stand in what was asked for, and which of its rows they are.
_Places = tuple[int, NDArray[np.int64], NDArray[np.int64]]
DescriptorType = Literal["int8", "float16", "float32"]

FILE_OF_TYPE: dict[str, str] = {"int8": "desc.i8", "float16": "desc.f16", "float32": "desc.f32"}
SCALE_FILE = "desc_scale.f32"
PAGE = 4096


def padded_row_bytes(descriptor_dim: int, dtype: DescriptorType) -> int:
    """Bytes from one row to the next: padded to fit pages where that costs at most a quarter."""
    row = descriptor_dim * np.dtype(dtype).itemsize
    # A row of up to a page takes a power of two of bytes, a longer one whole pages.
    fitting = 1 << (row - 1).bit_length() if row <= PAGE else -(-row // PAGE) * PAGE
    return fitting if fitting - row <= row // 4 else -(-row // 64) * 64


class FloatStore:
    """The descriptors of one shard."""

    def __init__(
        self, folder: Path, *, num_rows: int, descriptor_dim: int, dtype: DescriptorType, row_bytes: int
    ) -> None:
        """Map the files of a shard. Raises MapError when one is missing or has the wrong size."""
        self._file = MappedFile(folder / FILE_OF_TYPE[dtype], num_rows * row_bytes)
        self._file.advise_random()
        values = self._file.bytes.reshape(num_rows, row_bytes).view(dtype)
        self.padded: NDArray[np.generic] = values  # (n, row_bytes / item size)
        self.rows: NDArray[np.generic] = values[:, :descriptor_dim]  # (n, D) of the stored type
        self.scales: NDArray[np.float32] | None = None  # (n,), int8 only
        if dtype == "int8":
            self.scales = MappedFile(folder / SCALE_FILE, num_rows * 4).bytes.view(np.float32)
        self._row_bytes = row_bytes

    def advise_needed(self, rows: NDArray[np.int64]) -> None:
        """Start reading rows (n,) of this shard in the background."""
        starts = rows * self._row_bytes
        pages = starts // mmap.PAGESIZE * mmap.PAGESIZE
        for page, end in zip(pages.tolist(), (starts + self._row_bytes).tolist(), strict=True):
            self._file.advise_needed(page, end - page)


class FloatStores:
    """The descriptors of all shards, addressed by global row."""

    def __init__(self, stores: Sequence[FloatStore], first_rows: Sequence[int], descriptor_dim: int) -> None:
        self.stores = list(stores)
        self._ranges = RowRanges(first_rows, [len(store.rows) for store in self.stores])
        self.num_rows = self._ranges.end  # shards that were left out are counted where others follow
        self.descriptor_dim = descriptor_dim
        self._cold = _ColdReads()

    def gather(
        self, rows: Sequence[NDArray[np.int64]]
    ) -> list[tuple[NDArray[np.generic], NDArray[np.float32] | None]]:
        """Copies of several shortlists of global rows (S,), each as (S, D) of the stored type and scales (S,)
        or None.

        While the disk has to be read, all rows are announced first, so that it works on them side by side
        (measured: 100 times as fast as one after the other with read-ahead). On data in memory that would
        double the time, so it stops as soon as a gather reads nothing.

        Raises:
            MapError: a row is in a shard that was left out.
        """
        self._cold.begin()
        places = [self._places(shortlist) for shortlist in rows]
        for shards in places:
            self._announce(shards)
        copies = [self._copy(shards, len(shortlist)) for shards, shortlist in zip(places, rows, strict=True)]
        self._cold.end()
        return copies

    @property
    def can_multiply(self) -> bool:
        """Whether `products` is to be had: 8-bit descriptors and compiled loops at hand."""
        return popcount_scan.loaded() and all(store.scales is not None for store in self.stores)

    def products(
        self, rows: Sequence[NDArray[np.int64]], queries: NDArray[np.int8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Integer products (sum S,) of each of queries (Q, D) with its shortlist of global rows (S,), and the scales
        of these rows (sum S,), all shortlists one after the other.

        The same as multiplying what `gather` copies, in half the time: rows are read where they lie.
        """
        self._cold.begin()
        together = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.int64)
        owners = np.repeat(np.arange(len(rows)), [len(shortlist) for shortlist in rows])
        places = self._places(together)
        self._announce(places)
        products, scales = np.empty(len(together)), np.empty(len(together), dtype=np.float32)
        for number, where, local in places:
            store = self.stores[number]
            products[where] = popcount_scan.dots(store.padded, local, owners[where], queries)  # type: ignore[arg-type]
            scales[where] = store.scales[local]  # type: ignore[index]
        self._cold.end()
        return products, scales

    def _announce(self, places: list[_Places]) -> None:
        """Tell the system what is about to be read, while the disk has to be."""
        if self._cold.seen:
            for shard, _, local in places:
                self.stores[shard].advise_needed(local)

    def gather_run(self, start: int, count: int) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
        """Rows start ... start + count of the map: (count, D) as stored, scales (count,) or None.

        Rows of a shard that was left out are zero; at least one row must be there.
        """
        rows = np.arange(start, start + count)
        if not self._ranges.has_gaps:
            return self._copy(self._places(rows), count)
        there = np.flatnonzero(self._ranges.held(rows))
        places = [(shard, there[where], local) for shard, where, local in self._places(rows[there])]
        return self._copy(places, count)

    def _places(self, rows: NDArray[np.int64]) -> list[_Places]:
        """(shard, positions in `rows`, rows inside the shard) for every shard that is touched."""
        if len(self.stores) == 1 and not self._ranges.has_gaps:
            return [(0, np.arange(len(rows)), rows)]
        shard_of, inside = self._ranges.locate(rows)
        touched = np.unique(shard_of)
        positions = [np.flatnonzero(shard_of == shard) for shard in touched]
        return [(int(shard), where, inside[where]) for shard, where in zip(touched, positions, strict=True)]

    def _copy(
        self, places: list[_Places], count: int
    ) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
        if not places:
            return np.zeros((0, self.descriptor_dim), dtype=np.float32), None
        if len(places) == 1 and len(places[0][2]) == count:
            store = self.stores[places[0][0]]
            local = places[0][2]
            return store.rows.take(local, axis=0), None if store.scales is None else store.scales[local]
        first = self.stores[0]
        rows = np.zeros((count, self.descriptor_dim), dtype=first.rows.dtype)
        scales = None if first.scales is None else np.zeros(count, dtype=np.float32)
        for shard, where, local in places:
            store = self.stores[shard]
            rows[where] = store.rows[local]
            if scales is not None and store.scales is not None:
                scales[where] = store.scales[local]
        return rows, scales


class _ColdReads:
    """Whether the last gather had to read from disk, as the system counts it for this thread."""

    def __init__(self) -> None:
        self.seen = True
        self._before = 0

    def begin(self) -> None:
        self._before = _disk_reads()

    def end(self) -> None:
        reads = _disk_reads()
        self.seen = reads < 0 or reads > self._before


def _disk_reads() -> int:
    """Blocks read and pages faulted in from disk by this thread so far; -1 where the system does not say."""
    try:
        import resource

        usage = resource.getrusage(resource.RUSAGE_THREAD)
    except (ImportError, AttributeError):
        return -1
    return usage.ru_inblock + usage.ru_majflt
