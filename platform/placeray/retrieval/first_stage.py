"""Stage 1: the exact Hamming top-S of every query over all codes of a map, row ranges split over threads.

One query by faiss uses one core however many there are, so the rows are split, not the queries. One to three queries
are scanned by faiss (row by row where some rows do not count), larger batches over many rows block by block
(`popcount_scan`); all ways are exact and return the same candidates in the same order, ties by global row.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from placeray.retrieval import popcount_scan
from placeray.retrieval.codes import Bytes
from placeray.retrieval.merge import NOBODY, Keys, best, distance_keys

# gpu: for a whole map alone, see `gpu_scan`; pieces of one are scanned as by auto.
Engine = Literal["auto", "faiss", "numba", "gpu"]

# Below this a thread costs more than it saves: half a millisecond of scanning.
MIN_ROWS_PER_THREAD = 250_000
# The compiled scan pays off from this batch size (measured: 1.2 times faiss at 4, 2.2 times at 64), and from a map that
# is worth loading the compiled code for (0.7 s once; 8 s the very first time).
MIN_BATCH_FOR_BLOCKS = 4
MIN_ROWS_FOR_NUMBA = 200_000
# Candidates of this many queries are held at once: 1024 x 1000 x 8 bytes = 8 MB per row range.
QUERIES_AT_ONCE = 1024


class CodeRange(NamedTuple):
    """A piece of a map to search: any slice of the memory-mapped codes of one shard."""

    codes: Bytes  # (n, bits / 8) uint8
    first_row: int  # global row of codes[0]
    allowed: NDArray[np.bool_] | None = None  # (n,) rows that may be returned; all when None


# (ranges in row order, queries (Q, bits / 8), size) -> (Q, size) keys
Scan = Callable[[Sequence[CodeRange], Bytes, int], Keys]


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
    total_rows: int | None = None,
) -> Keys:
    """The `size` nearest rows of each query, by (distance, global row).

    Args:
        ranges:  what to search, in any order and of any length, empty ones too.
        queries: (Q, bits / 8) uint8.
        size:    candidates per query; more than there are rows is allowed.
        total_rows: of the map that `ranges` are a part of; small maps are not worth loading compiled code for.

    Returns:
        (Q, size) keys of `merge`, ascending, padded with NOBODY.
    """
    pieces = split_rows(sorted(ranges, key=lambda piece: piece.first_row), num_threads)
    if not pieces or not len(queries):
        return np.full((len(queries), size), NOBODY, dtype=np.uint64)
    scan = _choose(engine, len(queries), pieces, total_rows or _num_rows(pieces))
    shares = share_out(pieces, num_threads)
    results = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = np.ascontiguousarray(queries[start : start + QUERIES_AT_ONCE])
        results.append(best(_scan_all(scan, shares, some, size, pool), size))
    return np.concatenate(results)


def is_for_pieces(num_queries: int, total_rows: int) -> bool:
    """Whether a search of a part of a map is one for `search_pieces`."""
    few = num_queries < MIN_BATCH_FOR_BLOCKS and total_rows >= MIN_ROWS_FOR_NUMBA
    return few and popcount_scan.available()


def search_pieces(
    pieces: NDArray[np.int64], queries: Bytes, size: int, *, pool: ThreadPoolExecutor, num_threads: int
) -> Keys:
    """The same for a few queries and many short pieces, a table (P, 4) as `kernels.scan_rows` wants it; needs numba."""

    def scan(some: NDArray[np.int64]) -> Keys:
        collector = popcount_scan.Collector(queries, size)
        collector.scan_table(some)
        return collector.keys()

    total = int(pieces[:, 1].sum())
    num_shares = min(num_threads, max(1, -(-total // MIN_ROWS_PER_THREAD)))
    if num_shares == 1:
        return scan(pieces)
    rows_per_share = -(-total // num_shares)
    pieces = _cut(pieces, rows_per_share // 8 + 1, queries.shape[1])
    shares = np.minimum((np.cumsum(pieces[:, 1]) - 1) // rows_per_share, num_shares - 1)
    edges = np.searchsorted(shares, np.arange(1, num_shares))
    return best(list(pool.map(scan, np.split(pieces, edges))), size)


def _cut(pieces: NDArray[np.int64], max_rows: int, code_bytes: int) -> NDArray[np.int64]:
    """Pieces of at most `max_rows` rows."""
    counts = -(-pieces[:, 1] // max_rows)
    skipped = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    cut = np.repeat(pieces, counts, axis=0)
    start = skipped * max_rows
    cut[:, 0] += start * code_bytes
    cut[:, 1] = np.minimum(cut[:, 1] - start, max_rows)
    cut[:, 2] += start
    cut[:, 3] += np.where(cut[:, 3] != 0, start, 0)
    return cut


def _scan_all(
    scan: Scan, shares: list[list[CodeRange]], queries: Bytes, size: int, pool: ThreadPoolExecutor
) -> list[Keys]:
    if len(shares) > 1:
        return list(pool.map(lambda pieces: scan(pieces, queries, size), shares))
    # Handing one share to another thread would take as long as scanning 70,000 codes.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return [scan(shares[0], queries, size)]
    finally:
        faiss.omp_set_num_threads(threads)


def split_rows(ranges: Sequence[CodeRange], num_threads: int) -> list[CodeRange]:
    """Cut ranges so that threads can get about equal work; ranges are never joined, empty ones vanish."""
    rows_per_piece = max(MIN_ROWS_PER_THREAD, -(-_num_rows(ranges) // num_threads))
    pieces = []
    for codes, first_row, allowed in ranges:
        num_pieces = -(-len(codes) // rows_per_piece)
        edges = [len(codes) * i // num_pieces for i in range(num_pieces + 1)] if num_pieces else [0]
        pieces += [
            CodeRange(codes[a:b], first_row + a, None if allowed is None else allowed[a:b])
            for a, b in pairwise(edges)
        ]
    return pieces


def share_out(pieces: Sequence[CodeRange], num_threads: int) -> list[list[CodeRange]]:
    """One run of neighbouring pieces for each thread, of about equal rows; no share is empty."""
    num_shares = min(num_threads, max(1, -(-_num_rows(pieces) // MIN_ROWS_PER_THREAD)))
    rows_per_share = _num_rows(pieces) / num_shares
    shares: list[list[CodeRange]] = [[] for _ in range(num_shares)]
    before = 0
    for piece in pieces:
        middle = before + len(piece.codes) / 2
        shares[min(int(middle / rows_per_share), num_shares - 1)].append(piece)
        before += len(piece.codes)
    return [share for share in shares if share]


def _num_rows(ranges: Sequence[CodeRange]) -> int:
    return sum(len(piece.codes) for piece in ranges)


def _choose(engine: Engine, num_queries: int, pieces: Sequence[CodeRange], total_rows: int) -> Scan:
    if engine == "numba":
        return _scan_blocks
    if engine == "faiss" or total_rows < MIN_ROWS_FOR_NUMBA or not popcount_scan.available():
        return _scan_faiss
    if num_queries >= MIN_BATCH_FOR_BLOCKS:
        return _scan_blocks
    # faiss cannot leave rows out; copying the others would take longer than scanning all.
    masked = any(piece.allowed is not None for piece in pieces)
    return _scan_by_row if masked else _scan_faiss


def _scan_blocks(pieces: Sequence[CodeRange], queries: Bytes, size: int) -> Keys:
    collector = popcount_scan.Collector(queries, size)
    collector.scan_blocks(pieces)
    return collector.keys()


def _scan_by_row(pieces: Sequence[CodeRange], queries: Bytes, size: int) -> Keys:
    collector = popcount_scan.Collector(queries, size)
    collector.scan(pieces)
    return collector.keys()


def _scan_faiss(pieces: Sequence[CodeRange], queries: Bytes, size: int) -> Keys:
    # faiss keeps the lowest rows among equal distances at the cut; a test guards it, its documentation does not say.
    found = []
    for codes, first_row, allowed in pieces:
        kept = None if allowed is None else np.flatnonzero(allowed)
        some = codes if kept is None else codes[kept]
        if not len(some):
            continue
        distances, rows = faiss.knn_hamming(queries, some, min(size, len(some)), variant="hc")
        local = rows if kept is None else np.where(rows < 0, -1, kept[rows])
        found.append(distance_keys(distances, np.where(rows < 0, -1, local + first_row)))
    return best(found, size) if found else np.full((len(queries), size), NOBODY, dtype=np.uint64)
