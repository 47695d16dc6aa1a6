"""Anyone's photos: tables of paths and positions, folders with EXIF."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from placeray.config import load_config
from placeray.datasets import list_source
from placeray.datasets.photo_folder import PhotoFolder
from placeray.datasets.photo_table import PhotoTable, below_root
from placeray.datasets.photos import image_ids, normal_paths, texts
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


PLACED = {"lat": "lat", "lon": "lon"}


@pytest.mark.parametrize(
    "text",
    [
        'path,"GPS Lat, Lon note",lat,lon\na.jpg,"x, y",55.7,13.2\nb.jpg,,55.7,13.2\n',
        "path,lat,lon\na.jpg,55.7,13.2,\nb.jpg,55.7,13.2,\n",
        "path,lat,lon\na.jpg,55.7,13.2\nb.jpg,55.7,13.2,,\n",
        "path,lat,lon\na.jpg,55.7,13.2,,\nb.jpg,55.7,13.2\n",
        "path,lat,lon,\na.jpg,55.7,13.2\nb.jpg,55.7,13.2,\n",
        "path,lat,lon,\na.jpg,55.7,13.2,a note\nb.jpg,55.7,13.2\n",
        "\ufeff\r\n  \r\npath,lat,lon\r\na.jpg,55.7,13.2\r\n\r\nb.jpg,55.7,13.2",
    ],
)
def test_csv_files_as_programs_write_them(tmp_path: Path, write: Any, check: Any, text: str) -> None:
    """Commas in a name of a column, commas behind the last one, blank lines."""
    write("manifest.csv", text)
    photos, reasons = check(list_source(table_of(tmp_path, columns=PLACED)))
    assert reasons == {}
    assert [(row["path"], row["lat"], row["lon"]) for row in photos] == [
        ("a.jpg", 55.7, 13.2),
        ("b.jpg", 55.7, 13.2),
    ]


def test_rows_that_do_not_fit_the_header(tmp_path: Path, write: Any, check: Any) -> None:
    write("manifest.csv", "\npath,lat,lon\nLund, Sweden.jpg,55.7,13.2\nb,c.jpg,55.7,13.2\n")
    with pytest.raises(
        DataError,
        match=r"mine/test: no row of .*manifest\.csv has as many fields as its header; line 3 is "
        r"'Lund, Sweden\.jpg,55\.7,13\.2': name every column, and quote values that hold a comma",
    ):
        list_source(table_of(tmp_path, columns=PLACED))
    write("manifest.csv", "path,lat,lon\na.jpg,55.7,13.2,\nb,c.jpg,55.7,13.2\nd.jpg,55.7\n")
    photos, reasons = check(list_source(table_of(tmp_path, columns=PLACED)))
    assert [row["path"] for row in photos] == ["a.jpg"]
    assert reasons == {"manifest.csv#line-3": "bad_row", "manifest.csv#line-4": "bad_row"}


def test_lines_are_those_of_an_editor(tmp_path: Path, write: Any) -> None:
    """Also behind blank lines and values that take several."""
    write(
        "manifest.csv",
        '"note\nof two lines",path,lat,lon\n\n"x\ny\nz",a.jpg,55.7,13.2\n1,2\n,,55.7,13.2\n"\n",b.jpg,55.7,13.2\n3\n',
    )
    listing = list_source(table_of(tmp_path, columns=PLACED))
    assert listing.photos["path"].to_pylist() == ["a.jpg", "b.jpg"]
    rejects = listing.rejects.to_pylist()
    assert {row["source_uri"].rsplit("/", 1)[-1] for row in rejects} == {
        "", "manifest.csv#line-7", "manifest.csv#line-11"
    }  # fmt: skip
    assert "no path in manifest.csv line 8" in {row["detail"] for row in rejects}


def test_which_of_two_rows_is_kept_does_not_depend_on_their_order(tmp_path: Path, write: Any) -> None:
    rows = [
        "a.jpg,55.8,13.2,",
        "a.jpg,55.7,13.3,20",
        "a.jpg,55.7,13.2,10",
        "a.jpg,55.7,13.3,",
        "b.jpg,50,10,",
    ]
    found = []
    for order in (rows, rows[::-1], rows[2:] + rows[:2]):
        write("manifest.csv", "\n".join(["path,lat,lon,dir", *order]))
        listing = list_source(table_of(tmp_path, columns={**PLACED, "heading_deg": "dir"}))
        assert listing.rejects["reason"].to_pylist() == ["duplicate"] * 3
        found.append(
            [(row["path"], row["lat"], row["lon"], row["heading_deg"]) for row in listing.photos.to_pylist()]
        )
    assert found == [[("a.jpg", 55.7, 13.2, 10.0), ("b.jpg", 50.0, 10.0, None)]] * 3


def test_a_photo_of_the_map_is_no_query(tmp_path: Path, write: Any) -> None:
    rows = [
        "a.jpg,query",
        "a.jpg,database",
        "b.jpg,query",
        "./b.jpg,query",
        "c.jpg,database",
        "./a.jpg,query",
    ]
    for order in (rows, rows[::-1]):
        write("manifest.csv", "\n".join(["path,role,lat,lon", *(f"{row},55.7,13.2" for row in order)]))
        listing = list_source(table_of(tmp_path, columns={**PLACED, "role": "role"}))
        kept = [(row["path"], row["role"]) for row in listing.photos.to_pylist()]
        assert kept == [("a.jpg", "database"), ("b.jpg", "query"), ("c.jpg", "database")]
        told = [(row["source_uri"][-5:], row["reason"], row["detail"]) for row in listing.rejects.to_pylist()]
        itself = "the photo is in the map: as a query it would find itself"
        assert told == [
            ("a.jpg", "duplicate", itself),
            ("a.jpg", "duplicate", itself),
            ("b.jpg", "duplicate", "another row names the same photo"),
        ]


def test_one_photo_under_several_spellings_of_its_path(tmp_path: Path, write: Any) -> None:
    paths = ["./a.jpg", "sub/../a.jpg", "/a.jpg", "a.jpg", "sub//.b..jpg", "sub/.b..jpg", "..c.jpg"]
    write("manifest.csv", "\n".join(["path,lat,lon", *(f"{path},55.7,13.2" for path in paths)]))
    listing = list_source(table_of(tmp_path, columns=PLACED))
    assert listing.photos["path"].to_pylist() == ["..c.jpg", "a.jpg", "sub/.b..jpg"]
    assert (
        listing.photos["image_id"].to_pylist()
        == image_ids("mine", ["..c.jpg", "a.jpg", "sub/.b..jpg"]).to_pylist()
    )
    assert listing.rejects["reason"].to_pylist() == ["duplicate"] * 4
    assert normal_paths(pa.array(["a//b.jpg", "./c.jpg"]), "s3://bucket").to_pylist() == ["a//b.jpg", "c.jpg"]


def test_paths_that_do_not_count_from_root(tmp_path: Path, write: Any) -> None:
    """In full below root they are the same photos; outside they are refused instead of looked for below root."""
    root = tmp_path / "town"
    write("town/walk/c.jpg", b"photo")
    outside = [
        "/elsewhere/d.jpg",
        "https://example.org/e.jpg",
        f"{tmp_path}/town2/f.jpg",
        "s3://bucket/g.jpg",
    ]
    paths = [f"{root}/a.jpg", f"file://{root}/./b.jpg", "/walk/c.jpg", *outside]
    write("town/manifest.csv", "\n".join(["path,lat,lon", *(f"{path},55.7,13.2" for path in paths)]))
    listing = list_source(table_of(root, columns=PLACED))
    assert listing.photos["path"].to_pylist() == ["a.jpg", "b.jpg", "walk/c.jpg"]
    assert (
        listing.photos["image_id"].to_pylist()
        == image_ids("mine", ["a.jpg", "b.jpg", "walk/c.jpg"]).to_pylist()
    )
    rejects = listing.rejects.to_pylist()
    assert {row["reason"] for row in rejects} == {"bad_row"}
    said = "the path is not below root: write it relative to root, or choose a root above all photos: "
    assert {row["detail"] for row in rejects} == {said + path for path in outside}


def test_full_paths_below_the_root_of_all() -> None:
    found, outside = below_root(texts(["/no/such/folder/a.jpg"]), "/")
    assert (found.to_pylist(), outside.tolist()) == (["no/such/folder/a.jpg"], [False])


def test_full_paths_are_compared_with_the_root_as_they_lead(tmp_path: Path) -> None:
    full = [f"{tmp_path}/../b.jpg", f"/{tmp_path}/c.jpg", f"{tmp_path}/./d.jpg", f"{tmp_path}/e/../f.jpg"]
    found, outside = below_root(texts(["a.jpg", None, *full]), str(tmp_path))
    assert outside.tolist() == [False, False, True, False, False, False]
    assert [found[row].as_py() for row in (0, 3, 4, 5)] == ["a.jpg", "c.jpg", "d.jpg", "f.jpg"]


def test_below_a_root_that_is_missing_only_full_paths_lie_elsewhere() -> None:
    _, outside = below_root(texts(["a.jpg", "sub/b.jpg", "/nowhere/c.jpg", None]), "/no/such/root")
    assert outside.tolist() == [False, False, True, False]


def test_full_paths_in_an_object_store() -> None:
    paths = texts(["s3://bucket/town/a.jpg", "b.jpg", "s3://bucket/town2/c.jpg", "/d/e.jpg"])
    found, outside = below_root(paths, "s3://bucket/town")
    assert found.to_pylist()[:2] == ["a.jpg", "b.jpg"]
    assert outside.tolist() == [False, False, True, False]


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


def as_doubles(photo: bytes, lat: float, lon: float) -> bytes:
    """A photo whose coordinates were written as the rationals 1/7 and 2/7, with floating-point numbers instead."""
    for tag, numerator, degrees in ((GPS.GPSLatitude, 1, lat), (GPS.GPSLongitude, 2, lon)):
        for old, new in (
            (struct.pack(">HHI", tag, 5, 1), struct.pack(">HHI", tag, 12, 1)),
            (struct.pack(">II", numerator, 7), struct.pack(">d", degrees)),
        ):
            assert photo.count(old) == 1
            photo = photo.replace(old, new)
    return photo


@pytest.mark.parametrize(
    ("ref", "written", "degrees"),
    [
        ("NE", (55.7, 13.2), (55.7, 13.2)),
        ("SW", (33.86, 70.65), (-33.86, -70.65)),
        ("SW", (-33.86, -70.65), (-33.86, -70.65)),
        ("  ", (-33.86, 151.2), (-33.86, 151.2)),
        ("NE", (-33.86, 151.2), "GPS tags are there, but no latitude and longitude can be read from them"),
        ("NE", (95.7, 13.2), "latitude or longitude is out of range"),
        (
            "NE",
            (float("nan"), 13.2),
            "GPS tags are there, but no latitude and longitude can be read from them",
        ),
    ],
)
def test_coordinates_of_one_number(
    tmp_path: Path, write: Any, ref: str, written: tuple[float, float], degrees: Any
) -> None:
    """Decimal degrees where EXIF wants degrees, minutes, seconds; a sign that contradicts its letter is not guessed."""
    photo = exif_photo(IFDRational(1, 7), IFDRational(2, 7), ref=ref)
    write("walk/a.jpg", as_doubles(photo, *written))
    if written[0] > 0:
        write("walk/b.jpg", exif_photo(*(IFDRational(round(100 * value), 100) for value in written), ref=ref))
    found = list_source(PhotoFolder(kind="photo_folder", name="walk", root=str(tmp_path / "walk")))
    if isinstance(degrees, str):
        assert {row["detail"] for row in found.rejects.to_pylist()} == {degrees}
        assert found.photos.num_rows == 0
        return
    assert found.rejects.num_rows == 0
    for photo in found.photos.to_pylist():
        assert (photo["lat"], photo["lon"]) == pytest.approx(degrees)


def test_coordinates_of_two_numbers_are_refused_as_such(tmp_path: Path, write: Any) -> None:
    write("walk/a.jpg", exif_photo((55.0, 42.3), (13.0, 12.0)))
    write("walk/b.jpg", exif_photo())
    config = PhotoFolder(kind="photo_folder", name="walk", root=str(tmp_path / "walk"))
    found = {row["source_uri"][-5:]: row["detail"] for row in list_source(config).rejects.to_pylist()}
    assert found == {
        "a.jpg": "GPS tags are there, but no latitude and longitude can be read from them",
        "b.jpg": "neither coordinates nor a frame number",
    }
    unplaced = config.model_copy(update={"needs_position": False, "positive": None})
    assert list_source(unplaced).photos.num_rows == 2


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


@pytest.mark.parametrize(
    ("database", "queries", "expected"),
    [
        ("photos", "photos/night", {"photos/a.jpg": "database", "photos/night/b.jpg": "query"}),
        ("./photos/", "photos//night", {"photos/a.jpg": "database", "photos/night/b.jpg": "query"}),
        ("photos/night", "photos", {"photos/night/b.jpg": "database", "photos/a.jpg": "query"}),
        ("photos/night", "", {"photos/night/b.jpg": "database", "photos/a.jpg": "query"}),
        ("photos/night", "photos/nig", {}),
    ],
)
def test_one_folder_inside_the_other(
    tmp_path: Path, write: Any, database: str, queries: str, expected: dict[str, str]
) -> None:
    """A query that is in the map finds itself."""
    write("photos/a.jpg", exif_photo())
    write("photos/night/b.jpg", exif_photo())
    write("photos/nig/notes.txt")
    config = PhotoFolder(
        kind="photo_folder", name="town", root=str(tmp_path), database=database, queries=queries,
        needs_position=False,
    )  # fmt: skip
    if not expected:
        with pytest.raises(
            DataError, match=r"town/test: no photo \(\.jpg, \.jpeg, \.png\) in .*/photos/nig$"
        ):
            list_source(config)
        return
    rows = list_source(config).photos.to_pylist()
    assert {row["path"]: row["role"] for row in rows} == expected
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("database", "queries", "sentence"),
    [
        ("ask", "./ask", "database and queries are the same folder './ask'"),
        ("", "ask", "no photo .* in .* besides those of ask/"),
        (None, None, "database and queries are both null"),
    ],
)
def test_folders_that_make_no_map(
    tmp_path: Path, write: Any, database: str | None, queries: str | None, sentence: str
) -> None:
    write("ask/a.jpg", exif_photo())
    config = PhotoFolder(
        kind="photo_folder", name="town", root=str(tmp_path), database=database, queries=queries
    )
    with pytest.raises(DataError, match=sentence):
        list_source(config)


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
