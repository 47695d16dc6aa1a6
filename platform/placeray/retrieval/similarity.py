"""Dot products of one query with some descriptors, in the precision in which a map stores them.

The 8-bit product is an exact integer whichever library computes it, so equal descriptors get equal
similarities and an answer does not depend on the machine. With numkong it is about nine times as fast as with
numpy.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.quantize import quantize

Floats = NDArray[np.float32]

# 1024 products of at most 127 * 127 stay below 2**24, up to where float32 counts exactly.
_EXACT_RUN = 1024


class Query(NamedTuple):
    """A unit-length float descriptor, ready to be compared with rows of any stored precision."""

    floats: Floats  # (D,)
    integers: NDArray[np.int8]  # (D,), times `scale` the same descriptor
    scale: float

    def similarity(self, rows: NDArray[np.generic], scales: Floats | None) -> Floats:
        """Similarity (S,) float32 to `rows` (S, D), int8 with `scales` (S,), or float16 / float32 without."""
        if scales is None:
            # One dot product per row: a matrix product would round equal rows differently at its edges.
            return np.vecdot(rows.astype(np.float32, copy=False), self.floats)
        return self.scaled(integer_dots(rows, self.integers), scales)

    def scaled(self, products: NDArray[np.float64], scales: Floats) -> Floats:
        """Similarity (S,) of 8-bit rows with `scales` (S,) from their integer products (S,)."""
        similarity: Floats = (products * (scales.astype(np.float64) * self.scale)).astype(np.float32)
        return similarity


def prepare(descriptors: Floats) -> list[Query]:
    """The queries of descriptors (Q, D), quantised together: one by one it takes longer than the comparison."""
    integers, scales = quantize(descriptors)
    return [Query(*each) for each in zip(descriptors, integers, scales.astype(float).tolist(), strict=True)]


def integer_dots(rows: NDArray[np.generic], query: NDArray[np.int8]) -> NDArray[np.float64]:
    """Exact integer products (S,) of int8 rows (S, D) and an int8 query (D,)."""
    fast = _numkong_cdist()
    return fast(rows, query) if fast is not None else integer_dots_numpy(rows, query)


def integer_dots_numpy(rows: NDArray[np.generic], query: NDArray[np.int8]) -> NDArray[np.float64]:
    """The same without numkong: float32 products over runs that are short enough to be exact."""
    floats = query.astype(np.float32)
    total = np.zeros(len(rows), dtype=np.float64)
    for start in range(0, len(query), _EXACT_RUN):
        run = slice(start, start + _EXACT_RUN)
        total += rows[:, run].astype(np.float32) @ floats[run]
    return total


@functools.cache
def _numkong_cdist() -> Callable[[NDArray[np.generic], NDArray[np.int8]], NDArray[np.float64]] | None:
    try:
        import numkong
    except ImportError:
        return None

    def cdist(rows: NDArray[np.generic], query: NDArray[np.int8]) -> NDArray[np.float64]:
        if not len(rows):
            return np.zeros(0)
        return np.asarray(
            numkong.cdist(query[None, :], np.ascontiguousarray(rows), metric="dot"), np.float64
        )[0]

    return cdist
