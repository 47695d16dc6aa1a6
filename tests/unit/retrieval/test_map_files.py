"""Building resumes, publishing is atomic, and every damage is named and refused."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from placeray import storage
from placeray.errors import MapError, StorageError
from placeray.retrieval.build import build_shard, checksum, finished_shard
from placeray.retrieval.manifest import (
    current_version,
    find_build,
    fingerprint,
    read_map_manifest,
    versions,
)
from placeray.retrieval.mapped import MANY_FILES
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig, plan_map
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]


@pytest.fixture
def small(make_descriptors: Make, draw_random: Make) -> str:
    """Descriptors of 60 photos in three files, positions in one city, two photos without."""
    rng = np.random.default_rng(0)
    codes, floats = draw_random(rng, 60, 128, 32)
    lat, lon = rng.uniform(37.7, 37.8, 60), rng.uniform(-122.5, -122.4, 60)
    lat[[3, 40]] = np.nan
    return str(make_descriptors(codes, floats, lat=lat, lon=lon, num_files=3))


def files_of(root: str) -> dict[str, str]:
    return {
        uri.removeprefix(root): checksum(Path(uri)) for uri in storage.list_files(root) if "shards" in uri
    }


def test_rows_are_ordered_by_cell_then_id_and_complete(small: str, make_map: Make) -> None:
    with PlaceMap.open(make_map(small, rows_per_shard=25)) as place_map:
        table = place_map.rows(["image_id", "cell", "lat"])
        bbox = place_map.manifest["geo"]["bbox"]
        assert [entry["first_row"] for entry in place_map.manifest["shards"]] == [0, 25, 50]
    keys = list(zip(table["cell"].to_pylist(), table["image_id"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert len({name for _, name in keys}) == 60
    assert [name for cell, name in keys if cell == 2**64 - 1] == ["photo-000003", "photo-000040"]
    assert -122.5 < bbox[0] < bbox[2] < -122.4
    assert 37.7 < bbox[1] < bbox[3] < 37.8


def test_the_same_plan_gives_the_same_bytes_wherever_the_rows_came_from(small: str, make_map: Make) -> None:
    assert files_of(make_map(small, rows_per_shard=25)) == files_of(make_map(small, rows_per_shard=25))


def test_a_broken_build_continues(small: str, tmp_path: Path) -> None:
    root = str(tmp_path / "map")
    parts = plan_map(small, IndexConfig(rows_per_shard=25))["shards"]
    built = [build_shard(part, small, root) for part in parts]
    assert [finished_shard(part, root) for part in parts] == built
    folders = [tmp_path / "map" / "shards" / part["name"] for part in parts]
    (folders[0] / "shard.json").unlink()  # killed before the end
    os.truncate(folders[1] / "desc.i8", 100)  # a disk that was full
    before = files_of(root)
    assert [finished_shard(part, root) is not None for part in parts] == [False, False, True]
    for part in parts[:2]:
        build_shard(part, small, root)
    assert {k: v for k, v in files_of(root).items() if k in before and "desc.i8" not in k} == {
        k: v for k, v in before.items() if "desc.i8" not in k
    }
    assert [finished_shard(part, root) for part in parts] == built


def test_keys_change_with_model_settings_and_inputs(make_descriptors: Make, draw_random: Make) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 20, 128, 32)
    plans = [
        plan_map(make_descriptors(codes, floats), IndexConfig()),
        plan_map(make_descriptors(codes, floats, model_id="b" * 64), IndexConfig()),
        plan_map(make_descriptors(codes, floats), IndexConfig(descriptor_type="float16")),
        plan_map(make_descriptors(codes[::-1], floats), IndexConfig()),
    ]
    assert len({plan["build_key"] for plan in plans}) == 4
    assert len({plan["shards"][0]["key"] for plan in plans}) == 4
    again = plan_map(make_descriptors(codes, floats), IndexConfig())
    assert again["build_key"] == plans[0]["build_key"]
    assert again["shards"] == plans[0]["shards"]


def test_inputs_that_cannot_be_indexed_are_refused(
    small: str, make_descriptors: Make, draw_random: Make, tmp_path: Path
) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 20, 128, 32)
    with pytest.raises(MapError, match="multiple of 64"):
        plan_map(make_descriptors(codes[:, :12], floats), IndexConfig())
    with pytest.raises(StorageError, match=r"no manifest\.json"):
        plan_map(str(tmp_path), IndexConfig())
    part = plan_map(small, IndexConfig())["shards"][0]
    part["inputs"][0]["rows"] += 1
    with pytest.raises(MapError, match="changed since the map was planned"):
        build_shard(part, small, str(tmp_path / "map"))
    broken = make_descriptors(codes, np.where(np.arange(32) == 4, np.nan, floats))
    with pytest.raises(MapError, match="not finite"):
        build_shard(plan_map(broken, IndexConfig())["shards"][0], broken, str(tmp_path / "map"))


def test_a_photo_that_appears_twice_is_named(small: str) -> None:
    manifest = storage.read_manifest(small)
    manifest["files"].append({**manifest["files"][0], "path": "part/twice.parquet"})
    storage.write_bytes(
        storage.join(small, "part/twice.parquet"), storage.read_bytes(f"{small}/part/0.parquet")
    )
    storage.commit_manifest(small, manifest)
    with pytest.raises(MapError, match=r"photo photo-0000\d\d appears more than once"):
        plan_map(small, IndexConfig())


def test_versions_share_shards_and_readers_keep_theirs(small: str, make_map: Make) -> None:
    root = make_map(small, rows_per_shard=30)
    with PlaceMap.open(root) as old:
        make_map(small, root, rows_per_shard=20)
        make_map(small, root, rows_per_shard=30)
        assert versions(root) == ["v0001", "v0002", "v0003"]
        assert current_version(root) == "v0003"
        first, third = (read_map_manifest(root, name) for name in ("v0001", "v0003"))
        assert third["shards"] == first["shards"]
        assert third["parent_version"] == "v0002"
        assert find_build(root, first["build_key"]) == "v0003"
        assert find_build(root, "0" * 64) is None
        assert old.version == "v0001"
        codes = np.zeros((1, 16), dtype=np.uint8)
        with PlaceMap.open(root, version="v0002") as other:
            assert (
                other.search(codes, None, top_k=7).rows.tolist()
                == old.search(codes, None, top_k=7).rows.tolist()
            )
    (Path(root) / "CURRENT").write_text("v0002\n")
    with PlaceMap.open(root) as current:
        assert current.version == "v0002"


@pytest.mark.parametrize("name", ["codes.u8", "desc.i8", "desc_scale.f32", "rows.arrow"])
def test_missing_truncated_and_flipped_files_are_named(small: str, make_map: Make, name: str) -> None:
    root = make_map(small)
    file = next(Path(root).glob(f"shards/*/{name}"))
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(
        MapError, match=rf"{name} has {len(data) - 1} bytes, its shard\.json says {len(data)}"
    ):
        PlaceMap.open(root)
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with PlaceMap.open(root) as place_map, pytest.raises(MapError, match=f"{name} has other bytes than when"):
        place_map.verify()
    file.write_bytes(data)
    with PlaceMap.open(root) as place_map:
        place_map.verify()
    file.unlink()
    with pytest.raises(MapError, match=f"{name} is missing"):
        PlaceMap.open(root)


def test_newer_formats_unknown_features_and_damaged_manifests_are_refused(small: str, make_map: Make) -> None:
    root = make_map(small)
    file = Path(root) / "v0001" / "manifest.json"
    manifest = json.loads(file.read_text())
    for change, message in [
        ({"format_version": 2}, "has format 2, placeray .* reads up to 1"),
        ({"requires": ["removed-photos"]}, "needs removed-photos, which placeray .* does not know"),
        ({"format_version": None}, "does not say its format_version"),
        ({"counts": {"rows": 60}}, "is damaged: index_manifest/v1: counts: '.*' is a required"),
        ({"shards": [{**manifest["shards"][0], "shard": {}}]}, "is damaged: shard/v1"),
    ]:
        file.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(MapError, match=message):
            PlaceMap.open(root)
    del manifest["fingerprint"]
    later = {**manifest, "calibration": {"added": "by a later version"}}
    for written in (
        manifest,
        later,
        {**later, "fingerprint": fingerprint(later)},
    ):  # the first by an earlier version
        file.write_text(json.dumps(written))
        with PlaceMap.open(root) as place_map:
            assert len(place_map) == 60


CONTRADICTIONS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m["shards"][1].update(first_row=19), r"shard 00001-\w+ begins at row 19 instead of 20"),
    (lambda m: m["shards"][1].update(path=m["shards"][0]["path"]), "the path of shard 00001"),
    (lambda m: m["shards"].pop(), "it counts 60 rows, its shards have 40"),
    (lambda m: m["counts"].update(shards=4), "it counts 4 shards, its shards have 3"),
    (lambda m: m["counts"].update(removed=0), "it counts 0 removed, its shards have 1"),
    (lambda m: m["model"].update(code_bits=64), "code_bits of shard 00000-.* is 128, that of its model 64"),
    (lambda m: m["shards"][2]["shard"].update(descriptor_dim=0), "descriptor_dim of shard 00002"),
    (lambda m: m.update(requires=[]), "`requires` and its shards differ about tombstones"),
    (lambda m: worn(m).pop("xxh3_128"), "its tombstones or its index lack something"),
    (lambda m: worn(m).update(rows="1"), "of another type"),
    (lambda m: m.update(index={"type": "ivf"}), "its tombstones or its index lack something"),
    (lambda m: m.update(index={"type": "ivf", "files": ["a"], "quantizer": "a", "nprobe": 0}), "or nprobe"),
]


def worn(manifest: Any) -> Any:
    return next(entry["tombstones"] for entry in manifest["shards"] if "tombstones" in entry)


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(
    small: str, make_map: Make, change: Callable[[Any], Any], message: str
) -> None:
    """Without a fingerprint, as maps of an earlier placeray are."""
    root = make_map(small, rows_per_shard=20)
    run_update(root, UpdateConfig(remove=("photo-000007",)))
    file = Path(root) / "v0002" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["fingerprint"]
    file.write_text(json.dumps(manifest))
    assert read_map_manifest(root) == manifest
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(MapError, match=f"is damaged: .*{message}"):
        read_map_manifest(root)


def test_a_flipped_bit_of_a_manifest_is_refused_or_changes_nothing(small: str, make_map: Make) -> None:
    """With tombstones: one that is lost would bring a removed photo back."""
    root = make_map(small, rows_per_shard=20)
    run_update(root, UpdateConfig(remove=("photo-000007",)))
    file, before = Path(root) / "v0002" / "manifest.json", read_map_manifest(root)
    whole = file.read_bytes()
    for position in np.random.default_rng(0).integers(0, 8 * len(whole), 400).tolist():
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        try:
            found = read_map_manifest(root)
        except MapError:
            continue
        assert {name: found[name] for name in before if name in found} == {
            name: before[name] for name in before if name != "fingerprint" or name in found
        }


def test_damaged_records_are_written_again(small: str, make_map: Make) -> None:
    root = make_map(small)
    part = plan_map(small, IndexConfig())["shards"][0]
    record = next((Path(root) / "shards").glob("*/shard.json"))
    whole = json.loads(record.read_text())
    assert finished_shard(part, root) == whole
    for change in ({"key": None}, {"files": {}, "key": 1}, {"files": 3}, {"files": {"codes.u8": {}}}):
        record.write_text(json.dumps({**whole, **change}))
        assert finished_shard(part, root) is None
    record.write_text("[]")
    assert finished_shard(part, root) is None


def test_opening_a_map_raises_the_soft_limit_of_open_files(small: str, make_map: Make) -> None:
    root = make_map(small, rows_per_shard=2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        with PlaceMap.open(root) as place_map:
            assert len(place_map.manifest["shards"]) == 30
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(before[1], MANY_FILES), before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_open_files_are_no_damage(
    small: str, make_map: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left out for that, not even where damage may be."""
    root = make_map(small, rows_per_shard=2)
    monkeypatch.setattr("placeray.retrieval.shard.allow_many_files", lambda: None)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        with pytest.raises(StorageError, match=r"Too many open files.*ulimit -n"):
            PlaceMap.open(root, damaged="skip")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_rows_without_a_column_are_refused(small: str, make_map: Make) -> None:
    root = make_map(small)
    file = next((Path(root) / "shards").glob("*/rows.arrow"))
    file.write_bytes(file.read_bytes().replace(b"panorama_id", b"panorama_iD"))
    with pytest.raises(MapError, match="it has no columns panorama_id"):
        PlaceMap.open(root)


