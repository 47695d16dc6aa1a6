"""A copy of a map has its bytes, costs what is new, and is never seen half done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_map import give_lists

from placeray.errors import MapError, StorageError
from placeray.retrieval import copies
from placeray.retrieval.copies import copy_map
from placeray.retrieval.manifest import current_version, versions
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.update import UpdateConfig, run_update

Make = Callable[..., Any]


def contents(root: str) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def city(make_descriptors: Make, make_map: Make, draw_random: Make) -> str:
    """A map of three shards with lists and a removed photo, at its third version."""
    codes, floats = draw_random(np.random.default_rng(0), 50, 64, 8)
    root: str = make_map(make_descriptors(codes, floats), rows_per_shard=20)
    give_lists(root, IndexConfig(lists=5))
    run_update(root, UpdateConfig(remove=("photo-000007",)))
    return root


def test_a_copy_has_the_same_bytes_and_a_second_one_costs_nothing(city: str, tmp_path: Path) -> None:
    target = str(tmp_path / "copy")
    told: list[tuple[int, int]] = []
    first = copy_map(city, target, progress=lambda done, total: told.append((done, total)))
    assert (first.version, first.files_copied) == ("v0003", first.files)
    assert told[-1] == (first.bytes_copied, first.bytes_copied)
    theirs = {path: data for path, data in contents(city).items() if not path.startswith(("v0001", "v0002"))}
    assert contents(target) == theirs
    with PlaceMap.open(target, verify=True) as place_map:
        assert (place_map.version, place_map.num_live) == ("v0003", 49)
    again = copy_map(city, target)
    assert (again.files_copied, again.bytes_copied) == (0, 0)
    assert "were there, copied 0 with 0.0 MB" in again.line()


def test_the_next_version_costs_what_is_new(
    city: str, make_descriptors: Make, draw_random: Make, tmp_path: Path
) -> None:
    target = str(tmp_path / "copy")
    copy_map(city, target)
    codes, floats = draw_random(np.random.default_rng(1), 4, 64, 8)
    new = make_descriptors(codes, floats, more={"image_id": [f"new-{row}" for row in range(4)]})
    run_update(city, UpdateConfig(), new)
    with PlaceMap.open(target) as old:
        copied = copy_map(city, target)
        assert (copied.version, copied.files_copied) == ("v0004", 7)  # a shard of four files, a run of three
        assert (old.version, len(old)) == ("v0003", 50)
    copy_map(city, target, "v0001")  # an older one is added, and stays an older one
    assert (versions(target), current_version(target)) == (["v0001", "v0003", "v0004"], "v0004")
    with PlaceMap.open(target, verify=True) as place_map:
        assert (place_map.search(codes, floats, top_k=1).hamming == 0).all()


def test_what_is_not_whole_is_not_copied(city: str, tmp_path: Path) -> None:
    target = str(tmp_path / "copy")
    codes = sorted((Path(city) / "shards").rglob("codes.u8"))[1]
    good = codes.read_bytes()
    codes.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(MapError, match=r"codes\.u8 has other bytes than when it was built: restore it"):
        copy_map(city, target)
    codes.unlink()
    with pytest.raises(StorageError, match=r"no such file: .*codes\.u8"):
        copy_map(city, target)
    with pytest.raises(MapError, match="no finished map"):
        PlaceMap.open(target)
    codes.write_bytes(good)
    mended = copy_map(city, target)
    assert mended.files_copied < mended.files
    with PlaceMap.open(target, verify=True) as place_map:
        assert len(place_map) == 50


@pytest.mark.parametrize("finished", [0, 1, 9])
def test_an_interrupted_copy_goes_on(
    city: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    target = str(tmp_path / "copy")
    one_by_one: list[str] = []

    def killed(source: str, into: str, file: Any) -> None:
        if len(one_by_one) == finished:
            raise KeyboardInterrupt
        one_by_one.append(file.path)
        real(source, into, file)

    real = copies._copy
    monkeypatch.setattr(copies, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(copies, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        copy_map(city, target)
    assert not versions(target)
    monkeypatch.setattr(copies, "_copy", real)
    copied = copy_map(city, target)
    assert copied.files - copied.files_copied == finished
    with PlaceMap.open(target, verify=True) as place_map:
        assert place_map.version == "v0003"


def test_another_map_is_not_mixed_in(
    city: str, make_descriptors: Make, make_map: Make, draw_random: Make, tmp_path: Path
) -> None:
    codes, floats = draw_random(np.random.default_rng(5), 30, 64, 8)
    other = make_map(make_descriptors(codes, floats))
    copy_map(other, str(tmp_path / "copy"))
    before = contents(str(tmp_path / "copy"))
    with pytest.raises(
        MapError, match=r"has other versions of the same names than .*: choose another folder"
    ):
        copy_map(city, str(tmp_path / "copy"))
    with pytest.raises(MapError, match="is the map itself"):
        copy_map(city, city)
    assert contents(str(tmp_path / "copy")) == before


def test_a_map_inside_the_folder_of_another_is_not_taken_for_it(city: str, tmp_path: Path) -> None:
    copy_map(city, str(tmp_path / "maps" / "city"))
    copy_map(city, str(tmp_path / "maps"), "v0001")
    assert (versions(str(tmp_path / "maps")), current_version(str(tmp_path / "maps"))) == (["v0001"], "v0001")


def test_a_manifest_that_leads_out_of_the_map_is_refused(city: str, tmp_path: Path) -> None:
    manifest = Path(city) / "v0003" / "manifest.json"
    text = manifest.read_text().replace('"fingerprint"', '"forged"')
    manifest.write_text(text.replace('"path": "tombstones/', '"path": "../tombstones/', 1))
    with pytest.raises(MapError, match="which is not inside the map"):
        copy_map(city, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
