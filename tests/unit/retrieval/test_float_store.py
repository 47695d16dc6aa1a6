"""Descriptors survive quantisation, padding and sharding; their products are exact."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.retrieval import popcount_scan
from placeray.retrieval.exhaustive import search_exhaustive
from placeray.retrieval.float_store import FILE_OF_TYPE, SCALE_FILE, FloatStore, FloatStores, padded_row_bytes
from placeray.retrieval.quantize import dequantize, quantize
from placeray.retrieval.rerank import rerank
from placeray.retrieval.similarity import integer_dots, integer_dots_numpy


@given(dim=st.integers(1, 20_000), dtype=st.sampled_from(["int8", "float16", "float32"]))
def test_padding_is_small_and_keeps_rows_in_pages(dim: int, dtype: Any) -> None:
    row = dim * np.dtype(dtype).itemsize
    padded = padded_row_bytes(dim, dtype)
    assert row <= padded <= max(row * 1.25, row + 63)
    assert padded % np.dtype(dtype).itemsize == 0


@pytest.mark.parametrize(
    ("dim", "dtype", "expected"),
    [
        (2048, "int8", 2048),
        (4096, "int8", 4096),
        (2048, "float16", 4096),
        (12288, "int8", 12288),
        (4000, "int8", 4096),
    ],
)
def test_usual_rows_never_straddle_a_page(dim: int, dtype: Any, expected: int) -> None:
    assert padded_row_bytes(dim, dtype) == expected


def test_quantisation_keeps_length_and_direction() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 256)).astype(np.float32)
    rows[7] = 0
    integers, scales = quantize(rows)
    back = dequantize(integers, scales)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), lengths, rtol=1e-6)
    cosine = (rows * back).sum(axis=1)[lengths > 0] / lengths[lengths > 0] ** 2
    assert cosine.min() > 0.9998  # 8 bits: half a step of 1/127 of the largest value per component
    assert np.abs(integers).max() == 127
    assert scales[7] == 1


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 5), dim=st.sampled_from([1, 64, 1024, 1025, 5000])
)
def test_integer_products_are_exact_with_and_without_numkong(seed: int, count: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.array([-127, 127, 3], dtype=np.int8), (count, dim))
    query = rng.choice(np.array([127, -5], dtype=np.int8), dim)
    expected = (rows.astype(np.int64) @ query.astype(np.int64)).tolist()
    assert integer_dots(rows, query).tolist() == expected
    assert integer_dots_numpy(rows, query).tolist() == expected


def write_store(folder: Path, floats: Any, dtype: Any) -> FloatStore:
    row_bytes = padded_row_bytes(floats.shape[1], dtype)
    padded = np.zeros((len(floats), row_bytes), dtype=np.uint8)
    values, scales = quantize(floats) if dtype == "int8" else (floats.astype(dtype), None)
    padded.view(dtype)[:, : floats.shape[1]] = values
    folder.mkdir()
    (folder / FILE_OF_TYPE[dtype]).write_bytes(padded.tobytes())
    if scales is not None:
        (folder / SCALE_FILE).write_bytes(scales.tobytes())
    return FloatStore(
        folder, num_rows=len(floats), descriptor_dim=floats.shape[1], dtype=dtype, row_bytes=row_bytes
    )


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_rows_are_gathered_in_order_across_shards_and_empty_ones(tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    floats = rng.standard_normal((40, 100)).astype(np.float32)
    edges = [0, 7, 7, 25, 40]  # the second shard is empty
    parts = [write_store(tmp_path / str(i), floats[a:b], dtype) for i, (a, b) in enumerate(pairwise(edges))]
    stores = FloatStores(parts, edges[:-1], 100)
    assert stores.num_rows == 40
    wanted = np.array([39, 0, 7, 24, 6, 25, 7])
    (rows, scales), (nothing, _) = stores.gather([wanted, np.zeros(0, dtype=np.int64)])
    values = rows.astype(np.float32) if scales is None else dequantize(rows, scales)
    np.testing.assert_allclose(
        values, floats[wanted], atol={"int8": 0.02, "float16": 2e-3, "float32": 0}[dtype]
    )
    assert nothing.shape == (0, 100)


def test_nobody_is_never_ranked_and_equal_scores_keep_their_order(tmp_path: Path) -> None:
    floats = np.array([[1, 0], [0.6, 0.8], [1, 0], [0, 1]], dtype=np.float32)
    stores = FloatStores([write_store(tmp_path / "s", floats, "int8")], [0], 2)
    shortlist = np.array([[3, 2, 0, 1, -1], [2, -1, -1, -1, -1], [-1] * 5])
    second = rerank(np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32), shortlist, stores)
    assert np.take_along_axis(shortlist, second.order, axis=1).tolist() == [
        [2, 0, 1, 3, -1],
        [2, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1],
    ]
    assert np.isnan(second.similarity).sum(axis=1).tolist() == [1, 4, 5]


def test_exhaustive_search_over_several_blocks_and_query_groups(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("placeray.retrieval.exhaustive.ROWS_AT_ONCE", 32)
    monkeypatch.setattr("placeray.retrieval.exhaustive.QUERIES_AT_ONCE", 3)
    rng = np.random.default_rng(2)
    floats = rng.standard_normal((100, 20)).astype(np.float32)
    floats[50:60] = floats[10]  # ties across blocks
    stores = FloatStores(
        [write_store(tmp_path / "a", floats[:45], "int8"), write_store(tmp_path / "b", floats[45:], "int8")],
        [0, 45],
        20,
    )
    rows, similarity = search_exhaustive(floats[8:18], stores, 15)
    assert rows[2, :11].tolist() == [10, *range(50, 60)]
    assert (np.diff(similarity, axis=1) <= 0).all()
    integers, scales = quantize(floats)
    queries, query_scales = quantize(floats[8:18])
    products = (queries.astype(np.int64) @ integers.astype(np.int64).T).astype(np.float64)
    exact = (products * (scales.astype(np.float64) * query_scales.astype(np.float64)[:, None])).astype(
        np.float32
    )
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :15])
    np.testing.assert_array_equal(similarity, -np.sort(-exact, axis=1)[:, :15])


@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from([1, 8, 63, 64, 65, 256, 200, 1024]),
    padding=st.integers(0, 40),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_in_place_are_exact(dim: int, padding: int, extreme: bool, seed: int) -> None:
    """Any length, padded or not, by both ways to multiply; the largest sums too."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-127, 128, (20, dim + padding), dtype=np.int8)
    queries = rng.integers(-127, 128, (3, dim), dtype=np.int8)
    if extreme:
        rows[:], queries[:] = 127, -127
    which, owners = rng.integers(0, 20, 30), rng.integers(0, 3, 30)
    expected = np.vecdot(rows[which, :dim].astype(np.int64), queries[owners].astype(np.int64))
    assert popcount_scan.available()
    np.testing.assert_array_equal(popcount_scan.dots(rows, which, owners, queries), expected)
    from placeray.retrieval import kernels

    whole = dim // 64 * 64
    plain = kernels.dot_plain(
        rows, which[0] * rows.shape[1], queries.astype(np.int16), owners[0] * dim, whole, 0
    )
    assert plain == np.vecdot(
        rows[which[0], :whole].astype(np.int64), queries[owners[0], :whole].astype(np.int64)
    )
