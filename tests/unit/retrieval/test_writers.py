"""Several writers of one map at once: what is published stays as it is, and what is published is whole."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.errors import MapError
from placeray.retrieval import lists
from placeray.retrieval import prune as prune_module
from placeray.retrieval import shard as shard_module
from placeray.retrieval.build import build_shard
from placeray.retrieval.compact import compact
from placeray.retrieval.locks import alone
from placeray.retrieval.manifest import current_version, find_build, read_map_manifest, versions
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.prune import prune
from placeray.retrieval.publishing import missing_files, publish_whole
from placeray.retrieval.quantizer import train
from placeray.retrieval.update import UpdateConfig, finish_update, plan_update, run_update

Make = Callable[..., Any]


@pytest.fixture
def city(make_descriptors: Make, make_map: Make, draw_random: Make) -> tuple[str, str]:
    """A map of 20 photos, and the descriptors of 9 others."""
    codes, floats = draw_random(np.random.default_rng(0), 29, 64, 8)
    more = [f"photo-{row:06d}" for row in range(20, 29)]
    root = make_map(make_descriptors(codes[:20], floats[:20]), rows_per_shard=20)
    return root, make_descriptors(codes[20:], floats[20:], more={"image_id": more})


def files_of(root: str) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of the shards."""
    found = (path for path in (Path(root) / "shards").rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_the_same_update_planned_twice_leaves_published_shards_alone(city: tuple[str, str]) -> None:
    root, folder = city
    first, second = plan_update(root, UpdateConfig(), folder), plan_update(root, UpdateConfig(), folder)
    finish_update(first, [build_shard(part, folder, root) for part in first.parts])
    before = files_of(root)
    with PlaceMap.open(root) as place_map:
        shards = [build_shard(part, folder, root) for part in second.parts]
        assert files_of(root) == before
        with suppress(MapError):  # told to run again, unless both were published in the same second
            finish_update(second, shards)
        assert versions(root) == ["v0001", "v0002"]
        place_map.verify()


def test_writers_of_one_shard_wait_for_each_other(city: tuple[str, str]) -> None:
    root, folder = city
    part = plan_update(root, UpdateConfig(), folder).parts[0]
    found: list[Any] = []
    writers = [
        threading.Thread(target=lambda: found.append(build_shard(part, folder, root))) for _ in range(4)
    ]
    with alone(root, part["name"]):
        for writer in writers:
            writer.start()
        writers[0].join(0.2)
        assert not found
    for writer in writers:
        writer.join()
    assert len(found) == 4
    assert all(shard == found[0] for shard in found)
    assert run_update(root, UpdateConfig(), folder)["shards"][-1]["shard"] == found[0]
    assert not list((Path(root) / ".locks").iterdir())


def test_a_shard_written_again_keeps_the_bytes_that_are_mapped(city: tuple[str, str]) -> None:
    root, folder = city
    part = plan_update(root, UpdateConfig(), folder).parts[0]
    build_shard(part, folder, root)
    codes = Path(root) / "shards" / part["name"] / "codes.u8"
    mapped, content = np.memmap(codes, np.uint8, mode="r"), codes.read_bytes()
    (codes.parent / "rows.arrow").unlink()  # not whole any more
    build_shard(part, folder, root)
    assert mapped.tobytes() == content == codes.read_bytes()


@pytest.mark.parametrize("how", ["old", "freed"])
def test_what_was_pruned_under_an_update_is_not_published(city: tuple[str, str], how: str) -> None:
    root, folder = city
    if how == "freed":  # the photos were there before, so their shard goes with the versions that used it
        run_update(root, UpdateConfig(), folder)
        run_update(root, UpdateConfig(remove=tuple(f"photo-{row:06d}" for row in range(20, 29))))
        compact(root, max_dead=0.0)
    plan = plan_update(root, UpdateConfig(), folder)
    shards = [build_shard(part, folder, root) for part in plan.parts]
    if how == "old":  # a long build
        for path in (Path(root) / "shards" / plan.parts[0]["name"], *Path(root).rglob("shards/*/*")):
            os.utime(path, (1, 1))
    prune(root, 1)
    before = versions(root)
    with pytest.raises(MapError, match=f"{plan.parts[0]['name']} is missing .* run it again"):
        finish_update(plan, shards)
    assert versions(root) == before
    run_update(root, UpdateConfig(), folder)
    with PlaceMap.open(root, verify=True) as place_map:
        assert place_map.num_live == 29


def test_tombstones_that_were_pruned_under_an_update_are_not_published(city: tuple[str, str]) -> None:
    root, _ = city
    manifest = run_update(root, UpdateConfig(remove=("photo-000003",)))
    path = Path(root) / manifest["shards"][0]["tombstones"]["path"]
    data = path.read_bytes()
    assert missing_files(root, manifest) == []
    for content in (b"", data[:-1], data + b"0000"):
        path.write_bytes(content)
        assert missing_files(root, manifest) == [str(path.relative_to(root))]
    path.unlink()
    with pytest.raises(MapError, match=r"\.u32 is missing or not whole, .* run it again"):
        publish_whole(root, manifest)
    assert versions(root) == ["v0001", "v0002"]


@pytest.mark.parametrize("force", [False, True])
def test_prune_beside_a_writer_that_renames_its_file(
    city: tuple[str, str], force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = city
    run_update(root, UpdateConfig(remove=("photo-000003",)))
    draft = Path(root) / "tombstones" / "00000-x.u32.tmp-0123456789ab"
    draft.write_bytes(b"0000")
    listed = prune_module._candidates

    def then_renamed(folder: Path) -> list[Path]:
        found = listed(folder)
        draft.unlink()
        return found

    monkeypatch.setattr(prune_module, "_candidates", then_renamed)
    assert prune(root, 1, force=force).versions == ["v0001"]
    with PlaceMap.open(root, verify=True) as place_map:
        assert place_map.num_live == 19


def test_a_version_pruned_while_it_is_verified_gives_way_to_the_next(
    city: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = city
    read, calls = shard_module.checksum, iter([True])

    def slow(path: Path) -> str:
        if next(calls, False):
            run_update(root, UpdateConfig(remove=("photo-000003",)))
            compact(root, max_dead=0.0)
            prune(root, 1)
        return read(path)

    monkeypatch.setattr(shard_module, "checksum", slow)
    with PlaceMap.open(root, verify=True) as place_map:
        assert (place_map.version, len(place_map)) == ("v0003", 19)


def test_files_that_go_before_they_are_verified_are_named(tmp_path: Path) -> None:
    codes = np.arange(128, dtype=np.uint8).reshape(16, 8)
    lists.save_quantizer(tmp_path, train(codes, 4))
    lists.verify(tmp_path)
    (tmp_path / "centroids.u8").unlink()
    with pytest.raises(MapError, match=r"centroids\.u8 cannot be read \(No such file or directory\)"):
        lists.verify(tmp_path)


def test_versions_do_not_look_at_shards(city: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = city
    (Path(root) / "v0002").mkdir()  # a writer at work
    (Path(root) / "v0003x").mkdir()
    (Path(root) / "v0003x" / "manifest.json").write_text("{}")
    monkeypatch.delattr("placeray.storage.list_files")  # it would fail where a folder goes meanwhile
    assert versions(root) == ["v0001"]
    assert versions(f"{root}/nothing") == versions(f"{root}/CURRENT") == []


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.sampled_from(["remove", "compact", "prune"]), max_size=6))
def test_a_build_is_found_after_any_changes(make_descriptors: Make, make_map: Make, steps: list[str]) -> None:
    codes = np.arange(160, dtype=np.uint8).reshape(20, 8)
    root = make_map(make_descriptors(codes, None), rows_per_shard=10)
    build_key = read_map_manifest(root)["build_key"]
    for number, step in enumerate(steps):
        if step == "remove":
            run_update(root, UpdateConfig(remove=(f"photo-{number:06d}",)))
        elif step == "compact":
            compact(root, max_dead=0.0)
        else:
            prune(root, 1)
        assert find_build(root, build_key) == current_version(root)
    assert find_build(root, "0" * 64) is None
