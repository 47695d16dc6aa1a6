"""Two-stage search as slow and obvious as it can be written: the twin of what a map answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def as_stored(floats: Any) -> Any:
    """Descriptors after their way through 16 bits and back to unit length."""
    rounded = floats.astype(np.float16).astype(np.float64)
    return (rounded / np.sqrt((rounded**2).sum(axis=-1, keepdims=True))).astype(np.float32)


def quantize_slowly(row: np.ndarray) -> tuple[list[int], np.float32]:
    """One row in 8 bits: the largest magnitude is 127, the scale keeps the length of the row."""
    largest = max(abs(float(value)) for value in row)
    integers = [int(np.rint(np.float32(value) * np.float32(127 / np.float32(largest)))) for value in row]
    length = np.sqrt(sum(float(value) ** 2 for value in row))
    return integers, np.float32(length / np.sqrt(sum(value**2 for value in integers)))


def search_slowly(
    codes: Any,
    floats: Any,
    query_code: Any,
    query: Any,
    top_k: int,
    shortlist: int,
    allowed: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """(row, Hamming distance), best first: sort all `allowed` rows by (distance, row), cut, sort stably by similarity;
    without a `query` leave the last step out.
    """
    distance = [int(np.unpackbits(code ^ query_code).sum()) for code in codes]
    rows = range(len(codes)) if allowed is None else allowed
    candidates = sorted(rows, key=lambda row: (distance[row], row))[:shortlist]
    if query is None:
        return [(row, distance[row]) for row in candidates[:top_k]]
    wanted, wanted_scale = quantize_slowly(query)

    def similarity(row: int) -> np.float32:
        integers, scale = quantize_slowly(as_stored(floats[row]))
        product = sum(a * b for a, b in zip(integers, wanted, strict=True))
        return np.float32(product * (float(scale) * float(wanted_scale)))

    best = sorted(candidates, key=lambda row: -similarity(row))[:top_k]  # sorted() is stable
    return [(row, distance[row]) for row in best]
