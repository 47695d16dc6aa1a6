"""Stage 1 returns exactly the (distance, row)-smallest rows, by every engine and any split over threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.retrieval import first_stage, popcount_scan
from placeray.retrieval.codes import hamming, pack, unpack
from placeray.retrieval.first_stage import (
    CodeRange,
    Engine,
    make_pool,
    search_codes,
    search_pieces,
    split_rows,
)
from placeray.retrieval.merge import distances_of, rows_of

Make = Callable[..., Any]


def search_slowly(codes: Any, queries: Any, size: int, allowed: Any = None) -> list[list[tuple[int, int]]]:
    """(distance, row) of the `size` best allowed rows of each query, padded with (-1, -1)."""
    answers = []
    for query in queries:
        found = sorted(
            (int(np.unpackbits(code ^ query).sum()), row)
            for row, code in enumerate(codes)
            if allowed is None or allowed[row]
        )[:size]
        answers.append(found + [(-1, -1)] * (size - len(found)))
    return answers


def answers_of(keys: Any) -> list[list[tuple[int, int]]]:
    return [
        list(zip(distances, rows, strict=True))
        for distances, rows in zip(distances_of(keys).tolist(), rows_of(keys).tolist(), strict=True)
    ]


@pytest.mark.parametrize("engine", ["faiss", "numba"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 200),
    words=st.sampled_from([1, 2, 3, 8]),
    num_queries=st.integers(0, 5),
    size=st.integers(1, 60),
    tied=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    share_allowed=st.sampled_from([None, 0.0, 0.1, 0.9]),
)
def test_equals_the_twin(
    pool: ThreadPoolExecutor, draw_tied: Make, draw_random: Make, engine: Engine, seed: int, count: int, words: int,
    num_queries: int, size: int, tied: bool, cuts: list[int], share_allowed: float | None,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    codes, _ = (draw_tied if tied else draw_random)(rng, count, words * 64, 2)
    queries, _ = (draw_tied if tied else draw_random)(rng, num_queries, words * 64, 2)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    allowed = None if share_allowed is None else rng.random(count) < share_allowed
    masks = [None if allowed is None else allowed[a:b] for a, b in pairwise(edges)]
    ranges = [CodeRange(codes[a:b], a, mask) for (a, b), mask in zip(pairwise(edges), masks, strict=True)]
    found = search_codes(ranges[::-1], queries, size, pool=pool, num_threads=3, engine=engine)
    assert answers_of(found) == search_slowly(codes, queries, size, allowed)


@pytest.mark.parametrize("words", [1, 3, 8, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_all_ways_agree_on_many_blocks(draw_random: Make, words: int, masked: bool) -> None:
    """Several full blocks and a rest, over two pieces of one collector, row by row and block by block."""
    rng = np.random.default_rng(words)
    codes, _ = draw_random(rng, 1000, words * 64, 2)
    queries, _ = draw_random(rng, 5, words * 64, 2)
    allowed = rng.random(1000) < 0.3 if masked else None
    expected = search_slowly(codes, queries, 33, allowed)
    for way in ("scan", "scan_blocks"):
        collector = popcount_scan.Collector(queries, 33)
        halves = (slice(0, 450), slice(450, 1000))
        masks = [None if allowed is None else allowed[some] for some in halves]
        getattr(collector, way)([(codes[h], h.start, mask) for h, mask in zip(halves, masks, strict=True)])
        assert answers_of(collector.keys()) == expected, way


def aligned(shape: tuple[int, int], kind: type) -> np.ndarray:
    """Room that begins a cache line, as `kernels.scratch` gives it."""
    size = shape[0] * shape[1] * np.dtype(kind).itemsize
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(kind).reshape(shape)


def test_both_ways_to_compare_a_block_are_right(draw_random: Make) -> None:
    """Whichever this processor does not use is tried too, where it can be."""
    kernels = pytest.importorskip("placeray.retrieval.kernels")
    codes, _ = draw_random(np.random.default_rng(3), kernels.BLOCK, 192, 2)
    queries, _ = draw_random(np.random.default_rng(4), 3, 192, 2)
    words, split = codes.view(np.uint64), kernels.nibbles(queries)
    expected = hamming(queries, codes)
    distances = np.zeros(kernels.BLOCK, dtype=np.uint16)
    by_words = aligned((3, kernels.BLOCK), np.uint64)
    kernels.turn_words(codes, words, 0, by_words)
    asked = queries.view(np.uint64)
    for q in range(len(queries)):
        smallest = kernels.count_block(by_words, asked, split, q, kernels.NIBBLE_TABLE, distances)
        assert distances.tolist() == expected[q].tolist()
        assert smallest == expected[q].min()
    if not kernels.can_look_up():
        pytest.skip("this processor has no 32-byte shuffle")
    by_nibbles = aligned((48, kernels.BLOCK), np.uint8)
    kernels.split_nibbles(codes, words, 0, by_nibbles)
    assert (by_nibbles[0::2] | by_nibbles[1::2] << 4 == codes.T).all()
    for q in range(len(queries)):
        smallest = kernels.look_up(by_nibbles, asked, split, q, kernels.NIBBLE_TABLE, distances)
        assert distances.tolist() == expected[q].tolist()
        assert smallest == expected[q].min()


def test_the_nearest_centroid_is_the_first_among_equals(draw_tied: Make, draw_random: Make) -> None:
    rng = np.random.default_rng(5)
    for draw, count in ((draw_tied, 300), (draw_random, 130), (draw_random, 1)):
        centroids, _ = draw(rng, count, 128, 2)
        codes, _ = draw(rng, 500, 128, 2)
        expected = hamming(codes, centroids).argmin(axis=1)
        np.testing.assert_array_equal(popcount_scan.nearest(centroids, codes), expected)


@pytest.mark.parametrize("num_queries", [2, 7])
@pytest.mark.parametrize(
    ("num_lists", "count", "num_first"), [(300, 40, 8), (257, 257, 32), (128, 5, 5), (1, 1, 1)]
)
def test_lists_are_chosen_as_by_sorting(
    draw_tied: Make, num_queries: int, num_lists: int, count: int, num_first: int
) -> None:
    """Several blocks of centroids, the last one not full, most distances equal."""
    rng = np.random.default_rng(6)
    centroids, _ = draw_tied(rng, num_lists, 128, 2)
    queries, _ = draw_tied(rng, num_queries, 128, 2)
    found = popcount_scan.ListChooser(centroids).choose(queries, count, num_first)
    order = np.argsort(hamming(queries, centroids), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found[:, :num_first], np.sort(order[:, :num_first], axis=1))
    np.testing.assert_array_equal(found[:, num_first:], np.sort(order[:, num_first:], axis=1))


def test_the_compiled_scan_cleans_up_among_ties() -> None:
    """More candidates than the buffer holds, nearer ones last: the cut is redone many times."""
    rng = np.random.default_rng(0)
    codes = np.zeros((30_000, 8), dtype=np.uint8)
    codes[:, 0] = rng.integers(0, 4, 30_000)
    codes[:, 1] = np.repeat(np.arange(255, -1, -1), 118)[:30_000]
    queries = np.zeros((2, 8), dtype=np.uint8)
    distance = hamming(queries, codes)[0]
    expected = np.lexsort((np.arange(30_000), distance))[:77]
    collector = popcount_scan.Collector(queries, 77)
    collector.scan_blocks([(codes, 5, None)])
    found = collector.keys()
    np.testing.assert_array_equal(rows_of(found)[1], expected + 5)
    np.testing.assert_array_equal(distances_of(found)[1], distance[expected])


def test_large_batches_and_missing_numba(
    pool: ThreadPoolExecutor, draw_random: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With numba the batch takes the compiled scan, without it faiss; in groups of queries, on 2 threads."""
    monkeypatch.setattr(first_stage, "MIN_ROWS_FOR_NUMBA", 1000)
    monkeypatch.setattr(first_stage, "MIN_ROWS_PER_THREAD", 300)
    monkeypatch.setattr(first_stage, "QUERIES_AT_ONCE", 10)
    codes, _ = draw_random(np.random.default_rng(1), 1000, 128, 2)
    ranges = [CodeRange(codes, 0)]
    called = []
    monkeypatch.setattr(
        first_stage,
        "_scan_blocks",
        lambda *args, real=first_stage._scan_blocks: called.append(len(args[1])) or real(*args),
    )
    with_numba = search_codes(ranges, codes[:25], 9, pool=pool, num_threads=2)
    assert sorted(called) == [5, 5, 10, 10, 10, 10]
    monkeypatch.setattr(popcount_scan, "available", lambda: False)
    without = search_codes(ranges, codes[:25], 9, pool=pool, num_threads=2)
    assert len(called) == 6
    np.testing.assert_array_equal(with_numba, without)


