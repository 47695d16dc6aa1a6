"""Hamming scans by compiled loops (`kernels`), for arrays as the rest of the room has them.

faiss scans the codes once per query. Here a block of codes meets every query of the batch while it is in the
first-level cache, so the codes are read from memory once per batch. Measured against faiss 1.15 in
`benchmarks/search.py`. Where numba is absent nothing of this is available.
"""

import functools
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.codes import Bytes, as_words
from placeray.retrieval.merge import NOBODY, Keys

Mask = NDArray[np.bool_]
# Codes (n, bits / 8) of neighbouring rows, contiguous; the global row of the first; which of them count (n,), None for
# all.
Piece = tuple[Bytes, int, Mask | None]
# The codes (n, bits / 8) of inverted lists, their rows (n,), where lists begin (L + 1,), see `lists.Lists`; the first
# global row.
ListRun = tuple[Bytes, NDArray[np.uint32], NDArray[np.uint32], int]
# Room to collect between two clean-ups: as large as the histogram of distances that each of them costs, and no larger,
# as after each of them fewer candidates come in.
_ROOM = 512
# Codes are assigned to centroids this many at a time: their nibbles take 8 MB at 512 bits.
_CODES_AT_ONCE = 65_536
# Queries that lists are chosen for at a time: a block of centroids is split once for all, and their distances to
# 100,000 lists take 3 MB.
_QUERIES_AT_ONCE = 16


def available() -> bool:
    """Whether numba can be imported here."""
    return _kernels() is not None


def loaded() -> bool:
    """Whether the compiled loops are in this process already: loading takes 0.7 s, which one query is not worth."""
    return "placeray.retrieval.kernels" in sys.modules


class Collector:
    """The best candidates of Q queries while pieces of a map are scanned one after another, by one thread."""

    def __init__(self, queries: Bytes, size: int) -> None:
        """`queries` (Q, bits / 8) uint8 with bits a multiple of 64; `size` candidates are kept of each."""
        compiled = _kernels()
        assert compiled is not None, "numba is not installed; ask available() first"
        self._kernels, self._size = compiled, size
        self._queries = np.ascontiguousarray(queries)
        self._words = as_words(self._queries)
        num_bits = queries.shape[1] * 8
        self._histogram = np.zeros(num_bits + 1, dtype=np.int64)
        self._state = (
            np.full((len(queries), size + max(size, _ROOM)), NOBODY, dtype=np.uint64),
            np.zeros(len(queries), dtype=np.int64),
            np.full(len(queries), num_bits + 1, dtype=np.uint64),
        )

    def scan(self, pieces: Sequence[Piece]) -> None:
        """All codes of pieces in row order, one after the other: for few queries."""
        self.scan_table(_addresses(pieces))

    def scan_table(self, pieces: NDArray[np.int64]) -> None:
        """The same for a table (P, 4) as `kernels.scan_rows` wants it."""
        self._kernels.scan_rows(pieces, self._words, self._size, self._state, self._histogram)

    def scan_blocks(self, pieces: Sequence[Piece]) -> None:
        """The same, block by block: for many queries."""
        block = self._kernels.scratch(self._queries.shape[1])
        for piece, row in zip(pieces, _addresses(pieces), strict=True):
            codes = piece[0]
            self._kernels.scan_blocks(
                codes, as_words(codes), self._words, self._split, self._kernels.NIBBLE_TABLE, block, self._size,
                row[None], self._state, self._histogram,
            )  # fmt: skip

    def scan_lists(self, runs: Sequence[ListRun], live: Mask | None, probes: NDArray[np.int32]) -> None:
        """Only the inverted lists `probes` (Q, P) of runs; `live` (N,) says which global rows count."""
        mask = 0 if live is None else live.ctypes.data
        table = np.array(
            [
                (
                    codes.ctypes.data,
                    order.ctypes.data,
                    offsets.ctypes.data,
                    first,
                    len(codes),
                    mask and mask + first,
                )
                for codes, order, offsets, first in runs
            ],
            dtype=np.int64,
        ).reshape(-1, 6)
        self._kernels.scan_lists(table, probes, self._words, self._size, self._state, self._histogram)

    def keys(self) -> Keys:
        """(Q, size) keys of `merge`, ascending, padded with NOBODY."""
        self._kernels.finish(self._state, self._size, self._histogram)
        return np.sort(self._state[0][:, : self._size], axis=1)

    @functools.cached_property
    def _split(self) -> NDArray[np.uint8]:
        split: NDArray[np.uint8] = self._kernels.nibbles(self._queries)
        return split