def test_rows_with_a_column_of_another_type_are_refused(small: str, make_map: Make) -> None:
    root = make_map(small)
    file = next((Path(root) / "shards").glob("*/rows.arrow"))
    table = pa.ipc.open_file(file.read_bytes()).read_all()
    place = table.schema.get_field_index("lat")
    with pa.ipc.new_file(file, table.set_column(place, "lat", table["lon"].cast(pa.string())).schema):
        pass
    manifest_file = Path(root) / "v0001" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    manifest["shards"][0]["shard"]["files"]["rows.arrow"]["bytes"] = file.stat().st_size
    del manifest["fingerprint"]
    manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(MapError, match="it has no columns lat of the right type"):
        PlaceMap.open(root)


def test_what_is_no_map_is_refused(small: str, make_map: Make, tmp_path: Path) -> None:
    with pytest.raises(MapError, match="is no finished map, it has no file CURRENT"):
        PlaceMap.open(str(tmp_path / "nothing"))
    root = make_map(small)
    (Path(root) / "CURRENT").write_text("../../etc\n")
    with pytest.raises(MapError, match="which is no version such as v0001"):
        PlaceMap.open(root)
    (Path(root) / "CURRENT").write_text("v0007\n")
    with pytest.raises(MapError, match=r"version v0007 of the map .* cannot be read"):
        PlaceMap.open(root)
