"""Stage 1: the exact Hamming top-S of every query over all codes of a map, row ranges split over threads.

One query by faiss uses one core however many there are, so the rows are split, not the queries. Small batches
scan with faiss, batches of 16 and more over many rows with the query-blocked scan of `popcount_scan`; both
are exact and return the same candidates in the same order, ties by global row.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal, NamedTuple

import faiss
import numpy as np

from placeray.retrieval import popcount_scan
from placeray.retrieval.codes import Bytes
from placeray.retrieval.merge import NOBODY, Keys, best, distance_keys

Engine = Literal["auto", "faiss", "numba"]

# Below this a thread costs more than it saves: half a millisecond of scanning.
MIN_ROWS_PER_THREAD = 250_000
# The compiled scan pays off from this batch size (measured), and from a map that is worth compiling it for (2
# s once).
MIN_BATCH_FOR_NUMBA = 16
MIN_ROWS_FOR_NUMBA = 200_000
# Candidates of this many queries are held at once: 1024 x 1000 x 8 bytes = 8 MB per row range.
QUERIES_AT_ONCE = 1024


class CodeRange(NamedTuple):
    """A piece of a map to search: any slice of the memory-mapped codes of one shard."""

    codes: Bytes  # (n, bits / 8) uint8
    first_row: int  # global row of codes[0]


# (range, queries (Q, bits / 8), size) -> (Q, size or fewer) keys
Scan = Callable[[CodeRange, Bytes, int], Keys]


def make_pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads for `search_codes`; inside each of them faiss stays on its one core."""
    return ThreadPoolExecutor(
        num_threads, "placeray-search", initializer=faiss.omp_set_num_threads, initargs=(1,)
    )


def search_codes(
    ranges: Sequence[CodeRange],
    queries: Bytes,
    size: int,
    *,
    pool: ThreadPoolExecutor,
    num_threads: int,
    engine: Engine = "auto",
) -> Keys:
    """The `size` nearest rows of each query, by (distance, global row).

    Args:
        ranges:  what to search, in any order and of any length, empty ones too.
        queries: (Q, bits / 8) uint8.
        size:    candidates per query; more than there are rows is allowed.

    Returns:
        (Q, size) keys of `merge`, ascending, padded with NOBODY.
    """
    pieces = split_rows(ranges, num_threads)
    if not pieces or not len(queries):
        return np.full((len(queries), size), NOBODY, dtype=np.uint64)
    scan = _choose(engine, len(queries), sum(len(piece.codes) for piece in pieces))
    results = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = np.ascontiguousarray(queries[start : start + QUERIES_AT_ONCE])
        found = _scan_all(scan, pieces, some, size, pool)
        results.append(best(found, size))
    return np.concatenate(results)


def _scan_all(
    scan: Scan, pieces: list[CodeRange], queries: Bytes, size: int, pool: ThreadPoolExecutor
) -> list[Keys]:
    if len(pieces) > 1:
        return list(pool.map(lambda piece: scan(piece, queries, size), pieces))
    # Handing one piece to another thread would take as long as scanning 70,000 codes.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return [scan(pieces[0], queries, size)]
    finally:
        faiss.omp_set_num_threads(threads)


def split_rows(ranges: Sequence[CodeRange], num_threads: int) -> list[CodeRange]:
    """Cut ranges so that threads get about equal work; ranges are never joined, empty ones vanish."""
    total = sum(len(piece.codes) for piece in ranges)
    rows_per_piece = max(MIN_ROWS_PER_THREAD, -(-total // num_threads))
    pieces = []
    for codes, first_row in ranges:
        num_pieces = -(-len(codes) // rows_per_piece)
        edges = [len(codes) * i // num_pieces for i in range(num_pieces + 1)] if num_pieces else [0]
        pieces += [CodeRange(codes[a:b], first_row + a) for a, b in pairwise(edges)]
    return pieces


def _choose(engine: Engine, num_queries: int, num_rows: int) -> Scan:
    large = num_queries >= MIN_BATCH_FOR_NUMBA and num_rows >= MIN_ROWS_FOR_NUMBA
    if engine == "numba" or (engine == "auto" and large and popcount_scan.available()):
        return _scan_numba
    return _scan_faiss


def _scan_numba(piece: CodeRange, queries: Bytes, size: int) -> Keys:
    return popcount_scan.scan(piece.codes, queries, min(size, len(piece.codes)), piece.first_row)


def _scan_faiss(piece: CodeRange, queries: Bytes, size: int) -> Keys:
    # faiss keeps the lowest rows among equal distances at the cut; a test guards it, its documentation does
    # not say.
    distances, rows = faiss.knn_hamming(queries, piece.codes, min(size, len(piece.codes)), variant="hc")
    return distance_keys(distances, np.where(rows < 0, -1, rows + piece.first_row))
