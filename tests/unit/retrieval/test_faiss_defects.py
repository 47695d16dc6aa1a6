"""Why search is not built from faiss's binary indexes: what they get wrong in the pinned version.

Each test shows a defect; that a map is right in these cases is for its own tests (`test_inverted`, `test_filters`,
`test_first_stage`). One that fails after an update of faiss means that the defect is gone there, and with it a reason
for code of our own.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest

from placeray.retrieval.filters import Box, Filter
from placeray.retrieval.place_map import PlaceMap

Make = Callable[..., Any]
BITS = 64


@pytest.fixture(scope="module")
def codes() -> Any:
    return np.random.default_rng(0).integers(0, 256, (2000, BITS // 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def inverted(codes: Any) -> Any:
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, 16)
    index.quantizer_keepalive = index.quantizer
    index.train(codes)
    index.add(codes)
    index.nprobe = 16
    return index


def test_inverted_lists_by_counters_find_nothing(codes: Any, inverted: Any) -> None:
    """use_heap=False, the fast way, with the default max_codes=0."""
    inverted.use_heap, expected = True, inverted.search(codes[:5], 3)[1]
    inverted.use_heap = False
    try:
        assert (inverted.search(codes[:5], 3)[1] == -1).all()
    finally:
        inverted.use_heap = True
    assert (expected[:, 0] == np.arange(5)).all()


def test_inverted_lists_scanned_list_by_list_refuse_small_batches(codes: Any, inverted: Any) -> None:
    inverted.per_invlist_search, inverted.nprobe = True, 1
    try:
        with pytest.raises(RuntimeError):
            inverted.search(codes[:3], 2)
    finally:
        inverted.per_invlist_search, inverted.nprobe = False, 16


def test_inverted_lists_take_no_selector(codes: Any, inverted: Any) -> None:
    chosen = faiss.SearchParametersIVF(sel=faiss.IDSelectorRange(0, 10), nprobe=16)
    with pytest.raises(RuntimeError, match=r"(?i)selector"):
        inverted.search(codes[:3], 2, params=chosen)


def test_shards_apply_a_selector_to_their_own_numbers(
    codes: Any, make_descriptors: Make, make_map: Make
) -> None:
    """Rows 1500 to 1999 asked for, others returned; a filtered map of several shards returns what was asked for."""
    shards = faiss.IndexBinaryShards(BITS, False, True)
    kept = []
    for start in range(0, 2000, 1000):
        kept.append(faiss.IndexBinaryFlat(BITS))
        kept[-1].add(codes[start : start + 1000])
        shards.add_shard(kept[-1])
    chosen = faiss.SearchParameters(sel=faiss.IDSelectorRange(1500, 2000))
    found = shards.search(codes[:50], 10, params=chosen)[1]
    assert not ((found >= 1500) & (found < 2000)).all()
    lat = np.linspace(10, 11, 2000)
    root = make_map(make_descriptors(codes, lat=lat, lon=np.full(2000, 20.0)), rows_per_shard=700)
    with PlaceMap.open(root) as place_map:
        north = np.array(place_map.rows(["lat"])["lat"].to_pylist()) >= lat[1500]
        wanted = Filter(area=Box(west=19, south=float(lat[1500]), east=21, north=12))
        mine = place_map.search(codes[:50], None, top_k=10, within=wanted).rows
    assert north[mine].all()
    distance = np.unpackbits(codes[:50, None] ^ codes[None, 1500:], axis=2).sum(axis=2)
    with PlaceMap.open(root) as place_map:
        best = place_map.search(codes[:50], None, top_k=10, within=wanted).hamming
    np.testing.assert_array_equal(best, np.sort(distance, axis=1)[:, :10])


def test_flat_indexes_do_not_merge(codes: Any) -> None:
    one, two = faiss.IndexBinaryFlat(BITS), faiss.IndexBinaryFlat(BITS)
    one.add(codes[:10])
    two.add(codes[10:20])
    with pytest.raises((RuntimeError, AttributeError, TypeError)):
        one.merge_from(two, 10)
    assert one.ntotal == 10


def test_lists_on_disk_are_not_for_binary_indexes(codes: Any, inverted: Any, tmp_path: Any) -> None:
    from faiss.contrib.ondisk import merge_ondisk

    part, empty = str(tmp_path / "part.index"), faiss.clone_binary_index(inverted)
    faiss.write_index_binary(inverted, part)
    empty.reset()
    with pytest.raises(RuntimeError):
        merge_ondisk(empty, [part], str(tmp_path / "merged.ivfdata"))
