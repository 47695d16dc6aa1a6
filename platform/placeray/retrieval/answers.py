"""What a search returns, and thinning it to one photo of each panorama."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class SearchResult(NamedTuple):
    """The answers to Q queries, best first; `rows` number the photos of the map from 0."""

    rows: NDArray[np.int64]  # (Q, K), -1 where the map has no further photo
    hamming: NDArray[np.int32]  # (Q, K) bits that differ, -1 for nobody and where no code was compared
    similarity: Floats  # (Q, K) cosine of the float descriptors, NaN for nobody and where none was compared
    # Milliseconds of the whole batch: first_stage, gather and rerank, or exhaustive; and total.
    timings: dict[str, float]


def first_of_each(
    result: SearchResult, names_of: Callable[[NDArray[np.int64]], pa.ChunkedArray], top_k: int
) -> SearchResult:
    """The `top_k` best answers of a result (Q, S) that are the first of their name; a null name is nobody else's.

    Args:
        names_of: the names (n,) of rows (n,), such as the panorama a photo was cut from.
    """
    rows = np.full((len(result.rows), top_k), -1, dtype=np.int64)
    distances = np.full(rows.shape, -1, dtype=np.int32)
    similarity = np.full(rows.shape, np.nan, dtype=np.float32)
    for q, found in enumerate(result.rows):
        found = found[found >= 0]
        kept = _first_places(names_of(found).to_pylist())[:top_k]
        rows[q, : len(kept)] = found[kept]
        distances[q, : len(kept)] = result.hamming[q, kept]
        similarity[q, : len(kept)] = result.similarity[q, kept]
    return SearchResult(rows, distances, similarity, result.timings)


def _first_places(names: list[str | None]) -> list[int]:
    seen: set[str] = set()
    places = []
    for place, name in enumerate(names):
        if name is None or name not in seen:
            places.append(place)
        if name is not None:
            seen.add(name)
    return places