def test_rows_are_split_evenly_and_completely() -> None:
    codes = np.zeros((2_000_000, 8), dtype=np.uint8)
    pieces = split_rows([CodeRange(codes[:1_500_000], 0), CodeRange(codes[1_500_000:], 1_500_000)], 4)
    assert [(piece.first_row, len(piece.codes)) for piece in pieces] == [
        (0, 500_000), (500_000, 500_000), (1_000_000, 500_000), (1_500_000, 500_000),
    ]  # fmt: skip


@pytest.mark.parametrize("variant", ["hc", "mc"])
def test_faiss_keeps_the_lowest_rows_among_ties(draw_tied: Make, variant: str) -> None:
    """What the merge of shards relies on; faiss does not document it."""
    rng = np.random.default_rng(2)
    codes, _ = draw_tied(rng, 500, 64, 2)
    for size in (1, 7, 60, 400):
        distances, rows = faiss.knn_hamming(codes[:20], codes, size, variant=variant)
        found = [
            sorted(zip(d, r, strict=True)) for d, r in zip(distances.tolist(), rows.tolist(), strict=True)
        ]
        assert found == search_slowly(codes, codes[:20], size)


def test_packing_follows_the_published_order() -> None:
    components = np.full((1, 64), -1.0, dtype=np.float32)
    components[0, 0] = -0.0  # counts as >= 0
    components[0, 9] = 2.0
    codes = pack(components)
    assert codes[0].tolist() == [0b1000_0000, 0b0100_0000, 0, 0, 0, 0, 0, 0]
    assert unpack(codes)[0, [0, 1, 9]].tolist() == [1, -1, 1]


