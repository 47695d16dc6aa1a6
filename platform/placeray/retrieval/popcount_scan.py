"""Hamming top-S of a batch of queries over one block of codes, compiled by numba; absent numba, there is no
scan.

faiss scans the codes once per query. Here 64 codes at a time are turned word-major and meet every query of
the batch while they are in the first-level cache, so the compiler emits eight-wide popcounts and the codes
are read from memory once per batch. Measured against faiss 1.15 in `benchmarks/search.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from placeray.retrieval.codes import Bytes, as_words
from placeray.retrieval.merge import NOBODY, Keys

BLOCK_ROWS = 64


def available() -> bool:
    """Whether numba can be imported here."""
    return _compiled() is not None


def scan(codes: Bytes, queries: Bytes, size: int, first_row: int) -> Keys:
    """The `size` nearest codes of each query, ties by row; releases the interpreter lock while it runs.

    Args:
        codes:     (n, bits / 8) uint8, C-contiguous; a memory map is fine.
        queries:   (Q, bits / 8) uint8.
        first_row: global row of codes[0].

    Returns:
        (Q, size) keys of `merge`, ascending, padded with NOBODY.
    """
    compiled = _compiled()
    assert compiled is not None, "numba is not installed; ask available() first"
    # Room to collect between two clean-ups: large against the histogram of distances that each of them costs.
    room = size + max(size, 1024)
    candidates = np.full((len(queries), room), NOBODY, dtype=np.uint64)
    compiled(as_words(codes), as_words(queries), size, np.uint64(first_row), candidates)
    return np.sort(candidates[:, :size], axis=1)


@functools.cache
def _compiled() -> Callable[..., None] | None:
    try:
        import numba
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic
    except ImportError:
        return None

    @intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def popcount(typing_context: Any, word: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return builder.ctpop(arguments[0])

        return types.uint64(types.uint64), emit

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
    def keep_best(candidates: Any, count: int, size: int, histogram: Any) -> int:
        """Move the `size` best to the front, equal distances in row order; returns the distance to beat."""
        histogram[:] = 0
        for i in range(count):
            histogram[candidates[i] >> np.uint64(32)] += 1
        limit, below = 0, 0
        while below + histogram[limit] < size:
            below += histogram[limit]
            limit += 1
        ties, kept = size - below, 0
        for i in range(count):
            distance = np.int64(candidates[i] >> np.uint64(32))
            if distance < limit or (distance == limit and ties > 0):
                ties -= distance == limit
                candidates[kept] = candidates[i]
                kept += 1
        candidates[size:] = NOBODY
        return limit

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
    def compiled(codes: Any, queries: Any, size: int, first_row: Any, candidates: Any) -> None:
        num_words, room = codes.shape[1], candidates.shape[1]
        histogram = np.zeros(num_words * 64 + 1, dtype=np.int64)
        counts = np.zeros(len(queries), dtype=np.int64)
        to_beat = np.full(len(queries), num_words * 64 + 1, dtype=np.uint64)
        block = np.zeros((num_words, BLOCK_ROWS), dtype=np.uint64)
        distance = np.zeros(BLOCK_ROWS, dtype=np.uint64)
        for start in range(0, len(codes), BLOCK_ROWS):
            rows = min(BLOCK_ROWS, len(codes) - start)
            for j in range(rows):
                for w in range(num_words):
                    block[w, j] = codes[start + j, w]
            for q in range(len(queries)):
                distance[:] = np.uint64(0)
                for w in range(num_words):
                    word = queries[q, w]
                    for j in range(BLOCK_ROWS):
                        distance[j] += popcount(block[w, j] ^ word)
                # The difference borrows into the top bit where a distance is below the one to beat; this loop
                # becomes eight-wide instructions, a running minimum does not (it then costs half of the
                # scan).
                borrows, limit = np.uint64(0), to_beat[q]
                for j in range(rows):
                    borrows |= distance[j] - limit
                if borrows >> np.uint64(63) == np.uint64(0):
                    continue
                for j in range(rows):
                    if distance[j] < to_beat[q]:
                        candidates[q, counts[q]] = (distance[j] << np.uint64(32)) | (
                            first_row + np.uint64(start + j)
                        )
                        counts[q] += 1
                        if counts[q] == room:
                            to_beat[q] = keep_best(candidates[q], counts[q], size, histogram)
                            counts[q] = size
        for q in range(len(queries)):
            if counts[q] > size:
                keep_best(candidates[q], counts[q], size, histogram)

    result: Callable[..., None] = compiled
    return result
