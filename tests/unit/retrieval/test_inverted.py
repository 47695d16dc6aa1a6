"""Inverted lists: every photo is in one list, a search of some lists equals a slow one, calibration keeps its word."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_map import give_lists

from placeray.errors import MapError
from placeray.retrieval import inverted, map_lists, popcount_scan
from placeray.retrieval.calibration import choose, lists_needed
from placeray.retrieval.codes import hamming
from placeray.retrieval.compact import compact
from placeray.retrieval.lists import open_lists, verify
from placeray.retrieval.map_lists import wanted_lists
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.quantizer import nearest, train
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]


def draw_streets(rng: np.random.Generator, places: int, bits: int = 128) -> Any:
    """Codes of 5 photos of each place, an eighth of whose bits differ."""
    centres = rng.integers(0, 256, (places, bits // 8), dtype=np.uint8)
    flips = rng.random((places * 5, bits)) < 0.125
    return np.repeat(centres, 5, axis=0) ^ np.packbits(flips, axis=1)


def test_training_is_deterministic_and_fills_every_list() -> None:
    codes = draw_streets(np.random.default_rng(0), 100)
    quantizer = train(codes, 40)
    again = train(codes, 40)
    assert all((a == b).all() for a, b in zip(quantizer, again, strict=True))
    assert len(quantizer.centroids) == 40 == quantizer.starts[-1]
    sizes = np.bincount(quantizer.assign(codes), minlength=40)
    assert sizes.sum() == 500
    assert (sizes > 0).sum() >= 35
    few = train(np.repeat(codes[:3], 9, axis=0), 40)
    assert len(few.centroids) == 3  # no more lists than different codes


def test_assignment_is_the_same_without_numba(monkeypatch: pytest.MonkeyPatch, draw_tied: Make) -> None:
    centroids, _ = draw_tied(np.random.default_rng(1), 200, 128, 2)
    codes, _ = draw_tied(np.random.default_rng(2), 300, 128, 2)
    expected = nearest(centroids, codes)
    monkeypatch.setattr(popcount_scan, "available", lambda: False)
    np.testing.assert_array_equal(nearest(centroids, codes), expected)


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("num_queries", [1, 7])
def test_a_search_of_some_lists_equals_the_twin(
    make_descriptors: Make, make_map: Make, monkeypatch: pytest.MonkeyPatch, numba: bool, num_queries: int
) -> None:
    """For 1, 3 and 17 shards: all rows whose list is among the nearest, by (distance, row)."""
    codes = draw_streets(np.random.default_rng(3), 80)
    queries = codes[::61][:num_queries] ^ np.uint8(5)
    if not numba:
        monkeypatch.setattr(popcount_scan, "available", lambda: False)
    monkeypatch.setattr(popcount_scan, "_ROOM", 8)  # so that candidates are cut down again and again
    monkeypatch.setattr(inverted, "_NEAREST_FIRST", 3)
    monkeypatch.setattr(
        map_lists, "ROWS_OF_RUN", 200
    )  # the shards of 134 rows are three runs, those of 24 three, too
    seen = []
    for rows_per_shard in (400, 134, 24):
        root = make_map(make_descriptors(codes), rows_per_shard=rows_per_shard)
        give_lists(root, IndexConfig(lists=30))
        with PlaceMap.open(root, num_threads=2) as place_map:
            assert place_map._lists is not None
            quantizer = place_map._lists.quantizer
            lists, distance = quantizer.assign(codes), hamming(queries, codes)
            for nprobe in (1, 4, 30, 99):
                found = place_map.search(queries, None, top_k=20, nprobe=nprobe)
                order = np.argsort(hamming(queries, quantizer.centroids), axis=1, kind="stable")[:, :nprobe]
                for q in range(len(queries)):
                    rows = np.flatnonzero(np.isin(lists, order[q]))
                    rows = rows[np.lexsort((rows, distance[q, rows]))][:20]
                    assert found.rows[q].tolist() == [*rows.tolist(), *[-1] * (20 - len(rows))]
                    assert found.hamming[q, : len(rows)].tolist() == distance[q, rows].tolist()
            exact = place_map.search(queries, None, top_k=20, mode="exact")
            assert (found.rows == exact.rows).all()  # all lists are all rows
            seen.append(place_map.search(queries, None, top_k=20, nprobe=4).rows)
    assert all((rows == seen[0]).all() for rows in seen)


def test_calibration_reaches_its_hit_rate(make_descriptors: Make, make_map: Make) -> None:
    """Held-out queries with positions: what the manifest promises is what a search of that many lists finds."""
    rng = np.random.default_rng(4)
    codes = draw_streets(rng, 300)
    lat = np.repeat(47 + np.arange(300) * 0.001, 5)
    descriptors = make_descriptors(codes, lat=lat, lon=np.full(1500, 8.0))
    places = rng.permutation(300)[:100]
    asked = codes[places * 5] ^ np.packbits(rng.random((100, 128)) < 0.15, axis=1)
    queries = make_descriptors(asked, lat=lat[places * 5], lon=np.full(100, 8.0))
    root = make_map(descriptors, rows_per_shard=400)
    manifest = give_lists(root, IndexConfig(lists=60, hit_rate=0.95), queries)
    index = manifest["index"]
    assert 1 < index["nprobe"] < 60
    assert index["calibration"]["hit_rate"] >= 0.95
    with PlaceMap.open(root) as place_map:
        place_of = np.round((place_map.rows(["lat"])["lat"].to_numpy() - 47) / 0.001).astype(int)
        exact = place_map.search(asked, None, top_k=100, mode="exact").rows
        some = place_map.search(asked, None, top_k=100).rows
    answered = (place_of[exact] == places[:, None]).any(axis=1)
    still = (np.where(some >= 0, place_of[some], -1) == places[:, None]).any(axis=1)
    assert index["calibration"]["num_queries"] == answered.sum()
    assert still[answered].mean() >= index["calibration"]["hit_rate"] >= 0.95
    fewer = lists_needed(np.array([[3, 0], [9, 1]]), np.array([[True, False], [False, False]]))
    assert fewer.tolist() == [4, np.inf]
    assert choose(fewer, 0.99, num_lists=9, shortlist=2, queries="two").nprobe == 4


def test_the_build_resumes_and_damage_is_named(make_descriptors: Make, make_map: Make) -> None:
    codes = draw_streets(np.random.default_rng(5), 60)
    root = make_map(make_descriptors(codes), rows_per_shard=100)
    first = give_lists(root, IndexConfig(lists=20))
    folder = Path(root) / first["index"]["files"][1]
    written = (folder / "codes.u8").stat().st_mtime_ns
    assert give_lists(root, IndexConfig(lists=20))["index"] == first["index"]
    assert (folder / "codes.u8").stat().st_mtime_ns == written  # nothing is done twice
    lists = open_lists(folder)
    assert sorted(lists.order.tolist()) == list(range(300))
    with PlaceMap.open(root) as place_map:
        of_row = place_map._lists.quantizer.assign(codes)  # type: ignore[union-attr]
    for number, (start, end) in enumerate(pairwise(lists.offsets.tolist())):
        rows = lists.order[start:end]
        assert rows.tolist() == np.flatnonzero(of_row == number).tolist()  # ascending in each list
        assert (lists.codes[start:end] == codes[rows]).all()
    damaged = bytearray((folder / "order.u32").read_bytes())
    damaged[0] ^= 1
    (folder / "order.u32").write_bytes(bytes(damaged))
    with pytest.raises(MapError, match=r"order\.u32 has other bytes"):
        verify(folder)
    (folder / "order.u32").write_bytes(b"")
    with pytest.raises(MapError, match=r"order\.u32 has 0 bytes"):
        PlaceMap.open(root)
    (folder / "lists.json").unlink()
    with pytest.raises(MapError, match=r"lists\.json cannot be read"):
        PlaceMap.open(root)


def test_updates_keep_the_lists_complete(make_descriptors: Make, make_map: Make, tmp_path: Path) -> None:
    """After adding, removing and compacting, all lists together are all photos, and removed ones are in no answer."""
    rng = np.random.default_rng(7)
    codes = draw_streets(rng, 80)
    lat, lon = np.repeat(rng.uniform(47, 48, 80), 5), np.repeat(rng.uniform(8, 9, 80), 5)
    names = [f"photo-{row:06d}" for row in range(400)]

    def some(rows: slice) -> str:
        return make_descriptors(codes[rows], lat=lat[rows], lon=lon[rows], more={"image_id": names[rows]})

    root = make_map(some(slice(0, 300)), rows_per_shard=110)
    first = give_lists(root, IndexConfig(lists=25))
    added = run_update(root, UpdateConfig(remove=tuple(names[10:40])), some(slice(300, 400)))
    assert added["index"]["quantizer"] == first["index"]["quantizer"]
    assert added["index"]["runs"][0] == first["index"]["runs"][0]  # nothing old is written again
    assert [run["first_row"] for run in added["index"]["runs"]] == [0, 300]
    assert added["index"]["calibration"]["rows"] == 370  # measured again: 300 photos have become 370
    few = run_update(root, UpdateConfig(remove=tuple(names[40:45])))
    assert few["index"] == added["index"]
    fewer = run_update(
        str(shutil.copytree(root, tmp_path / "other")), UpdateConfig(remove=tuple(names[45:200]))
    )
    assert fewer["index"]["calibration"]["rows"] == 210  # measured again where photos only go, too
    for manifest in (few, compact(root)):
        with PlaceMap.open(root, version=manifest["version"]) as place_map:
            ids = np.array(place_map.rows(["image_id"])["image_id"].to_pylist())
            exact = place_map.search(codes[::7], None, top_k=15, mode="exact")
            listed = place_map.search(codes[::7], None, top_k=15, mode="ivf", nprobe=99)
            np.testing.assert_array_equal(exact.rows, listed.rows)
            assert not set(ids[listed.rows.ravel()]) & set(names[10:45])
            assert place_map.search(codes[::7], None, top_k=1, mode="ivf").rows.min() >= 0
    with PlaceMap.open(root) as place_map:
        assert place_map.live is None
        assert len(place_map) == 365


def test_lists_are_refused_where_there_are_none(
    make_descriptors: Make, make_map: Make, draw_random: Make
) -> None:
    codes, floats = draw_random(np.random.default_rng(6), 20, 64, 8)
    with (
        PlaceMap.open(make_map(make_descriptors(codes, floats))) as place_map,
        pytest.raises(MapError, match="has no inverted lists"),
    ):
        place_map.search(codes, floats, top_k=1, mode="ivf")
    assert wanted_lists(IndexConfig(), {"counts": {"rows": 9}, "model": {"code_bits": 64}}) == 0
    assert wanted_lists(IndexConfig(), {"counts": {"rows": 10_000_000}, "model": {"code_bits": 64}}) == 50_596
    assert wanted_lists(IndexConfig(lists=7), {"counts": {"rows": 9}, "model": {"code_bits": 0}}) == 0
