"""Planned parts become places, images and rejects: the same bytes each time, nothing lost, readable by
others.
"""

import errno
import hashlib
import json
import os
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from placeray import contracts, storage
from placeray.datasets import writing
from placeray.datasets.photo_bytes import PhotoBytes, PhotoStorage, Rejection, check_photo
from placeray.datasets.planning import NormalizeConfig, check_share, plan_source, write_plan
from placeray.datasets.reading import PlacesFile, list_domains, places_fingerprint, read_places
from placeray.datasets.writing import RollingParquet, finished_report, write_part
from placeray.errors import DataError, StorageError
from placeray.storage import FileWriter

NAME = "@{east:010.2f}@{north:010.2f}@17@T@@@p{number}@00@{heading}@@@@2016@@.jpg"


def write_town(write: Any, jpeg: Any, places: int = 6, photos: int = 5, folder: str = "images/train") -> None:
    """Places in a row of cells of one group (45 m apart), all with one heading."""
    for number in range(places * photos):
        role = "queries" if number % photos == 0 else "database"
        name = NAME.format(east=585_000 + 45 * (number // photos), north=4_477_000, number=number, heading=10)
        write(f"{folder}/{role}/{name}", jpeg(number))


def config_of(
    root: Path, split: str = "train", bytes_inside: bool | None = None, **more: Any
) -> NormalizeConfig:
    source = {"kind": "at_layout", "name": "town", "root": str(root), "split": split}
    source |= {"bytes_inside": bytes_inside}
    return NormalizeConfig.model_validate({"sources": [source], **more})


def config_of_cities(root: Path, write: Any, jpeg: Any, cities: list[str]) -> NormalizeConfig:
    """Four photos at one place of each city, in a table."""
    lines = ["path,lat,lon,town"]
    for number, town in enumerate(cities):
        for photo in range(4):
            write(f"{number}-{photo}.jpg", jpeg(4 * number + photo))
            lines.append(f"{number}-{photo}.jpg,55.7,13.2,{town}")
    write("manifest.csv", "\n".join(lines))
    columns = {"lat": "lat", "lon": "lon", "city": "town"}
    source = {"kind": "photo_table", "name": "own", "root": str(root), "split": "train", "columns": columns}
    return NormalizeConfig.model_validate({"sources": [source]})


def run(config: NormalizeConfig, output: Path) -> list[dict[str, Any]]:
    """All parts of all sources, one after the other, and the manifest of places."""
    reports = []
    for source in config.sources:
        for part in write_plan(plan_source(source, config), config, str(output)):
            reports.append(write_part(part, str(output), config.photos))
    for folder, contract in (("places", "places/v1"), ("images", "images/v1")):
        files = [file for report in reports for file in report["files"][folder]]
        if files:
            storage.commit_manifest(
                str(output / folder), contracts.table_manifest(contract, files, made_by={})
            )
    return reports


def rows_of(output: Path, folder: str) -> list[dict[str, Any]]:
    return [
        row
        for file in sorted((output / folder).rglob("*.parquet"))
        for row in storage.read_table(str(file)).to_pylist()
    ]


def digests(output: Path) -> dict[str, str]:
    return {
        str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(output.rglob("*.parquet"))
    }


def test_places_hold_their_photos_and_images_point_to_them(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg)
    run(config_of(tmp_path), tmp_path / "out")
    places, images = rows_of(tmp_path / "out", "places"), rows_of(tmp_path / "out", "images")
    assert [place["num_photos"] for place in places] == [5] * 6
    assert {place["domain"] for place in places} == {"town/town/17n-04"}
    by_id = {image["image_id"]: image for image in images}
    assert len(by_id) == 30
    for place in places:
        assert [photo["image_id"] for photo in place["photos"]] == sorted(
            p["image_id"] for p in place["photos"]
        )
        assert place["lat"] == pytest.approx(sum(photo["lat"] for photo in place["photos"]) / 5)
        for photo in place["photos"]:
            image = by_id[photo["image_id"]]
            assert photo["image"] == Path(image["source_uri"]).read_bytes()
            assert hashlib.sha256(photo["image"]).hexdigest() == photo["sha256"] == image["sha256"]
            assert (image["image"], image["width"], image["height"]) == (None, 32, 24)
            assert image["place_id"] == place["place_id"]


def test_evaluation_photos_carry_their_bytes(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg, folder="images/test")
    run(config_of(tmp_path, "test", photos_per_file=7), tmp_path / "out")
    assert not (tmp_path / "out/places").exists()
    images = rows_of(tmp_path / "out", "images")
    assert all(image["image"] == Path(image["source_uri"]).read_bytes() for image in images)
    files = sorted(
        str(file.relative_to(tmp_path / "out/images"))
        for file in (tmp_path / "out/images").rglob("*.parquet")
    )
    assert files == [f"town/test-database/0000{i}.parquet" for i in range(4)] + [
        "town/test-query/00000.parquet"
    ]


def test_running_again_writes_the_same_bytes(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg)
    config = config_of(tmp_path)
    run(config, tmp_path / "one")
    run(config, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    before = digests(tmp_path / "one")
    run(config, tmp_path / "one")
    assert digests(tmp_path / "one") == before


def test_a_rejected_photo_can_cost_its_place(tmp_path: Path, write: Any, jpeg: Any) -> None:
    """Two places of 5: one loses a photo and stays, one loses two and is dropped; its photos are kept without
    it.
    """
    write_town(write, jpeg, places=2)
    photos = sorted((tmp_path / "images/train").rglob("*.jpg"), key=lambda file: file.name)
    photos[0].write_bytes(photos[0].read_bytes()[:300])
    photos[5].write_bytes(b"")
    config = config_of(tmp_path)
    (source,) = config.sources
    parts = write_plan(plan_source(source, config), config, str(tmp_path / "out"))
    photos[6].unlink()
    (report,) = [write_part(part, str(tmp_path / "out"), config.photos) for part in parts]
    assert report["counts"] == {
        "kept": 7,
        "rejected": {"decode_error": 2, "missing_file": 1},
        "in_places": 4,
        "places": 1,
        "places_dropped_small": 1,
    }
    assert [place["num_photos"] for place in rows_of(tmp_path / "out", "places")] == [4]
    assert sum(image["place_id"] is None for image in rows_of(tmp_path / "out", "images")) == 3
    rejects = rows_of(tmp_path / "out", "rejects")
    assert {row["source_uri"]: row["reason"] for row in rejects} == {
        str(photos[0]): "decode_error", str(photos[5]): "decode_error", str(photos[6]): "missing_file"
    }  # fmt: skip


def test_a_part_is_finished_while_its_input_and_files_stay(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg)
    output, config = str(tmp_path / "out"), config_of(tmp_path)
    (part,) = write_plan(plan_source(config.sources[0], config), config, output)
    assert finished_report(output, part, storage.file_sizes(output)) is None
    report = write_part(part, output, config.photos)
    assert finished_report(output, part, storage.file_sizes(output)) == report
    other = config_of(tmp_path, photos={"decode_check": "header"})
    (changed,) = write_plan(plan_source(other.sources[0], other), other, output)
    assert finished_report(output, changed, storage.file_sizes(output)) is None
    file = tmp_path / "out/places" / report["files"]["places"][0]["path"]
    file.write_bytes(file.read_bytes()[:-1])
    assert finished_report(output, part, storage.file_sizes(output)) is None


def test_a_part_whose_photos_have_changed_is_not_finished(tmp_path: Path, write: Any, jpeg: Any) -> None:
    """Also one of the old name and time, one that was missing and has come, and one that has gone."""
    write_town(write, jpeg)
    output, config = str(tmp_path / "out"), config_of(tmp_path)
    photos = sorted((tmp_path / "images/train").rglob("*.jpg"))

    def is_finished() -> bool:
        return finished_report(output, part, storage.file_sizes(output)) is not None

    def write_again() -> dict[str, Any]:
        time.sleep(0.02)  # file systems tell times in steps of some milliseconds
        return write_part(part, output, config.photos)

    (part,) = write_plan(plan_source(config.sources[0], config), config, output)
    content = photos[0].read_bytes()
    photos[0].unlink()
    write_again()
    assert is_finished()
    photos[0].write_bytes(content)  # it was missing and has come
    assert not is_finished()
    write_again()
    assert is_finished()
    before = photos[3].stat()
    other = tmp_path / "other.jpg"
    other.write_bytes(photos[4].read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, photos[3])
    assert not is_finished()
    report = write_again()
    photos[7].unlink()
    assert not is_finished()
    unread = {**part, "is_read": False}
    assert finished_report(output, unread, storage.file_sizes(output)) == report


def test_a_city_with_a_long_name_has_a_file(tmp_path: Path, write: Any, jpeg: Any) -> None:
    """32 letters of nine bytes each are too long for a file system; two such cities that begin alike stay apart."""
    cities = ["\u6771" * 32, "\u6771" * 31 + "\u4eac", "\u6771" * 11]
    run(config_of_cities(tmp_path, write, jpeg, cities), tmp_path / "out")
    domains = list_domains(str(tmp_path / "out/places"))
    assert {domain.city for domain in domains} == set(cities)
    names = {path.name for path in (tmp_path / "out").rglob("*") if "%E6" in path.name}
    assert max(len(name) for name in names) < 160
    assert any("%E6%9D%B1" * 11 in name for name in names)  # 99 bytes: as it is


def test_large_domains_are_spread_over_files(tmp_path: Path, write: Any, jpeg: Any) -> None:
    """45 photos in files of at most about 20 are three files of 15, not two full ones and a rest."""
    write_town(write, jpeg, places=9)
    run(config_of(tmp_path, photos_per_file=20), tmp_path / "out")
    domains = list_domains(str(tmp_path / "out/places"))
    assert [Path(domain.file).name for domain in domains] == [f"17n-04.{i:04d}.parquet" for i in range(3)]
    assert [len(domain.place_ids) for domain in domains] == [3, 3, 3]
    assert {domain.name for domain in domains} == {"town/town/17n-04"}
    assert len({place for domain in domains for place in domain.place_ids}) == 9


def test_files_end_at_their_size_and_pieces_make_no_difference(
    tmp_path: Path, write: Any, jpeg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part of 60 photos becomes several files; the rows are those of one large file, places are never split."""
    write_town(write, jpeg, places=12)
    config = config_of(tmp_path, bytes_inside=True)
    run(config, tmp_path / "one")
    monkeypatch.setattr(writing, "_PIECE_BYTES", 5_000)
    small = config.model_copy(update={"photos": config.photos.model_copy(update={"max_file_bytes": 30_000})})
    (report,) = run(small, tmp_path / "many")
    run(small, tmp_path / "again")
    assert digests(tmp_path / "many") == digests(tmp_path / "again")
    for folder in ("places", "images"):
        names = [file["path"] for file in report["files"][folder]]
        stem = names[0].removesuffix(".parquet")
        assert names == [names[0], *(f"{stem}-{number}.parquet" for number in range(2, len(names) + 1))]
        assert len(names) > 2
        assert all(30_000 <= file["bytes"] < 60_000 for file in report["files"][folder][:-1])
        whole = {str(row) for row in rows_of(tmp_path / "one", folder)}
        assert {str(row) for row in rows_of(tmp_path / "many", folder)} == whole
    assert {domain.name for domain in list_domains(str(tmp_path / "many/places"))} == {"town/town/17n-04"}


def test_a_place_too_large_for_a_column_is_named(
    tmp_path: Path, write: Any, jpeg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_town(write, jpeg, places=1)
    monkeypatch.setattr(writing, "_MAX_BYTES", 3_000)
    with pytest.raises(DataError, match=r"place town/town/17n-\S+ exceed 3,000 bytes: make cells smaller"):
        run(config_of(tmp_path), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "plan" not in path.name]


def test_cities_of_any_name_stay_inside_the_output(tmp_path: Path, write: Any, jpeg: Any) -> None:
    cities = ["../../etc", "São Paulo/Sé", "..", "a b"]
    run(config_of_cities(tmp_path, write, jpeg, cities), tmp_path / "deep/down/out")
    domains = list_domains(str(tmp_path / "deep/down/out/places"))
    assert {domain.city for domain in domains} == set(cities)
    inside = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")]
    assert all(path.startswith("deep/down/out/") for path in inside)
    assert len(domains) == 4


def test_reading_single_photos_of_places(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg, places=11)
    run(config_of(tmp_path), tmp_path / "out")
    (domain,) = list_domains(str(tmp_path / "out/places"))
    assert [place.num_photos for place in domain.places] == [5] * 11
    assert domain.places[3].domain_file == domain.file
    rows = storage.read_table(domain.file).to_pylist()
    wanted = [(10, [4, 0]), (0, [1]), (5, [2, 2, 3]), (4, [])]
    found = read_places(domain.file, [row for row, _ in wanted], [photos for _, photos in wanted])
    assert found == [[rows[row]["photos"][photo]["image"] for photo in photos] for row, photos in wanted]
    assert pq.ParquetFile(domain.file).num_row_groups == 3
    assert len(places_fingerprint(str(tmp_path / "out/places"))) == 64


def test_an_open_file_of_places_holds_no_photos(tmp_path: Path) -> None:
    """The feed keeps 16 of them open, and one row group of a real set has megabytes."""
    rows = [
        {
            "place_id": str(n),
            "dataset": "d",
            "city": "c",
            "domain": "c",
            "lat": 0.0,
            "lon": 0.0,
            "num_photos": 1,
        }
        | {"photos": [{"image_id": str(n), "source_uri": "u", "sha256": "0" * 64, "image": bytes(8 << 20)}]}
        for n in range(2)
    ]
    table = pa.Table.from_pylist(rows, schema=contracts.table_schema("places/v1"))
    entry = writing.write_parquet(str(tmp_path), "d.parquet", table, row_group_size=1, compression="none")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with PlacesFile(str(tmp_path / entry["path"])) as places:
            assert [len(photos[0]) for photos in places.read([1, 0], [[0], [0]])] == [8 << 20, 8 << 20]
            held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
            assert held < 1 << 20
    finally:
        tracemalloc.stop()


def test_reading_what_is_no_places_folder(tmp_path: Path, write: Any, jpeg: Any) -> None:
    with pytest.raises(StorageError, match=r"has no manifest.json: the step that writes it"):
        list_domains(str(tmp_path))
    write_town(write, jpeg, folder="images/test")
    run(config_of(tmp_path, "test"), tmp_path / "out")
    with pytest.raises(DataError, match="holds images/v1, expected places/v1"):
        list_domains(str(tmp_path / "out/images"))


def test_images_are_geoparquet(tmp_path: Path, write: Any, jpeg: Any) -> None:
    write_town(write, jpeg, places=1, folder="images/test")
    write("images/test/database/@0000000.00@0000025.00@.jpg", jpeg(99))
    run(config_of(tmp_path, "test"), tmp_path / "out")
    file = tmp_path / "out/images/town/test-database/00000.parquet"
    geo = json.loads(pq.read_schema(file).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"][geo["primary_column"]] == {"encoding": "WKB", "geometry_types": ["Point"]}
    for row in pq.read_table(file).to_pylist():
        if row["lat"] is None:
            assert row["geometry"] is None
        else:
            assert struct.unpack("<BIdd", row["geometry"]) == (1, 1, row["lon"], row["lat"])


@pytest.mark.parametrize("check", ["full", "header", "none"])
def test_what_each_decode_check_finds(jpeg: Any, check: str) -> None:
    config = PhotoStorage(decode_check=check)
    good, truncated = jpeg(1, (320, 240)), jpeg(1, (320, 240))[:-2000]
    results = [check_photo(data, config) for data in (good, truncated, b"<html>", b"", jpeg(2, (12, 40)))]
    kept = [isinstance(result, PhotoBytes) for result in results]
    assert kept == {"full": [1, 0, 0, 0, 0], "header": [1, 1, 0, 0, 0], "none": [1, 1, 1, 1, 1]}[check]
    reasons = [result.reason for result in results if isinstance(result, Rejection)]
    assert Counter(reasons) == {
        "full": {"decode_error": 3, "too_small": 1}, "header": {"decode_error": 2, "too_small": 1}, "none": {}
    }[check]  # fmt: skip


def test_photos_can_be_stored_smaller(jpeg: Any, tmp_path: Path) -> None:
    config = PhotoStorage(max_side_px=64)
    small = check_photo(jpeg(0, (320, 240)), config)
    assert isinstance(small, PhotoBytes)
    assert (small.width, small.height) == (64, 48)
    (tmp_path / "small.jpg").write_bytes(small.data)
    assert Image.open(tmp_path / "small.jpg").size == (64, 48)
    assert small.sha256 == hashlib.sha256(small.data).hexdigest()
    original = jpeg(0, (60, 40))
    assert check_photo(original, config) == PhotoBytes(original, hashlib.sha256(original).hexdigest(), 60, 40)


def test_too_many_faults_stop_with_one_sentence(tmp_path: Path) -> None:
    counts = {
        "read": 100,
        "rejected": {"decode_error": 15, "missing_file": 6, "panorama": 40, "not_selected": 20},
    }
    with pytest.raises(
        DataError, match=r"21 of 100 inputs are faulty \(decode_error 15, missing_file 6\), more than"
    ):
        check_share("set/train", counts, config_of(tmp_path), "rejects")
    counts["rejected"]["missing_file"] = 5
    check_share("set/train", counts, config_of(tmp_path), "rejects")


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = {"kind": "at_layout", "name": "town", "root": str(tmp_path)}
    with pytest.raises(ValueError, match="two sources are called town/test"):
        NormalizeConfig.model_validate({"sources": [source, source]})
    NormalizeConfig.model_validate({"sources": [source, {**source, "split": "val"}]})
    with pytest.raises(ValueError, match="String should match"):
        NormalizeConfig.model_validate({"sources": [{**source, "name": "../up"}]})


@pytest.mark.parametrize("when", ["in the block", "while writing", "at the end"])
def test_what_ends_a_file_is_what_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Bytes that wait in the buffer of a file that is given up neither hide the error nor leave a trace."""
    table = pa.table({"photo": [b"x" * 700_000]})
    writing = RollingParquet(
        str(tmp_path), "a.parquet", PhotoStorage(), {"row_group_size": 1, "compression": "none"}
    )
    full = when != "in the block"

    def no_room(self: FileWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with writing:
            for number in range(3):
                if when == "while writing" or (when == "at the end" and number == 2):
                    monkeypatch.setattr(FileWriter, "_sync_behind", no_room)
                writing.write(table)
            if not full:
                raise StorageError("photo x cannot be read: Permission denied")

    with pytest.raises(StorageError, match="No space left on device" if full else "Permission denied"):
        write()
    assert not list(tmp_path.iterdir())