def test_long_pieces_are_shared_out_over_threads(draw_tied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows in one piece are no reason for one thread to do it all; nothing is lost at the cuts."""
    monkeypatch.setattr(first_stage, "MIN_ROWS_PER_THREAD", 50)
    codes, _ = draw_tied(np.random.default_rng(5), 1000, 128, 2)
    allowed = np.random.default_rng(6).random(1000) < 0.5
    table = np.array(
        [[codes.ctypes.data, 3, 0, 0], [codes[10:].ctypes.data, 900, 10, allowed[10:].ctypes.data],
         [codes[950:].ctypes.data, 40, 950, 0]]
    )  # fmt: skip
    seen = []
    scanned = popcount_scan.Collector.scan_table

    def count(self: popcount_scan.Collector, pieces: Any) -> None:
        seen.append(int(pieces[:, 1].sum()))
        scanned(self, pieces)

    monkeypatch.setattr(popcount_scan.Collector, "scan_table", count)
    with make_pool(4) as pool:
        found = search_pieces(table, codes[:2], 50, pool=pool, num_threads=4)
    rows = np.concatenate([np.arange(3), 10 + np.flatnonzero(allowed[10:910]), np.arange(950, 990)])
    wanted = np.zeros(1000, dtype=np.bool_)
    wanted[rows] = True
    assert answers_of(found) == search_slowly(codes, codes[:2], 50, wanted)
    assert len(seen) == 4
    assert sum(seen) == 943
    assert max(seen) < 300
