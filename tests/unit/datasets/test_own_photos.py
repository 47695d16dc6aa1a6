"""Anyone's photos: tables of paths and positions, folders with EXIF."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from placeray.config import load_config
from placeray.datasets import list_source
from placeray.datasets.photo_folder import PhotoFolder
from placeray.datasets.photo_table import PhotoTable
from placeray.errors import DataError, StorageError
from placeray.jobspecs.normalize import NormalizeJob

COLUMNS = {
    "path": "file",
    "lat": "lat",
    "lon": "lon",
    "heading_deg": "dir",
    "captured": "when",
    "role": "set",
}


def table_of(root: Path, **settings: Any) -> PhotoTable:
    return PhotoTable(kind="photo_table", name="mine", root=str(root), **settings)


def test_a_csv_with_its_own_column_names(tmp_path: Path, write: Any, check: Any) -> None:
    write(
        "list.csv",
        "set,file,lon,lat,dir,when\nmap,a b.jpg,13.2,55.7,-10,20240410_162150\nask,ä.jpg,13.2,55.7,,2024\n",
    )
    config = table_of(tmp_path, table="list.csv", columns=COLUMNS, roles={"map": "database", "ask": "query"})
    (first, second), reasons = check(list_source(config))
    assert reasons == {}
    assert (first["role"], first["path"], first["heading_deg"]) == ("database", "a b.jpg", 350.0)
    assert (first["lat"], first["lon"], first["utm_zone"]) == (55.7, 13.2, "33U")
    assert first["captured"] == "2024-04-10T16:21:50"
    assert (second["role"], second["path"], second["heading_deg"]) == ("query", "ä.jpg", None)


def test_a_parquet_table_with_frame_numbers(tmp_path: Path, check: Any) -> None:
    pq.write_table(
        pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "frame": [7, 8, None]}), tmp_path / "list.parquet"
    )
    config = table_of(tmp_path, table="list.parquet", columns={"frame": "frame"}, default_role="query")
    photos, reasons = check(list_source(config))
    assert [(photo["frame"], photo["role"], photo["lat"]) for photo in photos] == [
        (7, "query", None),
        (8, "query", None),
    ]
    assert reasons == {"c.jpg": "no_position"}


def test_a_parquet_table_of_numbers_and_times(tmp_path: Path, check: Any) -> None:
    """Types as other programs write them: categories, float32, whole numbers, times with a zone, missing values."""
    table = pa.table(
        {
            "path": pa.array(["a.jpg", "b.jpg", "c.jpg"]).dictionary_encode(),
            "lat": pa.array([55.7, np.nan, 55.7]),
            "lon": pa.array([13.2, 13.2, 13.2]),
            "heading": pa.array([350, 10, None], pa.int32()),
            "time": pa.array([1_712_766_110_000_000] * 3, pa.timestamp("us", "UTC")),
            "more": pa.array([[1], [2], [3]]),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    columns = {"lat": "lat", "lon": "lon", "heading_deg": "heading", "captured": "time"}
    photos, reasons = check(list_source(table_of(tmp_path, table="list.parquet", columns=columns)))
    assert reasons == {"b.jpg": "no_position"}
    assert [(photo["path"], photo["heading_deg"]) for photo in photos] == [("a.jpg", 350.0), ("c.jpg", None)]
    assert photos[0]["captured"] == "2024-04-10T16:21:50.000000Z"


def test_rows_of_unknown_or_skipped_roles(tmp_path: Path, write: Any, check: Any) -> None:
    write("manifest.csv", "path,frame,set\na.jpg,1,database\nb.jpg,1,spare\nc.jpg,1,other\n,1,database\n")
    columns = {"frame": "frame", "role": "set"}
    config = table_of(tmp_path, columns=columns, roles={"database": "database", "spare": "skip"})
    photos, reasons = check(list_source(config))
    assert [photo["path"] for photo in photos] == ["a.jpg"]
    assert reasons == {"b.jpg": "not_selected", "c.jpg": "bad_row", "": "bad_row"}


def test_missing_tables_and_columns(tmp_path: Path, write: Any) -> None:
    with pytest.raises(StorageError, match=r"no such file: .*manifest.csv"):
        list_source(table_of(tmp_path))
    write("manifest.csv", "file,frame\n")
    with pytest.raises(DataError, match="has no column path; its columns are file, frame"):
        list_source(table_of(tmp_path))
    with pytest.raises(DataError, match="has no rows"):
        list_source(table_of(tmp_path, columns={"path": "file"}))


def exif_photo(
    lat: Any = None, lon: Any = None, heading: Any = None, taken: str = "", ref: str = "NE"
) -> bytes:
    image = Image.fromarray(np.zeros((24, 32, 3), np.uint8))
    exif = image.getexif()
    gps = exif.get_ifd(IFD.GPSInfo)
    if lat is not None:
        gps[GPS.GPSLatitudeRef], gps[GPS.GPSLatitude] = ref[0], lat
        gps[GPS.GPSLongitudeRef], gps[GPS.GPSLongitude] = ref[1], lon
    if heading is not None:
        gps[GPS.GPSImgDirection] = heading
    if taken:
        exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = taken
    sink = io.BytesIO()
    image.save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def test_a_folder_of_photos_with_gps(tmp_path: Path, write: Any, check: Any) -> None:
    write(
        "walk/1.JPG",
        exif_photo((33.0, 51.0, 36.0), (151.0, 12.0, 0.0), 93.5, "2024:04:10 16:21:50", ref="SE"),
    )
    write("walk/nogps.jpg", exif_photo())
    write("walk/nofix.jpg", exif_photo((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    write("walk/notes.txt")
    write("walk/broken.jpg", b"\xff\xd8\xff no image")
    (photo,), reasons = check(
        list_source(PhotoFolder(kind="photo_folder", name="walk", root=str(tmp_path / "walk")))
    )
    assert (photo["lat"], photo["lon"]) == (pytest.approx(-33.86), pytest.approx(151.2))
    assert (photo["utm_zone"], photo["heading_deg"], photo["captured"]) == (
        "56H",
        93.5,
        "2024-04-10T16:21:50",
    )
    assert reasons == {"nogps.jpg": "no_position", "nofix.jpg": "no_position", "broken.jpg": "decode_error"}


def test_a_pair_of_folders_without_labels(tmp_path: Path, write: Any, check: Any) -> None:
    write("a.jpg", exif_photo())
    write("ask/b.jpg", exif_photo())
    config = PhotoFolder(
        kind="photo_folder",
        name="pair",
        root=str(tmp_path),
        queries="ask",
        needs_position=False,
        positive=None,
    )
    photos, reasons = check(list_source(config))
    assert [(photo["path"], photo["role"]) for photo in photos] == [
        ("a.jpg", "database"),
        ("ask/b.jpg", "query"),
    ]
    assert reasons == {}
    write("empty/notes.txt")
    with pytest.raises(DataError, match="no photo"):
        list_source(PhotoFolder(kind="photo_folder", name="none", root=str(tmp_path / "empty")))


@pytest.mark.real
def test_real_exif_agrees_with_its_table(real_data: Path, check: Any) -> None:
    folder = real_data / "opensfm_lund"
    config = table_of(folder, columns={"lat": "lat", "lon": "lon"})
    by_table, _ = check(list_source(config))
    by_exif, reasons = check(list_source(PhotoFolder(kind="photo_folder", name="lund", root=str(folder))))
    assert reasons == {}
    assert len(by_exif) == len(by_table) == 29
    for one, other in zip(by_exif, by_table, strict=True):
        assert one["path"] == other["path"]
        assert (one["lat"], one["lon"]) == (
            pytest.approx(other["lat"], abs=1e-6),
            pytest.approx(other["lon"], abs=1e-6),
        )


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "database", "queries", "rule"),
    [
        ("gardens_point", 200, 200, {"kind": "frames", "window": 2}),
        ("cmu_campus", 279, 189, {"kind": "radius", "radius_m": 25.0}),
    ],
)
def test_configs_of_real_sets(
    repository: Path, real_data: Path, check: Any, monkeypatch: pytest.MonkeyPatch,
    name: str, database: int, queries: int, rule: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setenv("PLACERAY_REAL_DATA", str(real_data))
    job = load_config(NormalizeJob, repository / f"jobs/configs/normalize/{name}.yaml")
    (source,) = job.normalize.sources
    photos, reasons = check(list_source(source))
    roles = [photo["role"] for photo in photos]
    assert (roles.count("database"), roles.count("query"), reasons) == (database, queries, {})
    assert source.positive is not None
    assert source.positive.model_dump() == rule
