"""A map that is kept current: versions share shards, removed photos never answer, two writers lose nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placeray.errors import MapError
from placeray.retrieval import manifest as manifests
from placeray.retrieval.manifest import current_version, read_map_manifest, versions
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.update import UpdateConfig, finish_update, plan_update, run_update

Make = Callable[..., Any]


@pytest.fixture
def city(make_descriptors: Make, make_map: Make, draw_random: Make) -> Any:
    """A map of 50 photos in 3 shards, with its codes and floats."""
    codes, floats = draw_random(np.random.default_rng(0), 50, 64, 8)
    return make_map(make_descriptors(codes, floats), rows_per_shard=20), codes, floats


def extra(make_descriptors: Make, draw_random: Make, first: int, count: int, **more: Any) -> Any:
    """Descriptors of photos `first` and following."""
    codes, floats = draw_random(np.random.default_rng(first + 1), count, 64, 8)
    names = [f"photo-{row:06d}" for row in range(first, first + count)]
    return make_descriptors(codes, floats, more={"image_id": names}, **more), codes, floats


def names(place_map: PlaceMap, rows: Any) -> list[str]:
    return place_map.records(rows[rows >= 0], ["image_id"])["image_id"].to_pylist()


def test_added_photos_are_found_and_old_shards_untouched(
    city: Any, make_descriptors: Make, draw_random: Make
) -> None:
    root, codes, floats = city
    before = {path: path.stat().st_mtime_ns for path in (Path(root) / "shards").rglob("*") if path.is_file()}
    folder, new_codes, new_floats = extra(make_descriptors, draw_random, 50, 9)
    with PlaceMap.open(root) as old:
        assert run_update(root, UpdateConfig(), folder)["version"] == "v0002"
        assert run_update(root, UpdateConfig(), folder)["version"] == "v0002"  # the same again
        assert versions(root) == ["v0001", "v0002"]
        assert (old.version, len(old)) == ("v0001", 50)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    with PlaceMap.open(root) as place_map:
        place_map.verify()
        assert (len(place_map), place_map.num_live, place_map.live) == (59, 59, None)
        found = place_map.search(np.vstack([codes, new_codes]), np.vstack([floats, new_floats]), top_k=1)
        assert found.rows[:, 0].tolist() == list(range(59))
        assert (found.hamming == 0).all()


@pytest.mark.parametrize("how", ["two stages", "codes", "exhaustive"])
def test_removed_photos_never_answer(city: Any, how: str) -> None:
    root, codes, floats = city
    gone = [0, 7, 19, 20, 49]
    manifest = run_update(root, UpdateConfig(remove=tuple(f"photo-{row:06d}" for row in gone)))
    assert manifest["requires"] == ["tombstones"]
    with PlaceMap.open(root) as place_map:
        assert (len(place_map), place_map.num_live) == (50, 45)
        assert place_map.live is not None
        assert np.flatnonzero(~place_map.live).tolist() == gone
        found = place_map.search(
            None if how == "exhaustive" else codes,
            None if how == "codes" else floats,
            top_k=50,
            shortlist=50 if how == "two stages" else None,
            exhaustive=how == "exhaustive",
        )
        kept = sorted(set(range(50)) - set(gone))
        assert all(sorted(row[row >= 0].tolist()) == kept for row in found.rows)
        assert found.rows[kept, 0].tolist() == kept


def test_replace_and_remove_at_once(city: Any, make_descriptors: Make, draw_random: Make) -> None:
    root, codes, _ = city
    folder, new_codes, _ = extra(make_descriptors, draw_random, 45, 10)
    with pytest.raises(MapError, match="has 5 of the added photos already, such as photo-0000"):
        run_update(root, UpdateConfig(), folder)
    wanted = UpdateConfig(replace=True, remove=("photo-000003", "photo-000046"))
    assert run_update(root, wanted, folder)["counts"] == {**read_map_manifest(root)["counts"], "removed": 6}
    with PlaceMap.open(root) as place_map:
        assert (len(place_map), place_map.num_live) == (60, 54)
        found = place_map.search(new_codes, None, top_k=1)
        assert names(place_map, found.rows[:, 0]) == [f"photo-{row:06d}" for row in range(45, 55)]
        assert (found.hamming == 0).all()
        assert (place_map.search(codes[45:50], None, top_k=1).hamming > 0).all()
    assert run_update(root, UpdateConfig(remove=("photo-000004",)))["counts"]["removed"] == 7


def test_what_does_not_fit_is_refused(
    city: Any, make_descriptors: Make, draw_random: Make, tmp_path: Path
) -> None:
    root, _, _ = city
    other, _, _ = extra(make_descriptors, draw_random, 50, 3, model_id="b" * 64)
    with pytest.raises(MapError, match="does not fit the map: model_id"):
        run_update(root, UpdateConfig(), other)
    with pytest.raises(MapError, match="changes nothing"):
        run_update(root, UpdateConfig())
    with pytest.raises(MapError, match="lacks 1 of the 2 photos to remove, such as nobody"):
        run_update(root, UpdateConfig(remove=("nobody", "photo-000001")))
    assert versions(root) == ["v0001"]
    listed = tmp_path / "gone.csv"
    listed.write_text("image_id,why\nphoto-000002,blurred\nnobody,unknown\n")
    assert (
        run_update(root, UpdateConfig(remove_file=str(listed), ignore_unknown=True))["counts"]["removed"] == 1
    )
    tombstone = next((Path(root) / "tombstones").iterdir())
    tombstone.write_bytes(b"\0\0\0\0")
    with pytest.raises(MapError, match="has other bytes"):
        PlaceMap.open(root)


def test_the_second_of_two_writers_is_told(city: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, _ = city
    first = plan_update(root, UpdateConfig(remove=("photo-000001",)))
    second = plan_update(root, UpdateConfig(remove=("photo-000002",)))
    finish_update(first, [])
    with pytest.raises(MapError, match="another update published v0002 meanwhile: run it again"):
        finish_update(second, [])
    assert run_update(root, UpdateConfig(remove=("photo-000002",)))["counts"]["removed"] == 2
    assert current_version(root) == "v0003"
    assert not list(Path(root).rglob("*.tmp-*"))
    monkeypatch.setattr(manifests, "KNOWN_FEATURES", frozenset())
    with pytest.raises(MapError, match="needs tombstones, which placeray"):
        PlaceMap.open(root)


def test_a_writer_killed_before_current_is_completed(city: Any) -> None:
    root, _, _ = city
    wanted = UpdateConfig(remove=("photo-000001",))
    run_update(root, wanted)
    (Path(root) / "CURRENT").write_text("v0001\n")
    assert run_update(root, wanted)["version"] == "v0002"
    assert (versions(root), current_version(root)) == (["v0001", "v0002"], "v0002")


def test_files_of_ids_that_cannot_be_read_are_named(city: Any, tmp_path: Path) -> None:
    root, _, _ = city
    empty, ragged, numbers = tmp_path / "empty.csv", tmp_path / "ragged.csv", tmp_path / "numbers.parquet"
    twice = tmp_path / "twice.csv"
    twice.write_text("image_id,image_id\nphoto-000001,photo-000002\n")
    empty.write_text("")
    ragged.write_text("image_id\nphoto-000001,x\n")
    pq.write_table(pa.table({"image_id": [1, 2]}), numbers)
    for file, reason in (
        (empty, "Empty CSV"),
        (ragged, "Expected 1 columns"),
        (numbers, "int64: ids are text"),
        (twice, "2 columns image_id"),
    ):
        with pytest.raises(MapError, match=f"{file.name}.*{reason}"):
            run_update(root, UpdateConfig(remove_file=str(file)))
    assert versions(root) == ["v0001"]


def test_a_byte_order_mark_is_no_part_of_an_id(city: Any, tmp_path: Path) -> None:
    file = tmp_path / "gone.txt"
    file.write_text("\ufeffphoto-000001\n")
    assert plan_update(city[0], UpdateConfig(remove_file=str(file))).removed == 1


def test_ids_may_be_categories_or_all_null(city: Any, tmp_path: Path) -> None:
    file = tmp_path / "gone.parquet"
    pq.write_table(pa.table({"image_id": pa.nulls(2)}), file)
    assert plan_update(city[0], UpdateConfig(remove=("photo-000001",), remove_file=str(file))).removed == 1
    pq.write_table(pa.table({"image_id": pa.array(["photo-000001"]).dictionary_encode()}), file)
    assert plan_update(city[0], UpdateConfig(remove_file=str(file))).removed == 1
