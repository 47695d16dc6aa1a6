"""Maps in an object store: several writers, copies there and back, and search of a machine's own copy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_proxy import Proxy
from small_map import build_map, give_lists, write_descriptors

pytest.importorskip("ray")

from placeray import storage
from placeray.cluster.searching import SearchWorker, search_many
from placeray.cluster.updating import update_map
from placeray.errors import MapError, StorageError
from placeray.retrieval.copies import copy_map, local_copy
from placeray.retrieval.manifest import advance, current_version, publish, read_map_manifest, versions
from placeray.retrieval.many import SearchConfig
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.prune import prune
from placeray.retrieval.update import UpdateConfig, run_update


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACERAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def city(tmp_path: Path) -> tuple[str, Any, Any]:
    """A map of three shards with lists, its codes and floats."""
    rng = np.random.default_rng(0)
    codes, floats = rng.integers(0, 256, (50, 8), dtype=np.uint8), rng.standard_normal((50, 8))
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    root = build_map(
        write_descriptors(str(tmp_path / "descriptors"), codes, floats),
        str(tmp_path / "map"),
        rows_per_shard=20,
    )
    give_lists(root, IndexConfig(lists=5))
    return root, codes, floats.astype(np.float32)


def answers_of_one_worker(place_map: str, queries: str, output: str) -> list[bytes]:
    """What a worker writes for each file of described queries."""
    worker = SearchWorker(place_map, "v0002", output, SearchConfig().model_dump(mode="json"), None, 1)
    found = []
    for file in storage.read_manifest(queries)["files"]:
        path = file["path"]
        uri = storage.join(queries, path)
        worker(
            {
                "name": path.removesuffix(".parquet"),
                "path": path,
                "uri": uri,
                "rows": file["rows"],
                "key": "k",
            }
        )
        found.append(Path(output, path).read_bytes())
    return found


def test_a_file_is_created_once(bucket: str) -> None:
    uri = f"{bucket}/once"
    assert storage.create_bytes(uri, b"mine")
    assert not storage.create_bytes(uri, b"theirs")
    assert storage.create_bytes(uri, b"mine")  # as after an answer that was lost
    assert storage.read_bytes(uri) == b"mine"


@pytest.mark.parametrize("at_first", [None, b"0"])
def test_an_update_that_was_overtaken_is_made_again(bucket: str, at_first: bytes | None) -> None:
    uri = f"{bucket}/counter-{at_first}"
    if at_first is not None:
        storage.write_bytes(uri, at_first)
    seen: list[bytes | None] = []

    def plus_one(found: bytes | None) -> bytes:
        seen.append(found)
        if len(seen) < 4:  # somebody else is faster three times
            storage.write_bytes(uri, b"%d" % (10 * len(seen)))
        return b"%d" % (int(found or 0) + 1)

    storage.update_bytes(uri, plus_one)
    assert seen == [at_first, b"10", b"20", b"30"]
    assert storage.read_bytes(uri) == b"31"
    storage.update_bytes(uri, lambda _: None)
    assert storage.read_bytes(uri) == b"31"
    assert '"' not in str(storage._entity_tag(uri))  # Ceph never finds a quoted one to match


def test_of_two_publishers_the_second_is_told(bucket: str, city: tuple[str, Any, Any]) -> None:
    root = f"{bucket}/two"
    copy_map(city[0], root)
    newest = versions(root)[-1]
    manifest = read_map_manifest(root)
    published = publish(root, manifest, parent=newest)
    with pytest.raises(MapError, match="another update published v0003 meanwhile: run it again"):
        publish(root, {**manifest, "build_key": "0" * 64}, parent=newest)
    assert (current_version(root), read_map_manifest(root)) == (published["version"], published)
    storage.write_text(f"{root}/CURRENT", "v0001\n")  # a writer killed before its last step
    advance(root)
    assert current_version(root) == "v0003"


def test_there_and_back_and_searched_where_it_lies(bucket: str, city: tuple[str, Any, Any]) -> None:
    root, codes, floats = city
    there = f"{bucket}/maps/city"
    copy_map(root, there)
    with PlaceMap.open(there, verify=True) as far, PlaceMap.open(root) as near:
        assert far.manifest == near.manifest
        for mode in ("exact", "ivf"):
            one, two = (
                opened.search(codes, floats, top_k=5, shortlist=20, mode=mode) for opened in (far, near)
            )
            np.testing.assert_array_equal(one.rows, two.rows)
            np.testing.assert_array_equal(one.similarity, two.similarity)
        run_update(root, UpdateConfig(remove=("photo-000007",)))
        assert copy_map(root, there).files_copied == 1  # which photo is gone
        with PlaceMap.open(there) as newer:
            assert (far.version, far.num_live) == ("v0002", 50)
            assert (newer.version, newer.num_live) == ("v0003", 49)
            assert newer.root == far.root


def test_old_versions_leave_the_copy_of_a_machine(bucket: str, city: tuple[str, Any, Any]) -> None:
    root, there = city[0], f"{bucket}/maps/kept"
    for photo in range(4):
        run_update(root, UpdateConfig(remove=(f"photo-{photo:06d}",)))
        copy_map(root, there)
        folder = local_copy(there)
    assert versions(folder) == ["v0005", "v0006"]
    assert versions(local_copy(there, "v0003")) == ["v0003", "v0005", "v0006"]  # asked for by name
    assert len(versions(there)) == 4


def test_a_version_that_goes_while_it_is_opened_is_fetched_again(
    bucket: str, city: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of the machine fetches newer versions between the copying and the opening of an older one."""
    there = f"{bucket}/maps/busy"
    copy_map(city[0], there, "v0001")
    for photo in range(3):
        run_update(city[0], UpdateConfig(remove=(f"photo-{photo:06d}",)))
        copy_map(city[0], there)
    read, tries = read_map_manifest, []

    def read_too_late(root: str, version: str) -> Any:
        tries.append(version)
        if len(tries) == 1:
            prune(root, 1, force=True)
            local_copy(there)
            prune(root, 1, force=True)
        return read(root, version)

    monkeypatch.setattr("placeray.retrieval.place_map.read_map_manifest", read_too_late)
    with PlaceMap.open(there, version="v0003", verify=True) as place_map:
        assert (place_map.version, place_map.num_live) == ("v0003", 49)
    assert tries == ["v0003", "v0003"]


