"""The exact first stage on a GPU: faiss keeps all codes of a map in its memory and compares each with every query.

A GPU answers with the nearest codes, but of those at the distance where it cuts with any. So it is asked for more than
are wanted, and an answer counts only when everything wanted lies nearer than that cut. The rest, queries with very many
neighbours at one distance, are searched again by the caller's other means: what comes out is the same on any machine.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.codes import Bytes
from placeray.retrieval.first_stage import CodeRange
from placeray.retrieval.merge import NOBODY, Keys, best, distance_keys

# What faiss selects on a GPU at most.
MAX_ASKED = 2048
# A few queries occupy a small part of a GPU only, and a small map is searched before its codes are there. Not measured:
# nobody has run this on one yet.
MIN_QUERIES, MIN_ROWS = 64, 200_000


class NearestCodes(Protocol):
    """What is used of faiss.GpuIndexBinaryFlat."""

    ntotal: int

    def add(self, x: Bytes) -> None:
        """Append codes (n, bits / 8)."""
        ...

    def search(self, x: Bytes, k: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Distances and numbers (Q, k) of the nearest codes, nearest first."""
        ...


def available() -> bool:
    """Whether faiss was built for GPUs and sees one."""
    return hasattr(faiss, "GpuIndexBinaryFlat") and faiss.get_num_gpus() > 0


def index_on_gpu(code_bits: int) -> NearestCodes:
    """An empty index in the memory of the first GPU."""
    index: NearestCodes = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), code_bits)
    return index


class GpuCodes:
    """The codes of a map in the memory of a GPU, 64 bytes for one of 512 bits."""

    def __init__(
        self, ranges: Sequence[CodeRange], make_index: Callable[[int], NearestCodes] | None = None
    ) -> None:
        """Copy the codes of `ranges`, at least one, in row order; there may be gaps between them.

        Args:
            make_index: an empty index for codes of so many bits, `index_on_gpu` when None.

        Raises:
            RuntimeError: the memory of the GPU is too small, as faiss says it.
        """
        self._index = (make_index or index_on_gpu)(ranges[0].codes.shape[1] * 8)
        self._first_rows = np.array([piece.first_row for piece in ranges], dtype=np.int64)
        lengths = [len(piece.codes) for piece in ranges]
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self._allowed = _joined(ranges)
        for piece in ranges:
            if len(piece.codes):
                self._index.add(np.ascontiguousarray(piece.codes))
        self._lock = threading.Lock()  # an index on a GPU serves one thread at a time

    def search(self, queries: Bytes, size: int, otherwise: Callable[[Bytes], Keys]) -> Keys:
        """The same (Q, size) keys as `first_stage.search_codes`.

        Args:
            otherwise: searches those of the queries that the GPU cannot answer to the last tie.

        Raises:
            RuntimeError: the memory of the GPU is full, as faiss says it.
        """
        asked = min(2 * size + 128, MAX_ASKED, self._index.ntotal)
        if not asked or (asked <= size and asked < self._index.ntotal):
            return otherwise(queries)
        with self._lock:
            distances, numbers = self._index.search(np.ascontiguousarray(queries), asked)
        keys, whole = self._complete(distances, numbers, size)
        if not whole.all():
            keys[~whole] = otherwise(queries[~whole])
        return keys

    def _complete(
        self, distances: NDArray[np.int32], numbers: NDArray[np.int64], size: int
    ) -> tuple[Keys, NDArray[np.bool_]]:
        """Keys (Q, size) of what was found, and for which queries (Q,) nothing nearer or equal can be missing."""
        counts = numbers >= 0
        if self._allowed is not None:
            counts &= self._allowed[np.maximum(numbers, 0)]
        if distances.shape[1] == self._index.ntotal:
            whole = np.ones(len(distances), dtype=np.bool_)
        else:
            whole = (counts & (distances < distances[:, -1:])).sum(axis=1) >= size
        piece = np.searchsorted(self._starts, np.maximum(numbers, 0), side="right") - 1
        rows = numbers - self._starts[piece] + self._first_rows[piece]
        keys = np.where(counts, distance_keys(distances, rows), NOBODY)
        return best([keys], size), whole


def _joined(ranges: Sequence[CodeRange]) -> NDArray[np.bool_] | None:
    if all(piece.allowed is None for piece in ranges):
        return None
    return np.concatenate(
        [
            np.ones(len(piece.codes), dtype=np.bool_) if piece.allowed is None else piece.allowed
            for piece in ranges
        ]
    )
