"""MSLS: longitude first, flags as text with any line end, four query lists."""

from pathlib import Path
from typing import Any

import pytest

from placeray.datasets import list_source
from placeray.datasets.msls import Msls
from placeray.errors import DataError

RAW = ",key,lon,lat,ca,captured_at,pano"
POST = ",key,easting,northing,unique_cluster,control_panel,night,view_direction"
SUBTASK = ",key,s2w,all,w2s,o2n,n2o,d2n,n2d"  # `all` is found by its name


def table(header: str, rows: list[str], line_end: str = "\n", final: bool = True) -> str:
    lines = [header, *(f"{number},{row}" for number, row in enumerate(rows))]
    return line_end.join(lines) + (line_end if final else "")


def city(
    write: Any, folder: str, raw: list[str], line_end: str = "\n", final: bool = True, files: bool = True
) -> None:
    write(f"{folder}/raw.csv", table(RAW, raw, line_end, final))
    for row in raw if files else []:
        write(f"{folder}/images/{row.split(',')[0]}.jpg")


def listed(root: Path, check: Any, **settings: Any) -> Any:
    return check(list_source(Msls(kind="msls", root=str(root), **settings)))


def test_longitude_comes_before_latitude(tmp_path: Path, write: Any, check: Any) -> None:
    city(write, "train_val/amman/database", ["a_b-C,35.93,31.95,123.5,2017-03-04,False"])
    city(write, "train_val/amman/query", [])
    (photo,), reasons = listed(tmp_path, check)
    assert reasons == {}
    assert (photo["lat"], photo["lon"], photo["heading_deg"], photo["captured"]) == (
        31.95,
        35.93,
        123.5,
        "2017-03-04",
    )
    assert (photo["city"], photo["role"], photo["utm_zone"]) == ("amman", "train", "36R")
    assert photo["path"] == "train_val/amman/database/images/a_b-C.jpg"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("flag", ["True", "TRUE", "true", "1"])
def test_the_last_panorama_does_not_slip_through(
    tmp_path: Path, write: Any, check: Any, line_end: str, final: bool, flag: str
) -> None:
    rows = ["a,35.93,31.95,0,2017-03-04,False", f"b,35.93,31.95,0,2017-03-04,{flag}"]
    city(write, "train_val/goa/database", rows, line_end, final)
    city(write, "train_val/goa/query", [], line_end, final)
    photos, reasons = listed(tmp_path, check)
    assert [photo["path"].rsplit("/", 1)[-1] for photo in photos] == ["a.jpg"]
    assert reasons == {"b.jpg": "panorama"}


def test_faults_have_reasons(tmp_path: Path, write: Any, check: Any) -> None:
    folder = "train_val/goa/query"
    rows = [
        "good,35.93,31.95,0,2017-03-04,False",
        "good,35.93,31.95,0,2017-03-04,False",
        "nopos,,,0,2017-03-04,False",
        "nohead,35.93,31.95,,2017-03-04,False",
        "gone,35.93,31.95,0,2017-03-04,False",
        "text,east,31.95,0,2017-03-04,False",
        "short,35.93",
        ",35.93,31.95,0,2017-03-04,False",
    ]
    city(write, folder, rows)
    city(write, "train_val/goa/database", [])
    (tmp_path / folder / "images/gone.jpg").unlink()
    (tmp_path / folder / "images/short.jpg").unlink()
    (tmp_path / folder / "images/.jpg").unlink()
    write(f"{folder}/images/upper.JPG")
    photos, reasons = listed(tmp_path, check)
    assert [photo["path"].rsplit("/", 1)[-1] for photo in photos] == ["good.jpg"]
    assert reasons == {
        "good.jpg": "duplicate",
        "nopos.jpg": "no_position",
        "nohead.jpg": "bad_heading",
        "gone.jpg": "missing_file",
        "text.jpg": "bad_row",
        "raw.csv#line-8": "bad_row",
        ".jpg": "bad_row",
        "upper.JPG": "no_position",
    }


