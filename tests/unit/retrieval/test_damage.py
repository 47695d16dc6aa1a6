"""Every damage is named and refused; what is whole can be opened without the rest and answers as if that were all."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.errors import MapError, StorageError
from placeray.retrieval.filters import Circle, Filter
from placeray.retrieval.manifest import publish, read_map_manifest
from placeray.retrieval.map_lists import build_lists, calibrate, calibrated, learn_quantizer, plan_runs
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.row_ranges import RowRanges
from placeray.retrieval.update import UpdateConfig, run_update, with_entries

Make = Callable[..., Any]
COUNT, LISTS = 90, 6
NEAR = Filter(area=Circle(lat=50.5, lon=7.5, radius_m=40_000.0))


class Town:
    """Photos of a drawn town, and maps of some of them."""

    def __init__(self, make_descriptors: Make, make_map: Make, draw_tied: Make) -> None:
        rng = np.random.default_rng(4)
        self.codes, self.floats = draw_tied(rng, COUNT, 64, 8)
        self.lat, self.lon = rng.uniform(50, 51, COUNT), rng.uniform(7, 8, COUNT)
        self.names = np.array([f"photo-{row:06d}" for row in range(COUNT)])
        self._make_descriptors, self._make_map = make_descriptors, make_map

    def map_of(self, photos: Any, **config: Any) -> str:
        """A map of photos with these numbers."""
        descriptors = self._make_descriptors(
            self.codes[photos],
            self.floats[photos],
            lat=self.lat[photos],
            lon=self.lon[photos],
            more={"image_id": self.names[photos].tolist()},
        )
        return str(self._make_map(descriptors, rows_per_shard=20, **config))

    def with_lists(self) -> str:
        """A map of all photos that has inverted lists."""
        root = self.map_of(np.arange(COUNT))
        manifest = read_map_manifest(root)
        quantizer = learn_quantizer(root, manifest, LISTS)
        runs = plan_runs(manifest, quantizer)
        for run in runs:
            build_lists(root, run)
        found = calibrate(root, manifest, quantizer, IndexConfig(lists=LISTS), num_threads=1)
        publish(root, calibrated(manifest, quantizer, runs, found))
        return root

    def answers(self, place_map: PlaceMap, *, ivf: bool = False) -> list[Any]:
        """Every kind of search; all lists are probed, so that inverted lists have to find the same."""
        codes, floats = self.codes[:15], self.floats[:15]
        asked: list[dict[str, Any]] = [
            {"descriptors": floats, "shortlist": 30, "mode": "exact"},
            {"descriptors": None, "mode": "exact"},
            {"descriptors": floats, "exhaustive": True},
            {"descriptors": floats, "shortlist": 30, "within": NEAR},
        ]
        if ivf:
            asked.append({"descriptors": floats, "shortlist": 30, "mode": "ivf", "nprobe": LISTS})
        return [place_map.search(codes, **how, top_k=30) for how in asked]


@pytest.fixture(scope="module")
def town(make_descriptors: Make, make_map: Make, draw_tied: Make) -> Town:
    return Town(make_descriptors, make_map, draw_tied)


@pytest.fixture(scope="module")
def whole(town: Town) -> str:
    """A map with lists that nobody damages."""
    return town.with_lists()


@pytest.fixture
def root(whole: str, tmp_path: Path) -> str:
    """A copy of it to damage: four shards of 20 photos and one of 10."""
    shutil.copytree(whole, tmp_path / "map")
    return str(tmp_path / "map")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def garble(file: Path) -> None:
    """All bytes other ones, the size the same."""
    file.write_bytes(b"\xff" * file.stat().st_size)


def shard_folder(root: str, number: int) -> Path:
    return Path(root) / read_map_manifest(root)["shards"][number]["path"]


DAMAGES = [
    ("codes.u8", truncate, r"codes\.u8 has \d+ bytes, its shard\.json says", False),
    ("desc.i8", truncate, r"desc\.i8 has \d+ bytes", False),
    ("desc_scale.f32", Path.unlink, r"desc_scale\.f32 is missing", False),
    ("rows.arrow", garble, r"rows\.arrow is damaged", False),
    ("", shutil.rmtree, r"codes\.u8 is missing", False),
    ("codes.u8", flip, r"codes\.u8 has other bytes than when it was built", True),
    ("desc.i8", flip, r"desc\.i8 has other bytes than when it was built", True),
    ("rows.arrow", flip, r"rows\.arrow (has other bytes than when it was built|is damaged)", True),
]


@pytest.mark.parametrize(
    ("name", "damage", "message", "verify", "numbers"),
    [
        *((*damage, (number % 5,)) for number, damage in enumerate(DAMAGES)),
        (*DAMAGES[0], (1, 2)),
        (*DAMAGES[4], (0, 1, 3, 4)),
    ],
)
def test_damaged_shards_are_refused_or_left_out(
    town: Town, root: str, name: str, damage: Any, message: str, verify: bool, numbers: Any
) -> None:
    for number in numbers:
        damage(shard_folder(root, number) / name)
    with pytest.raises(MapError, match=message):
        PlaceMap.open(root, verify=verify)
    with PlaceMap.open(root, damaged="skip", verify=verify) as place_map:
        assert len(place_map.damaged) == len(numbers)
        for number, sentence in zip(numbers, place_map.damaged, strict=True):
            assert shard_folder(root, number).name in sentence
        check_rest(town, place_map, numbers)


def check_rest(town: Town, place_map: PlaceMap, numbers: Any) -> None:
    """The map answers in every mode as one of the remaining photos does, with the rows of its manifest."""
    manifest, rows = place_map.manifest, place_map.row_numbers()
    left = [entry for number, entry in enumerate(manifest["shards"]) if number not in numbers]
    expected = [np.arange(entry["shard"]["rows"]) + entry["first_row"] for entry in left]
    np.testing.assert_array_equal(rows, np.concatenate(expected))
    assert (len(place_map), place_map.num_live) == (COUNT, len(rows))
    photos = np.array([int(name[6:]) for name in place_map.rows(["image_id"])["image_id"].to_pylist()])
    np.testing.assert_array_equal(place_map.codes_of(rows[::-1]), town.codes[photos[::-1]])
    backwards = place_map.records(rows[::-1], ["image_id"])["image_id"].to_pylist()
    assert backwards == town.names[photos[::-1]].tolist()
    gap = np.setdiff1d(np.arange(COUNT), rows)[:1]
    for asked in (place_map.codes_of, place_map.records):
        with pytest.raises(MapError, match=f"row {gap[0]} is in no shard that is open"):
            asked(gap)
    with PlaceMap.open(town.map_of(np.sort(photos))) as twin:
        theirs = town.answers(twin)
    for mine, other in zip(town.answers(place_map, ivf=True), [*theirs, theirs[0]], strict=True):
        mapped = np.where(other.rows >= 0, rows[np.maximum(other.rows, 0)], -1)
        np.testing.assert_array_equal(mine.rows, mapped)
        np.testing.assert_array_equal(mine.hamming, other.hamming)
        np.testing.assert_array_equal(mine.similarity, other.similarity)


@pytest.mark.parametrize("descriptor_type", ["float16", "float32"])
def test_other_descriptor_types_are_searched_around_gaps(town: Town, descriptor_type: str) -> None:
    root = town.map_of(np.arange(COUNT), descriptor_type=descriptor_type)
    shutil.rmtree(shard_folder(root, 1))
    with PlaceMap.open(root, damaged="skip") as place_map:
        rows = place_map.row_numbers()
        ids = place_map.rows(["image_id"])["image_id"].to_pylist()
        twin_root = town.map_of(np.sort([int(name[6:]) for name in ids]), descriptor_type=descriptor_type)
        with PlaceMap.open(twin_root) as twin:
            for mine, other in zip(town.answers(place_map), town.answers(twin), strict=True):
                mapped = np.where(other.rows >= 0, rows[np.maximum(other.rows, 0)], -1)
                np.testing.assert_array_equal(mine.rows, mapped)
                np.testing.assert_array_equal(mine.similarity, other.similarity)


def test_a_map_without_a_whole_shard_answers_nobody(town: Town, root: str) -> None:
    shutil.rmtree(Path(root) / "shards")
    with PlaceMap.open(root, damaged="skip") as place_map:
        assert (len(place_map.damaged), place_map.num_live) == (5, 0)
        assert all((found.rows == -1).all() for found in town.answers(place_map, ivf=True))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damaged_tombstones_leave_their_shard_out(town: Town, damage: Any) -> None:
    """Without them the removed photos would come back."""
    root = town.map_of(np.arange(COUNT))
    removed = ("photo-000003", "photo-000040")
    run_update(root, UpdateConfig(remove=removed))
    entries = read_map_manifest(root)["shards"]
    worn = [number for number, entry in enumerate(entries) if "tombstones" in entry]
    file = Path(root) / entries[worn[0]]["tombstones"]["path"]
    damage(file)
    with pytest.raises(MapError, match=file.name):
        PlaceMap.open(root)
    with PlaceMap.open(root, damaged="skip") as place_map:
        assert len(place_map.damaged) == 1
        assert file.name in place_map.damaged[0]
        for found in town.answers(place_map):
            there = place_map.records(np.unique(found.rows[found.rows >= 0]), ["image_id"])["image_id"]
            assert not {*removed} & {*there.to_pylist()}
        gone = entries[worn[0]]["shard"]["rows"] + sum(entries[n]["tombstones"]["rows"] for n in worn[1:])
        assert place_map.num_live == COUNT - gone


@pytest.mark.parametrize(
    ("pattern", "damage", "verify"),
    [
        ("*/codes.u8", truncate, False),
        ("*/order.u32", Path.unlink, False),
        ("*/offsets.u32", flip, True),
        ("*/lists.json", Path.unlink, False),
        ("centroids.u8", truncate, False),
        ("coarse.u8", flip, True),
        ("quantizer.json", lambda file: file.write_text('{"files": {}}'), False),
    ],
)
def test_damaged_lists_leave_search_exact(
    town: Town, whole: str, root: str, pattern: str, damage: Any, verify: bool
) -> None:
    file = sorted(Path(root).glob(f"ivf/*/{pattern}"))[0]
    damage(file)
    with pytest.raises(MapError, match=file.name):
        PlaceMap.open(root, verify=verify)
    with PlaceMap.open(root, damaged="skip", verify=verify) as place_map, PlaceMap.open(whole) as twin:
        assert len(place_map.damaged) == 1
        assert "the inverted lists are left out, search is exact" in place_map.damaged[0]
        assert file.name in place_map.damaged[0]
        exact = twin.search(town.codes, town.floats, top_k=9, mode="exact")
        np.testing.assert_array_equal(place_map.search(town.codes, town.floats, top_k=9).rows, exact.rows)
        with pytest.raises(MapError, match="opened without its damaged inverted lists"):
            place_map.search(town.codes, town.floats, top_k=1, mode="ivf")


@pytest.mark.parametrize(
    "refused", ["/codes.u8", "/rows.arrow", "/tombstones/", "/quantizer.json", "/lists.json"]
)
def test_a_file_that_may_not_be_opened_is_no_damage(
    root: str, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    run_update(root, UpdateConfig(remove=("photo-000007",)))

    def refusing(opening: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
            if refused in str(path):
                raise OSError(errno.EMFILE, "Too many open files")
            return opening(path, *args, **kwargs)

        return opened

    monkeypatch.setattr(Path, "open", refusing(Path.open))
    monkeypatch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
    monkeypatch.setattr("pyarrow.memory_map", refusing(pa.memory_map))
    with pytest.raises(StorageError, match=f"{refused}.*Too many open files.*ulimit -n"):
        PlaceMap.open(root, damaged="skip")


def test_rows_that_no_run_has_lead_nowhere_else(town: Town, root: str) -> None:
    """Checksums are compared on request only; unread, a damaged file may cost answers but no crash."""
    file = sorted(Path(root).glob("ivf/*/*/order.u32"))[0]
    rows = np.fromfile(file, np.uint32)
    rows[::2] |= 0x8000_0000
    rows.tofile(file)
    with PlaceMap.open(root) as place_map:
        found = place_map.search(town.codes, town.floats, top_k=9, mode="ivf", nprobe=LISTS)
        assert found.rows.max() < COUNT


def test_verify_of_an_open_map_reads_the_lists_too(root: str) -> None:
    file = sorted(Path(root).glob("ivf/*/*/order.u32"))[-1]
    with PlaceMap.open(root, verify=True) as place_map:
        place_map.verify()
        flip(file)
        with pytest.raises(MapError, match=r"order\.u32 has other bytes"):
            place_map.verify()


@pytest.mark.parametrize("damaged", ["refuse", "skip"])
def test_what_is_newer_or_of_another_model_is_refused_all_the_same(root: str, damaged: Any) -> None:
    file = Path(root) / "v0002" / "manifest.json"
    manifest = json.loads(file.read_text())
    first = manifest["shards"][0]
    for change, message in [
        ({"format_version": 2}, "has format 2, placeray .* reads up to 1"),
        ({"shards": [{**first, "shard": {**first["shard"], "format_version": 2}}]}, "shard .* has format 2"),
        ({"shards": [{**first, "shard": {**first["shard"], "requires": ["x"]}}]}, "shard .* needs x, which"),
    ]:
        file.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(MapError, match=message):
            PlaceMap.open(root, damaged=damaged)
    file.write_text(json.dumps(manifest))
    with PlaceMap.open(root, damaged=damaged) as place_map:
        model = place_map.manifest["model"]
        place_map.check_model(**model)
        with pytest.raises(MapError, match=r"do not fit the map .*model_id 'bbb"):
            place_map.check_model(**{**model, "model_id": "b" * 64})


def test_pruning_is_not_taken_for_damage(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is replaced and pruned while it is being opened gives the next one, whole."""
    root = town.map_of(np.arange(COUNT))
    old = shard_folder(root, 0)
    read = read_map_manifest

    def read_and_prune(uri: str, version: str) -> Any:
        manifest = read(uri, version)
        if version == "v0001":
            publish(root, with_entries(manifest, manifest["shards"][1:], []))
            shutil.rmtree(old)
        return manifest

    monkeypatch.setattr("placeray.retrieval.place_map.read_map_manifest", read_and_prune)
    with PlaceMap.open(root, damaged="skip") as place_map:
        assert (place_map.version, place_map.damaged) == ("v0002", [])


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=5))
def test_rows_are_located_as_by_a_dict(shards: list[tuple[int, int]]) -> None:
    """Shards of some rows, each after a gap."""
    first_rows, held, end = [], {}, 0
    for number, (gap, count) in enumerate(shards):
        first_rows.append(end + gap)
        held |= {end + gap + row: (number, row) for row in range(count)}
        end += gap + count
    ranges = RowRanges(first_rows, [count for _, count in shards])
    rows = np.arange(end + 2)
    assert ranges.held(rows).tolist() == [row in held for row in rows.tolist()]
    assert ranges.numbers().tolist() == sorted(held)
    assert (ranges.end, ranges.has_gaps) == (end, len(held) != end)
    shard_of, inside = ranges.locate(ranges.numbers())
    assert list(zip(shard_of.tolist(), inside.tolist(), strict=True)) == [held[row] for row in sorted(held)]
    with pytest.raises(MapError, match=f"row {end} is in no shard"):
        ranges.locate(np.array([end]))
