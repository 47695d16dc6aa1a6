"""Dot products of one query with some descriptors, in the precision in which a map stores them.

The 8-bit product is an exact integer whichever library computes it, so equal descriptors get equal
similarities and an answer does not depend on the machine. With numkong it is about nine times as fast as with
numpy.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.quantize import quantize

Floats = NDArray[np.float32]

# 1024 products of at most 127 * 127 stay below 2**24, up to where float32 counts exactly.
_EXACT_RUN = 1024


class Query:
    """A unit-length float descriptor (D,), ready to be compared with rows of any stored precision."""

    def __init__(self, descriptor: Floats) -> None:
        self.floats = np.ascontiguousarray(descriptor, dtype=np.float32)
        integers, scales = quantize(self.floats[None, :])
        self.integers, self.scale = integers[0], np.float64(scales[0])

    def similarity(self, rows: NDArray[np.generic], scales: Floats | None) -> Floats:
        """Similarity (S,) float32 to `rows` (S, D), int8 with `scales` (S,), or float16 / float32 without."""
        if scales is None:
            # One dot product per row: a matrix product would round equal rows differently at its edges.
            return np.vecdot(rows.astype(np.float32, copy=False), self.floats)
        products = integer_dots(rows, self.integers)
        similarity: Floats = (products * (scales.astype(np.float64) * self.scale)).astype(np.float32)
        return similarity


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
