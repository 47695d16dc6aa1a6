"""Float search over every row of a map, without codes: the bound for two-stage search."""

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.float_store import FloatStores
from placeray.retrieval.merge import NOBODY, Keys, Rows, best, rows_of, similarity_keys
from placeray.retrieval.quantize import quantize
from placeray.retrieval.similarity import prepare

Floats = NDArray[np.float32]

# Blocks are cut by global row, across shards: a matrix product must not round differently for another
# sharding.
ROWS_AT_ONCE = 8192
QUERIES_AT_ONCE = 256
# Floating-point maps: candidates beyond `size` that are scored again row by row, in case rounding swapped
# neighbours.
MARGIN = 16
_EXACT_RUN = 1024


def search_exhaustive(
    queries: Floats, stores: FloatStores, size: int, live: NDArray[np.bool_] | None = None
) -> tuple[Rows, Floats]:
    """The `size` most similar rows of each query.

    Args:
        queries: (Q, D) unit-length float descriptors.
        size:    results per query; more than there are rows is allowed.
        live:    (N,) rows that may be returned; all when None. Rows of a shard that was left out may not.

    Returns:
        (Q, size) global rows, best first, equal similarities by row, padded with -1; and their similarities,
        the same numbers that `rerank` gives, NaN for nobody.
    """
    candidates = np.full((len(queries), size + MARGIN), NOBODY, dtype=np.uint64)
    for first_query in range(0, len(queries), QUERIES_AT_ONCE):
        some = slice(first_query, first_query + QUERIES_AT_ONCE)
        candidates[some] = _candidates(queries[some], stores, size + MARGIN, live)
    rows = np.full((len(queries), size), -1, dtype=np.int64)
    similarity = np.full((len(queries), size), np.nan, dtype=np.float32)
    for q, (query, found) in enumerate(zip(prepare(queries), rows_of(candidates), strict=True)):
        found = found[found >= 0]
        scores = query.similarity(*stores.gather([found])[0]) if len(found) else np.zeros(0, np.float32)
        best_first = np.lexsort((found, -scores))[:size]
        rows[q, : len(best_first)] = found[best_first]
        similarity[q, : len(best_first)] = scores[best_first]
    return rows, similarity


def _candidates(queries: Floats, stores: FloatStores, size: int, live: NDArray[np.bool_] | None) -> Keys:
    kept = np.full((len(queries), size), NOBODY, dtype=np.uint64)
    quantized = quantize(queries)
    for start in range(0, stores.num_rows, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, stores.num_rows))
        if live is not None and not live[start : start + len(rows)].any():
            continue
        block, scales = stores.gather_run(start, len(rows))
        if scales is None:
            similarity = _float_products(queries, block).astype(np.float32)
        else:
            products = _integer_products(quantized[0], block)
            factors = scales.astype(np.float64)[None, :] * quantized[1].astype(np.float64)[:, None]
            similarity = (products * factors).astype(np.float32)
        keys = similarity_keys(similarity, np.broadcast_to(rows, similarity.shape))
        if live is not None:
            keys[:, ~live[start : start + len(rows)]] = NOBODY
        kept = best([kept, best([keys], size)], size)
    return kept


def _float_products(queries: Floats, rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """Products (Q, n) so exact that equal rows are equal in float32, wherever they stand in whatever batch."""
    total = np.zeros((len(queries), len(rows)), dtype=np.float64)
    for start in range(0, queries.shape[1], _EXACT_RUN):
        run = slice(start, start + _EXACT_RUN)
        total += queries[:, run].astype(np.float64) @ rows[:, run].astype(np.float64).T
    return total


def _integer_products(queries: NDArray[np.int8], rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """Exact products (Q, n): float32 matrix products over runs short enough to count exactly."""
    total = np.zeros((len(queries), len(rows)), dtype=np.float64)
    for start in range(0, queries.shape[1], _EXACT_RUN):
        run = slice(start, start + _EXACT_RUN)
        total += queries[:, run].astype(np.float32) @ rows[:, run].astype(np.float32).T
    return total