def test_two_machines_search_their_own_copies(
    bucket: str, city: tuple[str, Any, Any], tmp_path: Path
) -> None:
    """A Ray of two raylets whose caches are different folders, as on two machines."""
    root, codes, floats = city
    there = f"{bucket}/maps/machines"
    copy_map(root, there)
    queries = write_descriptors(str(tmp_path / "queries"), codes[:24], floats[:24], num_files=8)
    given = {
        "map": there,
        "queries": queries,
        "output": str(tmp_path / "two"),
        "caches": str(tmp_path / "caches"),
    }
    driver = Path(__file__).with_name("search_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), json.dumps(given)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for machine in ("one", "two"):
        (copied,) = (tmp_path / "caches" / machine / "maps").iterdir()
        assert versions(str(copied)) == ["v0002"]
    written = [Path(given["output"], "part", f"{number}.parquet").read_bytes() for number in range(8)]
    assert written == answers_of_one_worker(root, queries, str(tmp_path / "alone"))


def test_a_map_that_was_replaced_is_not_answered_from_the_old_copy(
    bucket: str, city: tuple[str, Any, Any], tmp_path: Path
) -> None:
    there = f"{bucket}/maps/replaced"
    copy_map(city[0], there)
    local_copy(there)
    for path in storage.file_sizes(there):
        storage.remove(f"{there}/{path}")
    codes, floats = city[1][:7], city[2][:7]
    other = build_map(write_descriptors(str(tmp_path / "few"), codes, floats), str(tmp_path / "other"))
    give_lists(other, IndexConfig(lists=2))
    copy_map(other, there)
    with PlaceMap.open(there, verify=True) as place_map:
        assert (place_map.version, len(place_map)) == ("v0002", 7)


def test_an_outage_is_not_taken_for_a_missing_map(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.fault = lambda number, method, path: "reset"
    with pytest.raises(StorageError, match="the object store"):
        PlaceMap.open(f"{bucket}/maps/city")


def test_a_folder_of_queries_is_searched_by_workers_with_copies(
    bucket: str, city: tuple[str, Any, Any], tmp_path: Path
) -> None:
    root, codes, floats = city
    there = f"{bucket}/maps/many"
    copy_map(root, there)
    queries = write_descriptors(str(tmp_path / "queries"), codes[:9], floats[:9])
    far, near = (
        answers_of_one_worker(place_map, queries, str(tmp_path / name))
        for place_map, name in ((there, "far"), (root, "near"))
    )
    assert far == near
    stranger = write_descriptors(str(tmp_path / "strangers"), codes[:9], floats[:9], model_id="b" * 64)
    with pytest.raises(MapError, match=f"do not fit the map {there}: model_id"):
        search_many(SearchConfig(), stranger, there, str(tmp_path / "none"))


def test_an_outage_is_one_sentence_and_the_copy_goes_on(
    bucket: str, city: tuple[str, Any, Any], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    there = f"{bucket}/maps/outage"
    uploads = [0]

    def after_five(number: int, method: str, path: str) -> str | None:
        uploads[0] += method == "PUT"
        return "reset" if uploads[0] > 5 else None

    proxy.fault = after_five
    with pytest.raises(StorageError, match=f"^{there}.*: the object store"):
        copy_map(city[0], there)
    proxy.fault = lambda number, method, path: None
    assert not versions(there)
    copied = copy_map(city[0], there)
    assert 0 < copied.files_copied < copied.files
    with PlaceMap.open(there, verify=True) as place_map:
        assert len(place_map) == 50


def test_a_map_is_written_where_it_can_be_mapped(bucket: str, city: tuple[str, Any, Any]) -> None:
    there = f"{bucket}/maps/written"
    copy_map(city[0], there)
    before = storage.file_sizes(there)
    for update in (run_update, lambda root, config: update_map(config, root, None)):
        with pytest.raises(StorageError, match=r"needs a local path.*jobs/copy_map\.py"):
            update(there, UpdateConfig(remove=("photo-000001",)))
    assert storage.file_sizes(there) == before
