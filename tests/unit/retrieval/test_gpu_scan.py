"""A scan on a GPU gives what any other gives, though a GPU keeps whichever it likes of equal distances."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.errors import MapError
from placeray.retrieval import gpu_scan
from placeray.retrieval.codes import hamming
from placeray.retrieval.first_stage import CodeRange, search_codes
from placeray.retrieval.gpu_scan import GpuCodes
from placeray.retrieval.place_map import PlaceMap

Make = Callable[..., Any]


class AnyOfEqual:
    """Answers as a GPU may: the nearest, but the last rows of those at equal distance."""

    def __init__(self, code_bits: int) -> None:
        self.codes = np.zeros((0, code_bits // 8), dtype=np.uint8)
        self.asked = 0

    @property
    def ntotal(self) -> int:
        return len(self.codes)

    def add(self, x: Any) -> None:
        self.codes = np.concatenate([self.codes, x])

    def search(self, x: Any, k: int) -> tuple[Any, Any]:
        assert 0 < k <= gpu_scan.MAX_ASKED
        self.asked += len(x)
        distances = hamming(x, self.codes)
        backwards = np.broadcast_to(-np.arange(self.ntotal), distances.shape)
        order = np.lexsort((backwards, distances))[:, :k]
        return np.take_along_axis(distances, order, axis=1), order


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 600),
    num_ranges=st.integers(1, 4),
    size=st.integers(1, 40),
    share_removed=st.sampled_from([0.0, 0.1, 0.9]),
    num_places=st.sampled_from([3, 600]),
)
def test_answers_are_those_of_the_other_engines(
    pool: ThreadPoolExecutor, seed: int, count: int, num_ranges: int, size: int, share_removed: float, num_places: int
) -> None:  # fmt: skip
    """Few places: hundreds of photos with one code, more than are asked for beyond what is wanted."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 256, (num_places, 8), dtype=np.uint8)
    codes = places[rng.integers(0, num_places, count)]
    allowed = rng.random(count) >= share_removed if share_removed else None
    edges = np.sort(rng.integers(0, count + 1, num_ranges - 1)).tolist()
    ranges = [
        CodeRange(codes[a:b], a + 5 * number, None if allowed is None else allowed[a:b])
        for number, (a, b) in enumerate(zip([0, *edges], [*edges, count], strict=True))
    ]
    queries = np.concatenate([codes[:3], rng.integers(0, 256, (2, 8), dtype=np.uint8)])

    def otherwise(some: Any) -> Any:
        return search_codes(ranges, some, size, pool=pool, num_threads=2)

    found = GpuCodes(ranges, AnyOfEqual).search(queries, size, otherwise)
    np.testing.assert_array_equal(found, otherwise(queries))


def test_only_what_is_tied_beyond_the_cut_is_searched_again() -> None:
    rng = np.random.default_rng(0)
    same = np.repeat(rng.integers(0, 256, (1, 64), dtype=np.uint8), 500, axis=0)
    codes = np.concatenate([same, rng.integers(0, 256, (3000, 64), dtype=np.uint8)])
    again: list[Any] = []

    def otherwise(some: Any) -> Any:
        again.append(some)
        return np.zeros((len(some), 10), dtype=np.uint64)

    GpuCodes([CodeRange(codes, 0)], AnyOfEqual).search(codes[[0, 600, 700]], 10, otherwise)
    np.testing.assert_array_equal(again, [codes[:1]])


def test_more_than_a_gpu_selects_is_searched_otherwise() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (3000, 64), dtype=np.uint8)
    expected = np.zeros((2, 2048), dtype=np.uint64)
    found = GpuCodes([CodeRange(codes, 0)], AnyOfEqual).search(codes[:2], 2048, lambda _: expected)
    assert found is expected


@pytest.fixture
def a_map(make_descriptors: Make, make_map: Make, draw_tied: Make) -> tuple[str, Any, Any]:
    codes, floats = draw_tied(np.random.default_rng(1), 300, 512, 16)
    return make_map(make_descriptors(codes, floats), rows_per_shard=100), codes, floats


def assert_same_as_faiss(a_map: tuple[str, Any, Any]) -> None:
    root, codes, floats = a_map
    with PlaceMap.open(root) as place_map:
        one, two = (
            place_map.search(codes[:9], floats[:9], top_k=10, shortlist=60, engine=engine)
            for engine in ("gpu", "faiss")
        )
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.hamming, two.hamming)
    np.testing.assert_array_equal(one.similarity, two.similarity)


def test_a_map_uses_the_gpu_that_faiss_sees(
    a_map: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = AnyOfEqual(512)
    monkeypatch.setattr(gpu_scan, "available", lambda: True)
    monkeypatch.setattr(gpu_scan, "index_on_gpu", lambda _: made)
    assert_same_as_faiss(a_map)
    assert made.asked == 9
    with PlaceMap.open(a_map[0]) as place_map:  # a map of 300 photos is not worth a copy to the GPU
        place_map.search(a_map[1][:64], None, top_k=10)
    assert made.asked == 9


@pytest.mark.skipif(not gpu_scan.available(), reason="faiss sees no GPU")
def test_a_real_gpu_gives_the_same(a_map: tuple[str, Any, Any]) -> None:
    assert_same_as_faiss(a_map)


def test_a_gpu_that_is_too_small_is_named_and_left_alone(
    a_map: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(_: int) -> Any:
        raise RuntimeError("Error in virtual void* GpuResources: out of memory")

    root, codes, _ = a_map
    monkeypatch.setattr(gpu_scan, "available", lambda: True)
    monkeypatch.setattr(gpu_scan, "index_on_gpu", too_small)
    monkeypatch.setattr(gpu_scan, "MIN_ROWS", 0)
    with PlaceMap.open(root) as place_map:
        with pytest.warns(UserWarning, match="is searched on the CPU: the GPU has no room"):
            found = place_map.search(codes[:64], None, top_k=10)
        assert (found.rows >= 0).all()
        with pytest.raises(MapError, match="cannot be searched on a GPU: the GPU has no room"):
            place_map.search(codes[:3], None, top_k=10, engine="gpu")


@pytest.mark.skipif(gpu_scan.available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_named(a_map: tuple[str, Any, Any]) -> None:
    root, codes, _ = a_map
    with PlaceMap.open(root) as place_map, pytest.raises(MapError, match="faiss sees no GPU; leave engine"):
        place_map.search(codes[:3], None, top_k=10, engine="gpu")
