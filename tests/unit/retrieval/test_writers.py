"""Several writers of one map at once: what is published stays as it is, and what is published is whole."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placeray.errors import MapError
from placeray.retrieval.build import build_shard
from placeray.retrieval.compact import compact
from placeray.retrieval.locks import alone
from placeray.retrieval.manifest import versions
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.prune import prune
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
