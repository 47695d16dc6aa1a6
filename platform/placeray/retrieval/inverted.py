"""Stage 1 over inverted lists: only the lists whose centroids are nearest to a query are scanned.

The candidates of a query depend on its lists alone, never on runs, threads or the other queries of a batch. With
numba the lists are scanned in place; without it they are gathered for faiss, with the same candidates.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from placeray.errors import MapError
from placeray.retrieval import popcount_scan
from placeray.retrieval.codes import Bytes
from placeray.retrieval.first_stage import CodeRange, search_codes
from placeray.retrieval.lists import open_lists, open_quantizer
from placeray.retrieval.merge import NOBODY, Keys, best, distance_keys, rows_of

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")

# The nearest lists set the distance to beat; the others are read in the order in which they lie in memory.
_NEAREST_FIRST = 32
# Queries of one call of the compiled scan: their candidates stay in the second-level cache.
_QUERIES_AT_ONCE = 64


def _each(
    search: Callable[[_Part], _Found], parts: Sequence[_Part], pool: ThreadPoolExecutor
) -> list[_Found]:
    """`search` of every part, side by side; a single one here, as handing it over takes as long as comparing codes."""
    return [search(parts[0])] if len(parts) == 1 else list(pool.map(search, parts))


class InvertedLists:
    """The quantizer of a map and the lists of all its runs."""

    def __init__(
        self, quantizer: Path, runs: Sequence[tuple[Path, int]], live: NDArray[np.bool_] | None = None
    ) -> None:
        """Map all files. Raises MapError on damage.

        Args:
            runs: folder of each run of shards and the global row at which it begins.
            live: rows (N,) of the map that may be returned, None for all.
        """
        self.quantizer = open_quantizer(quantizer)
        self._runs: list[popcount_scan.ListRun] = [(*open_lists(folder), first) for folder, first in runs]
        width = self.quantizer.centroids.shape[1]
        if any(len(run[2]) != len(self) + 1 or run[0].shape[1] != width for run in self._runs):
            raise MapError(
                f"the lists beside {quantizer} are not of this quantizer: remove its folder and index again"
            )
        self._live = live

    def __len__(self) -> int:
        return len(self.quantizer.centroids)

    def ranked(
        self, queries: Bytes, count: int, pool: ThreadPoolExecutor, num_threads: int
    ) -> NDArray[np.int32]:
        """The `count` lists (Q, count) nearest to each of queries (Q, bits / 8), equal ones by number."""
        centroids = [CodeRange(self.quantizer.centroids, 0)]
        keys = search_codes(centroids, queries, count, pool=pool, num_threads=num_threads)
        return rows_of(keys).astype(np.int32)

    def search(
        self,
        queries: Bytes,
        size: int,
        nprobe: int,
        *,
        pool: ThreadPoolExecutor,
        num_threads: int,
    ) -> Keys:
        """The `size` nearest rows of each query among those in its `nprobe` nearest lists.

        Args:
            queries: (Q, bits / 8) uint8.

        Returns:
            (Q, size) keys of `merge`, ascending, padded with NOBODY.
        """
        if not len(queries):
            return np.full((0, size), NOBODY, dtype=np.uint64)
        count = min(nprobe, len(self))
        choose, scan = self._probes_by_faiss, self._scan_by_faiss
        if popcount_scan.available():
            choose, scan = self._probes, self._scan
        if len(queries) < 2 * num_threads:  # too few to give every thread some: share out their lists
            probes = choose(queries, count)
            parts = [part for part in np.array_split(probes, num_threads, axis=1) if part.shape[1]]
            return best(_each(lambda part: scan(queries, part, size), parts, pool), size)
        starts = range(0, len(queries), min(_QUERIES_AT_ONCE, -(-len(queries) // num_threads)))
        some = [queries[start : start + starts.step] for start in starts]
        return np.concatenate(_each(lambda part: scan(part, choose(part, count), size), some, pool))

    @functools.cached_property
    def _chooser(self) -> popcount_scan.ListChooser:
        return popcount_scan.ListChooser(self.quantizer.centroids)

    def _probes(self, queries: Bytes, count: int) -> NDArray[np.int32]:
        return self._chooser.choose(queries, count, _NEAREST_FIRST)

    def _probes_by_faiss(self, queries: Bytes, count: int) -> NDArray[np.int32]:
        """faiss keeps the first among equals; the order of the lists is of no use to it."""
        return faiss.knn_hamming(queries, self.quantizer.centroids, count)[1].astype(np.int32)

    def _scan(self, queries: Bytes, probes: NDArray[np.int32], size: int) -> Keys:
        collector = popcount_scan.Collector(queries, size)
        collector.scan_lists(self._runs, self._live, np.ascontiguousarray(probes))
        return collector.keys()

    def _scan_by_faiss(self, queries: Bytes, probes: NDArray[np.int32], size: int) -> Keys:
        return np.concatenate([self._one_by_faiss(queries[q], lists, size) for q, lists in enumerate(probes)])

    def _one_by_faiss(self, query: Bytes, probes: NDArray[np.int32], size: int) -> Keys:
        found = [np.full((1, size), NOBODY, dtype=np.uint64)]
        for codes, order, offsets, first_row in self._runs:
            places = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in probes])
            # In row order, because among equal distances faiss keeps the first.
            places = places[np.argsort(order[places], kind="stable")]
            rows = order[places].astype(np.int64) + first_row
            if self._live is not None:
                places, rows = places[self._live[rows]], rows[self._live[rows]]
            if len(places):
                distances, local = faiss.knn_hamming(query[None], codes[places], min(size, len(places)))
                found.append(distance_keys(distances, rows[local]))
        return best(found, size)
