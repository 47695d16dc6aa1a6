"""A map answers like a slow, obvious twin, whatever its sharding; every kind of model and size works."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_search import as_stored, search_slowly

from placeray.errors import MapError
from placeray.retrieval import popcount_scan
from placeray.retrieval.answers import SearchResult
from placeray.retrieval.place_map import PlaceMap, default_shortlist

Make = Callable[..., Any]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    words=st.integers(1, 3),
    top_k=st.integers(1, 12),
    extra=st.integers(0, 60),
)
def test_answers_equal_the_twin_for_any_number_of_shards(
    make_descriptors: Make, make_map: Make, draw_tied: Make,
    seed: int, count: int, words: int, top_k: int, extra: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    codes, floats = draw_tied(rng, count, words * 64, 8)
    descriptors = make_descriptors(
        codes, floats, num_files=min(count, 3)
    )  # no position: rows stay in id order
    queries = rng.integers(0, count, 3)
    expected = [search_slowly(codes, floats, codes[q], floats[q], top_k, top_k + extra) for q in queries]
    for num_shards in (1, 3, 17):
        root = make_map(descriptors, rows_per_shard=-(-count // num_shards))
        with PlaceMap.open(root, num_threads=2) as place_map:
            found = place_map.search(codes[queries], floats[queries], top_k=top_k, shortlist=top_k + extra)
        for q, answers in enumerate(expected):
            missing = top_k - len(answers)
            assert found.rows[q].tolist() == [row for row, _ in answers] + [-1] * missing
            assert found.hamming[q].tolist() == [distance for _, distance in answers] + [-1] * missing
            assert np.isnan(found.similarity[q]).sum() == missing


@pytest.mark.parametrize("descriptor_type", ["int8", "float16", "float32"])
@pytest.mark.parametrize("positions", [False, True])
def test_every_kind_of_search_is_the_same_for_1_3_and_17_shards(
    make_descriptors: Make, make_map: Make, draw_tied: Make, descriptor_type: str, positions: bool
) -> None:
    rng = np.random.default_rng(3)
    codes, floats = draw_tied(rng, 170, 128, 24)
    lat, lon = rng.uniform(37, 38, 170), rng.uniform(-122, -121, 170)
    lat[::9] = np.nan
    where = {"lat": lat, "lon": lon} if positions else {}
    descriptors = make_descriptors(codes, floats, num_files=4, **where)
    answers: list[list[SearchResult]] = []
    for num_shards in (1, 3, 17):
        root = make_map(descriptors, rows_per_shard=-(-170 // num_shards), descriptor_type=descriptor_type)
        with PlaceMap.open(root) as place_map:
            assert len(place_map.manifest["shards"]) == num_shards
            ids = place_map.rows(["image_id"])["image_id"].to_pylist()
            assert sorted(ids) == [f"photo-{row:06d}" for row in range(170)]
            answers.append([
                place_map.search(codes[:20], floats[:20], top_k=10, shortlist=30),
                place_map.search(codes[:20], floats[:20], top_k=10, shortlist=30, engine="numba"),
                place_map.search(codes[:20], None, top_k=10),
                place_map.search(codes[:20], floats[:20], top_k=10, exhaustive=True),
            ])  # fmt: skip
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(one.rows, two.rows)
            np.testing.assert_array_equal(one.hamming, two.hamming)
            np.testing.assert_array_equal(one.similarity, two.similarity)
    np.testing.assert_array_equal(answers[0][0].rows, answers[0][1].rows)


def test_float_map_equals_the_published_loop(
    make_descriptors: Make, make_map: Make, draw_random: Make
) -> None:
    """faiss flat Hamming top-100, ordered by L2 distance of the float descriptors."""
    rng = np.random.default_rng(5)
    codes, floats = draw_random(rng, 700, 512, 64)
    stored = as_stored(floats)
    queries = rng.integers(0, 700, 25)
    query_codes = codes[queries] ^ (rng.random((25, 64)) < 0.1).astype(np.uint8)
    index = faiss.IndexBinaryFlat(512)
    index.add(codes)
    _, candidates = index.search(query_codes, 100)
    root = make_map(make_descriptors(codes, floats), rows_per_shard=300, descriptor_type="float32")
    with PlaceMap.open(root) as place_map:
        found = place_map.search(query_codes, floats[queries], top_k=100, shortlist=100)
    for q, rows in enumerate(candidates):
        l2 = np.linalg.norm(stored[rows] - floats[queries[q]], axis=1)
        assert found.rows[q].tolist() == rows[np.argsort(l2, kind="stable")].tolist()


def test_exhaustive_equals_all_sorted(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    rng = np.random.default_rng(6)
    codes, floats = draw_random(rng, 300, 64, 48)
    stored = as_stored(floats)
    root = make_map(make_descriptors(codes, floats), rows_per_shard=77, descriptor_type="float32")
    with PlaceMap.open(root) as place_map:
        found = place_map.search(codes[:9], floats[:9], top_k=20, exhaustive=True)
        staged = place_map.search(codes[:9], floats[:9], top_k=20, shortlist=300)
    expected = np.argsort(-(floats[:9] @ stored.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(found.rows, expected)
    distances = np.bitwise_count(codes[:9, None] ^ codes[None]).sum(axis=2)
    np.testing.assert_array_equal(found.hamming, np.take_along_axis(distances, expected, axis=1))
    # A shortlist of the whole map makes two-stage search exhaustive: the same photos, the same numbers.
    np.testing.assert_array_equal(found.rows, staged.rows)
    np.testing.assert_array_equal(found.similarity, staged.similarity)


def test_one_photo_and_no_photo(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 2, 512, 32)
    with PlaceMap.open(make_map(make_descriptors(codes[:1], floats[:1]))) as one:
        found = one.search(codes, floats, top_k=5)
        assert found.rows.tolist() == [[0, -1, -1, -1, -1]] * 2
        assert found.hamming[0].tolist() == [0, -1, -1, -1, -1]
        assert found.similarity[0, 0] == pytest.approx(1.0, abs=2e-3)  # 8 bits and float16
    with PlaceMap.open(make_map(make_descriptors(codes[:0], floats[:0]))) as empty:
        for exhaustive in (False, True):
            found = empty.search(codes, floats, top_k=3, exhaustive=exhaustive)
            assert found.rows.tolist() == [[-1] * 3] * 2
        assert empty.rows(["image_id", "cell"]).num_rows == 0
    with PlaceMap.open(make_map(make_descriptors(codes, floats))) as place_map:
        nobody = place_map.search(codes[:0], floats[:0], top_k=3)
        assert nobody.rows.shape == nobody.similarity.shape == (0, 3)


def test_model_without_float_branch(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(1), 30, 128, 16)
    with PlaceMap.open(make_map(make_descriptors(codes))) as place_map:
        found = place_map.search(codes[:4], None, top_k=2)
        assert found.rows[:, 0].tolist() == [0, 1, 2, 3]
        assert np.isnan(found.similarity).all()
        with pytest.raises(MapError, match="has no float descriptors"):
            place_map.search(codes[:4], floats[:4], top_k=2)
        with pytest.raises(MapError, match="exhaustive search compares float descriptors"):
            place_map.search(codes[:4], None, top_k=2, exhaustive=True)


def test_model_without_hash_branch(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(2), 30, 128, 16)
    with PlaceMap.open(make_map(make_descriptors(None, floats))) as place_map:
        found = place_map.search(None, floats[:4], top_k=2, exhaustive=True)
        assert found.rows[:, 0].tolist() == [0, 1, 2, 3]
        assert (found.hamming == -1).all()
        with pytest.raises(MapError, match="has no binary codes"):
            place_map.search(codes[:4], floats[:4], top_k=2)


def test_queries_that_do_not_fit_are_refused(
    make_descriptors: Make, make_map: Make, draw_random: Make
) -> None:
    codes, floats = draw_random(np.random.default_rng(2), 30, 128, 16)
    with PlaceMap.open(make_map(make_descriptors(codes, floats))) as place_map:
        for bad, message in [
            ((codes[:2, :8], floats[:2]), "codes of 128 bits"),
            ((codes[:2], floats[:2, :4]), "descriptors of 16 dimensions"),
            ((codes[:2], floats[:3]), "not of the same queries"),
            ((None, floats[:2]), "pass those of the queries"),
            ((codes[:2], floats[:2] * np.nan), "not finite"),
            ((codes[:2], np.full((2, floats.shape[1]), 1e39)), "not finite in float32"),
        ]:
            with pytest.raises(MapError, match=message):
                place_map.search(*bad, top_k=1)
        with pytest.raises(MapError, match="shortlist=5 is smaller than top_k=6"):
            place_map.search(codes[:2], floats[:2], top_k=6, shortlist=5)
        with pytest.raises(MapError, match="-1 is nobody"):
            place_map.records(np.array([3, -1]))
        place_map.check_model("a" * 64, 128, 16, "platform-56")
        with pytest.raises(MapError, match=r"model_id 'bbb' instead of 'aaa.*preprocessing 'x' instead of"):
            place_map.check_model("bbb", 128, 16, "x")


def test_records_are_the_photos_asked_for(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    rng = np.random.default_rng(4)
    codes, floats = draw_random(rng, 50, 64, 16)
    lat, lon = rng.uniform(-60, 60, 50), rng.uniform(-180, 180, 50)
    descriptors = make_descriptors(codes, floats, lat=lat, lon=lon)
    with PlaceMap.open(make_map(descriptors, rows_per_shard=8)) as place_map:
        rows = place_map.search(codes[:6], floats[:6], top_k=1).rows[:, 0]
        found = place_map.records(rows, ["image_id", "lat", "lon", "source_uri"])
    assert found["image_id"].to_pylist() == [f"photo-{i:06d}" for i in range(6)]
    assert found["lat"].to_pylist() == lat[:6].tolist()
    assert found["source_uri"].to_pylist() == [f"photos/{i}.jpg" for i in range(6)]


def test_the_shortlist_grows_with_the_map() -> None:
    assert [default_shortlist(n) for n in (1, 10**6, 10**6 + 1, 10**8)] == [100, 100, 400, 1000]


def test_comparing_in_place_gives_the_same_similarities(
    make_descriptors: Make, make_map: Make, draw_tied: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several shards, rows with padding, a shortlist that is not full."""
    codes, floats = draw_tied(np.random.default_rng(8), 90, 64, 100)
    results = {}
    for loaded in (True, False):
        monkeypatch.setattr(popcount_scan, "loaded", lambda loaded=loaded: loaded)
        with PlaceMap.open(make_map(make_descriptors(codes, floats), rows_per_shard=25)) as place_map:
            results[loaded] = place_map.search(codes[::11], floats[::11], top_k=7, shortlist=120)
    for name in ("rows", "hamming", "similarity"):
        np.testing.assert_array_equal(getattr(results[True], name), getattr(results[False], name))


def test_what_no_search_can_do_is_refused(make_descriptors: Make, make_map: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 20, 64, 8)
    with PlaceMap.open(make_map(make_descriptors(codes, floats))) as place_map:
        for asked, sentence in (
            ({"top_k": -1}, "top_k=-1: a whole number from 1"),
            ({"top_k": 5.0}, "top_k=5.0: a whole number"),
            ({"top_k": 2**62}, "a whole number from 1 to"),
            ({"top_k": 1, "shortlist": 0}, "shortlist=0: a whole number from 1"),
            ({"top_k": 1, "nprobe": 0}, "nprobe=0: a whole number from 1"),
            ({"top_k": 1, "mode": "fast"}, "mode='fast' is none of auto, exact, ivf"),
            ({"top_k": 1, "engine": "cuda"}, "engine='cuda' is none of auto"),
        ):
            with pytest.raises(MapError, match=sentence):
                place_map.search(codes[:2], floats[:2], **asked)
        with pytest.raises(MapError, match="codes are int64: pack their bits"):
            place_map.search(codes[:2].astype(np.int64), floats[:2], top_k=1)
    with pytest.raises(MapError, match="is closed: open it again"):
        place_map.search(codes[:2], floats[:2], top_k=1)
