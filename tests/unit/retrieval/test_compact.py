"""Compaction and pruning change no answer, and readers never notice."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.errors import MapError
from placeray.retrieval.compact import compact
from placeray.retrieval.manifest import versions
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.prune import prune
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]


@pytest.fixture
def worn(make_descriptors: Make, make_map: Make, draw_random: Make) -> Any:
    """A map of 60 photos whose shards lie across one another; the 12th to 19th are removed."""
    rng = np.random.default_rng(0)
    codes, floats = draw_random(rng, 60, 64, 8)
    where = {"lat": rng.uniform(50, 51, 60), "lon": rng.uniform(7, 8, 60)}
    first = {name: values[:40] for name, values in where.items()}
    root = make_map(make_descriptors(codes[:40], floats[:40], **first), rows_per_shard=20)
    last = {name: values[40:] for name, values in where.items()}
    names = {"image_id": [f"photo-{row:06d}" for row in range(40, 60)]}
    folder = make_descriptors(codes[40:], floats[40:], more=names, **last)
    gone = tuple(f"photo-{row:06d}" for row in range(12, 20))
    run_update(root, UpdateConfig(remove=gone), folder)
    return root, codes, floats


def answers(root: str, codes: Any, floats: Any) -> Any:
    """(ids, distances, similarities) of all searches."""
    with PlaceMap.open(root) as place_map:
        place_map.verify()
        found = []
        for asked in ((codes, floats, False), (codes, None, False), (codes, floats, True)):
            result = place_map.search(asked[0], asked[1], top_k=5, exhaustive=asked[2])
            ids = place_map.records(result.rows.ravel(), ["image_id"])["image_id"].to_pylist()
            found.append((ids, result.hamming, result.similarity))
        return found


def test_compaction_changes_no_answer(worn: Any) -> None:
    root, codes, floats = worn
    before = answers(root, codes, floats)
    assert compact(root)["version"] == "v0003"
    assert compact(root)["version"] == "v0003"  # nothing left to do
    for old, new in zip(before, answers(root, codes, floats), strict=True):
        # Random codes tie, and ties go by row, which compaction changes: compare what is not tied.
        np.testing.assert_array_equal(old[1], new[1])
        if old is not before[1]:
            assert old[0] == new[0]
            np.testing.assert_array_equal(old[2], new[2])
    with PlaceMap.open(root) as place_map:
        assert (len(place_map), place_map.live, place_map.manifest["requires"]) == (52, None, [])
        keys = place_map.rows(["cell", "image_id"]).to_pylist()
        assert keys == sorted(keys, key=lambda row: (row["cell"], row["image_id"]))


def test_prune_keeps_what_is_needed_or_young(worn: Any) -> None:
    root, codes, floats = worn
    with PlaceMap.open(root, version="v0001") as reader:
        compact(root)
        before = answers(root, codes, floats)
        leftover = Path(root) / "shards" / "unfinished"
        leftover.mkdir()
        done = prune(root, 1)
        assert (done.versions, versions(root)) == (["v0001", "v0002"], ["v0003"])
        assert len([path for path in done.files if path.startswith("shards/")]) == 3
        assert leftover.exists()
        assert prune(root, 1, force=True).files == ["shards/unfinished"]
        assert (reader.search(codes[:40], floats[:40], top_k=1).hamming == 0).all()
    for old, new in zip(before, answers(root, codes, floats), strict=True):
        assert old[0] == new[0]
    with pytest.raises(MapError, match="there must be one to keep"):
        prune(root, 0)


def test_a_reader_never_misses_an_unchanged_photo(
    worn: Any, make_descriptors: Make, draw_random: Make
) -> None:
    root, codes, floats = worn
    stop, opened, faults = threading.Event(), set(), []
    new_codes, new_floats = draw_random(np.random.default_rng(9), 12, 64, 8)
    unchanged = [f"photo-{row:06d}" for row in range(20, 40)]

    def read() -> None:
        while not stop.is_set():
            try:
                with PlaceMap.open(root, num_threads=1) as place_map:
                    opened.add(place_map.version)
                    asked = {"codes": codes[20:40], "descriptors": floats[20:40], "top_k": 1}
                    for found in (place_map.search(**asked), place_map.search(**asked, exhaustive=True)):
                        ids = place_map.records(found.rows[:, 0], ["image_id"])["image_id"].to_pylist()
                        if ids != unchanged or (found.hamming != 0).any():
                            faults.append(f"{place_map.version} misses a photo")
            except Exception as error:  # whatever it is, it is a fault
                faults.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for row in range(12):
            name = {"image_id": [f"photo-{60 + row:06d}"]}
            at = {"lat": np.array([50 + row / 12]), "lon": np.array([7.5])}
            added = make_descriptors(new_codes[row : row + 1], new_floats[row : row + 1], more=name, **at)
            run_update(root, UpdateConfig(), added)
            run_update(root, UpdateConfig(remove=(f"photo-{row:06d}",)))
            if row % 3 == 2:
                compact(root, max_dead=0.0)
                prune(root, 1, force=True)
    finally:
        stop.set()
        reader.join()
    assert not faults
    assert len(opened) > 2
    with PlaceMap.open(root) as place_map:
        found = place_map.search(new_codes, new_floats, top_k=1)
        assert (found.hamming == 0).all()
        assert place_map.num_live == 60 - 8


NUMBERS = st.integers(0, 11)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(NUMBERS, min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("remove"), st.lists(NUMBERS, min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("compact"), st.just([])),
    st.tuples(st.just("prune"), st.just([])),
)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(STEPS, max_size=6), seed=st.integers(0, 2**16))
def test_a_map_equals_a_dict_after_any_changes(
    steps: Any, seed: int, make_descriptors: Make, make_map: Make
) -> None:
    """Photos 0 to 11 come, go and are replaced; the twin is a dict of their codes."""
    rng = np.random.default_rng(seed)

    def describe(numbers: list[int]) -> tuple[str, dict[str, Any]]:
        codes = rng.integers(0, 256, (len(numbers), 8), dtype=np.uint8)
        names = [f"photo-{number:06d}" for number in numbers]
        where = {"lat": rng.uniform(50, 51, len(numbers)), "lon": rng.uniform(7, 8, len(numbers))}
        return make_descriptors(codes, more={"image_id": names}, **where), dict(
            zip(names, codes, strict=True)
        )

    folder, twin = describe([0, 1, 2, 3, 4])
    root = make_map(folder, rows_per_shard=3)
    check_twin(root, twin, rng)
    for kind, numbers in steps:
        if kind == "add":
            folder, new = describe(numbers)
            run_update(root, UpdateConfig(replace=True), folder)
            twin |= new
        elif kind == "remove":
            names = tuple(f"photo-{number:06d}" for number in numbers)
            run_update(root, UpdateConfig(remove=names, ignore_unknown=True))
            twin = {name: code for name, code in twin.items() if name not in names}
        elif kind == "compact":
            compact(root, max_dead=0.0, max_overlap=0.0)
        else:
            prune(root, 1, force=True)
        check_twin(root, twin, rng)


def check_twin(root: str, twin: dict[str, Any], rng: np.random.Generator) -> None:
    """The map has the photos of the twin, each once, and the nearest by code is the twin's nearest."""
    queries = rng.integers(0, 256, (3, 8), dtype=np.uint8)
    with PlaceMap.open(root, num_threads=1, verify=True) as place_map:
        ids = np.array(place_map.rows(["image_id"])["image_id"].to_pylist())
        alive = ids if place_map.live is None else ids[place_map.live]
        assert sorted(alive.tolist()) == sorted(twin)
        assert place_map.num_live == len(twin)
        found = place_map.search(queries, None, top_k=1)
    for query, rows, distance in zip(queries, found.rows, found.hamming, strict=True):
        bits = {name: int(np.unpackbits(code ^ query).sum()) for name, code in twin.items()}
        if not bits:
            assert rows.tolist() == [-1]
            continue
        assert distance.tolist() == [min(bits.values())] == [bits[str(ids[rows[0]])]]