class ListChooser:
    """The centroids of a map, ready to be compared with queries again and again."""

    def __init__(self, centroids: Bytes) -> None:
        """`centroids` (L, bits / 8) uint8, L > 0."""
        compiled = _kernels()
        assert compiled is not None, "numba is not installed; ask available() first"
        self._kernels, self._num_lists = compiled, len(centroids)
        self._padded = _padded(centroids, compiled.BLOCK)

    def choose(self, queries: Bytes, count: int, num_first: int) -> NDArray[np.int32]:
        """The `count` lists (Q, count) nearest to each of queries (Q, bits / 8), the first ones among equals.

        The `num_first` nearest come first, then the others; both by number.
        """
        found = np.empty((len(queries), count), dtype=np.int32)
        block = self._kernels.scratch(queries.shape[1])
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = np.ascontiguousarray(queries[start : start + _QUERIES_AT_ONCE])
            distances = np.empty((len(some), len(self._padded)), dtype=np.uint16)
            self._kernels.choose_lists(
                self._padded, as_words(self._padded), as_words(some), self._kernels.nibbles(some),
                self._kernels.NIBBLE_TABLE, block, self._num_lists, min(num_first, count), distances,
                found[start : start + len(some)],
            )  # fmt: skip
        return found


def nearest(centroids: Bytes, codes: Bytes) -> NDArray[np.int32]:
    """Number (n,) of the nearest of centroids (C, bits / 8) for each of codes (n, bits / 8), the first among equals."""
    compiled = _kernels()
    assert compiled is not None, "numba is not installed; ask available() first"
    padded = _padded(centroids, compiled.BLOCK)
    found = np.zeros(len(codes), dtype=np.int32)
    block = compiled.scratch(codes.shape[1])
    for start in range(0, len(codes), _CODES_AT_ONCE):
        some = np.ascontiguousarray(codes[start : start + _CODES_AT_ONCE])
        compiled.nearest_of(
            padded, as_words(padded), as_words(some), compiled.nibbles(some), compiled.NIBBLE_TABLE, block,
            found[start : start + len(some)],
        )  # fmt: skip
    return found


def dots(
    rows: NDArray[np.int8], which: NDArray[np.int64], owners: NDArray[np.int64], queries: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Exact products (S,) of the rows `which` (S,) of (n, D or more) with the queries `owners` (S,) of (Q, D).

    The rows are not copied.
    """
    compiled = _kernels()
    assert compiled is not None, "numba is not installed; ask loaded() first"
    products = np.empty(len(which), dtype=np.float64)
    compiled.dots(rows, which, owners, queries.astype(np.int16), products)
    return products


def _padded(centroids: Bytes, block: int) -> Bytes:
    """Centroids with the last one repeated up to a multiple of `block`."""
    missing = -len(centroids) % block
    return np.ascontiguousarray(np.pad(centroids, ((0, missing), (0, 0)), mode="edge"))


def _addresses(pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """What `kernels.scan_rows` wants of pieces, which have to outlive it."""
    assert all(codes.flags.c_contiguous for codes, _, _ in pieces), (
        "only whole rows can be read where they lie"
    )
    rows = [
        (codes.ctypes.data, len(codes), first_row, 0 if allowed is None else allowed.ctypes.data)
        for codes, first_row, allowed in pieces
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from placeray.retrieval import kernels
    except ImportError:
        return None
    return kernels