@pytest.fixture
def val_city(write: Any, tmp_path: Path) -> Path:
    """Two map photos and five queries; the rows of the four files are not in one order."""
    folder = "train_val/cph"
    rows = {"m1": "12.50,55.70", "m2": "12.51,55.70"}
    city(write, f"{folder}/database", [f"{key},{at},,2017-03-04,False" for key, at in rows.items()])
    write(f"{folder}/database/postprocessed.csv", table(POST, [
        "m2,346000.0,6174000.0,0,False,False,Forward",
        "m1,345000.0,6174000.0,0,False,False,Forward",
    ]))  # fmt: skip
    queries = {"near": "False", "edge": "False", "beyond": "False", "pano": "True", "other": "False"}
    city(write, f"{folder}/query", [f"{key},12.5,55.7,,2017-03-04,{pano}" for key, pano in queries.items()])
    write(f"{folder}/query/postprocessed.csv", table(POST, [
        "edge,345025.0,6174000.0,0,False,False,Forward",
        "beyond,345025.001,6174000.0,0,False,False,Forward",
        "other,345000.0,6174000.0,0,False,False,Forward",
        "pano,345000.0,6174000.0,0,False,False,Forward",
        "near,345000.0,6174001.0,0,False,False,Forward",
    ]))  # fmt: skip
    write(f"{folder}/query/subtask_index.csv", table(SUBTASK, [
        f"{key},False,{key != 'other'},False,False,False,False,False" for key in reversed(queries)
    ]))  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    ("query_list", "expected"),
    [
        ("official-740", {"near", "edge"}),
        ("official-747", {"near", "edge", "beyond"}),
        ("vg-11084", {"near", "edge", "beyond", "other"}),
    ],
)
def test_query_lists(val_city: Path, check: Any, query_list: str, expected: set[str]) -> None:
    """A positive is at most 25 m away, border included; metres are those of postprocessed.csv, joined by
    key.
    """
    photos, reasons = listed(val_city, check, split="val", query_list=query_list)
    queries = {
        photo["path"].rsplit("/", 1)[-1].removesuffix(".jpg") for photo in photos if photo["role"] == "query"
    }
    assert queries == expected
    assert {photo["city"] for photo in photos} == {"cph"}
    (edge,) = [photo for photo in photos if photo["path"].endswith("/edge.jpg")]
    assert (edge["utm_east"], edge["utm_zone"], edge["heading_deg"]) == (345025.0, "33U", None)
    assert set(reasons.values()) == {"panorama", "not_selected"} or query_list == "vg-11084"


def test_the_list_of_750_holds_panoramas(val_city: Path, check: Any) -> None:
    photos, reasons = listed(val_city, check, split="val", query_list="official-750")
    assert {photo["path"].rsplit("/", 1)[-1] for photo in photos if photo["role"] == "query"} == {
        "near.jpg", "edge.jpg", "beyond.jpg", "pano.jpg"
    }  # fmt: skip
    assert reasons == {"other.jpg": "not_selected"}


def test_test_cities_have_no_labels(tmp_path: Path, write: Any, check: Any) -> None:
    for role, key in (("database", "a"), ("query", "b")):
        write(f"test/miami/{role}/seq_info.csv", f",key,sequence_key,frame_number\n0,{key},s,0\n")
        write(f"test/miami/{role}/images/{key}.jpg")
    photos, reasons = listed(tmp_path, check, split="test")
    assert Msls(kind="msls", root="x", split="test").positive is None
    assert Msls(kind="msls", root="x", split="val").positive is not None
    assert [(photo["role"], photo["lat"], photo["utm_zone"]) for photo in photos] == [
        ("database", None, None), ("query", None, None)
    ]  # fmt: skip
    assert reasons == {}


def test_wrong_roots_are_one_sentence(tmp_path: Path, write: Any, check: Any) -> None:
    with pytest.raises(DataError, match=r"msls/train: no folder of any city of the split in .*train_val"):
        listed(tmp_path, check)
    city(write, "train_val/goa/database", [])
    with pytest.raises(DataError, match="no folder nairobi"):
        listed(tmp_path, check, cities=["goa", "nairobi"])
    write("train_val/goa/database/raw.csv", ",key,lat\n")
    with pytest.raises(DataError, match="has no column lon, ca, captured_at, pano"):
        listed(tmp_path, check)
