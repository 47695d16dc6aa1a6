"""Photos and tables as cameras, phones and old archives make them: nothing ends the job, nothing vanishes uncounted."""

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from placeray import storage
from placeray.datasets import list_source, photos
from placeray.datasets.photo_bytes import PhotoBytes, PhotoStorage, check_photo
from placeray.datasets.photo_folder import PhotoFolder
from placeray.datasets.photo_table import PhotoTable
from placeray.errors import DataError


def jpeg(pixels: Any, orientation: int = 1) -> bytes:
    exif, sink = Image.Exif(), io.BytesIO()
    exif[Base.Orientation] = orientation
    Image.fromarray(pixels).save(sink, "JPEG", quality=95, exif=exif)
    return sink.getvalue()


def folder_of(root: Path) -> Any:
    return list_source(PhotoFolder(kind="photo_folder", name="mine", root=str(root)))


def shrunk(data: bytes, side: int) -> tuple[Any, PhotoBytes]:
    found = check_photo(data, PhotoStorage(max_side_px=side))
    assert isinstance(found, PhotoBytes)
    return np.asarray(Image.open(io.BytesIO(found.data)).convert("L")), found


def test_a_photo_of_a_turned_phone_is_shrunk_upright() -> None:
    pixels = np.zeros((480, 640, 3), dtype=np.uint8)
    pixels[:, :100] = 255  # left as the sensor saw it; upright it is the top
    small, found = shrunk(jpeg(pixels, orientation=6), 320)
    assert (found.width, found.height) == (240, 320)
    assert small[10].mean() > 200 > 50 > small[-10].mean()
    small, found = shrunk(jpeg(pixels), 320)
    assert (found.width, found.height) == (320, 240)
    assert small[:, 10].mean() > 200 > 50 > small[:, -10].mean()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_readers_turn_it(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    data = jpeg(pixels, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    small, found = shrunk(data, 160)
    assert (found.width, found.height) == ((160, 120) if orientation < 5 else (120, 160))
    expected = np.asarray(upright.resize((found.width, found.height), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(small - expected).mean() < 4  # JPEG; turned in another way it is above 50


def test_a_photo_with_broken_tags_is_shrunk_all_the_same() -> None:
    exif, sink = Image.Exif(), io.BytesIO()
    exif[Base.Orientation] = 6
    exif[Base.Make] = "maker"
    Image.fromarray(np.zeros((480, 640, 3), dtype=np.uint8)).save(sink, "JPEG", exif=exif)
    data = sink.getvalue()
    make, resolution = (struct.pack(">HHI", tag, 2, 6) for tag in (Base.Make, Base.XResolution))
    assert data.count(make) == 1
    data = data.replace(make, resolution)  # a resolution in words
    _, found = shrunk(data, 320)
    assert (found.width, found.height) == (240, 320)


def test_grey_of_16_bits_keeps_its_shades() -> None:
    sink = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 640 * 480).astype(np.uint16).reshape(480, 640)).save(sink, "PNG")
    small, _ = shrunk(sink.getvalue(), 320)
    assert abs(small.mean() - 127) < 5


def test_formats_that_are_not_read_are_refused_one_by_one(tmp_path: Path, check: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(np.zeros((40, 40, 3), dtype=np.uint8)))
    for name in ("b.HEIC", "c.webp", "d.tif", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    listing = folder_of(tmp_path)
    _, reasons = check(listing)
    refused = {"b.HEIC": "decode_error", "c.webp": "decode_error", "d.tif": "decode_error"}
    assert reasons == {"a.jpg": "no_position", **refused}
    details = {row["reason"]: row["detail"] for row in listing.rejects.to_pylist()}
    assert "convert it to JPEG or PNG" in details["decode_error"]


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path, check: Any) -> None:
    for name in (b"a.jpg", b"caf\xe9.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(
            jpeg(np.zeros((40, 40, 3), dtype=np.uint8))
        )
    _, reasons = check(folder_of(tmp_path))
    assert reasons == {"a.jpg": "no_position", "caf\\xe9.jpg": "decode_error"}


def table_of(root: Path) -> PhotoTable:
    return PhotoTable(
        kind="photo_table",
        name="mine",
        root=str(root),
        table="photos.parquet",
        columns={"frame": "frame"},
    )


def test_text_of_a_parquet_table_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9.jpg", b"b.jpg"])
    paths = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"path": paths, "frame": [1, 2]}), tmp_path / "photos.parquet")
    config = table_of(tmp_path)
    with pytest.raises(DataError, match=r"/photos\.parquet: column path is not UTF-8 text"):
        list_source(config)


def test_a_frame_number_that_is_none_is_refused(tmp_path: Path, check: Any) -> None:
    table = pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "frame": [1.0, 12.5, 1e30]})
    pq.write_table(table, tmp_path / "photos.parquet")
    config = table_of(tmp_path)
    kept, reasons = check(list_source(config))
    assert [photo["frame"] for photo in kept] == [1]
    assert reasons == {"b.jpg": "bad_row", "c.jpg": "bad_row"}


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("0000:00:00 00:00:00", None),
        ("2024-13-45", None),
        ("2024-02-01T25:00:00", None),
        ("2024-04-31", None),
        ("20240230_101500", None),
        ("2023-02-29", None),
        ("1900-02-29", None),
        ("2000-02-29", "2000-02-29"),
        ("2024:02:29 14:33:53", "2024-02-29T14:33:53"),
        ("2024-04-11T10:00:00+99:99", None),
        ("2024-04-11T10:00:00+02:00", "2024-04-11T10:00:00+02:00"),
        ("2016-00", "2016"),
        ("201600", "2016"),
        ("2016-06-00", "2016-06"),
        ("2024/04/11", "2024-04-11"),
        ("2024/04/11 14:33:53", "2024-04-11T14:33:53"),
        ("20240411143353", "2024-04-11T14:33:53"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ("2017:01:01 05:29:60.25", "2017-01-01T05:29:59.25"),
        ("20170101_085960", "2017-01-01T08:59:59"),
        ("2017-01-01T08:58:60", None),
        ("2017-01-01T08:59:61", None),
        ("2017-01-01T08:60", None),
    ],
)
def test_no_time_is_impossible(text: str, iso: str | None) -> None:
    assert photos.parse_captured(photos.texts([text])).to_pylist() == [iso]


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("a/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "other").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = [name for folder in storage.walk_files(str(tmp_path / "a")) for name in folder]
    assert found == ["1.jpg", "other/2.jpg"]


def test_two_folders_that_lead_to_each_other_are_listed_once(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        (tmp_path / here / f"{here}.jpg").write_bytes(b"x")
        (tmp_path / here / "over").symlink_to(tmp_path / there, target_is_directory=True)
    (tmp_path / "door").symlink_to(tmp_path / "a", target_is_directory=True)
    for root in ("a", "door"):
        found = [name for folder in storage.walk_files(str(tmp_path / root)) for name in folder]
        assert found == ["a.jpg", "over/b.jpg"]
