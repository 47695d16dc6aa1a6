"""GSV-Cities: names composed from text, and every trap of its CSV."""

from pathlib import Path
from typing import Any

import pytest

from placeray.datasets import list_source
from placeray.datasets.gsv_cities import GsvCities
from placeray.errors import DataError

HEADER = "place_id,year,month,northdeg,city_id,lat,lon,panoid"


def city(write: Any, rows: list[str], files: list[str], line_end: str = "\n", name: str = "PRS") -> None:
    write(f"Dataframes/{name}.csv", line_end.join([HEADER, *rows, ""]))
    for file in files:
        write(f"Images/{name}/{file}")


def listed(root: Path, check: Any, **settings: Any) -> Any:
    return check(list_source(GsvCities(kind="gsv_cities", root=str(root), **settings)))


def test_a_row_becomes_a_photo(tmp_path: Path, write: Any, check: Any) -> None:
    file = "PRS_0000012_2014_06_090_48.85_2.35_Ab_c-D.jpg"
    city(write, ["12,2014,6,90,PRS,48.85,2.35,Ab_c-D"], [file])
    photos, reasons = listed(tmp_path, check)
    (photo,) = photos
    assert reasons == {}
    assert photo["path"] == f"Images/PRS/{file}"
    assert (photo["lat"], photo["lon"], photo["heading_deg"], photo["captured"]) == (
        48.85,
        2.35,
        90.0,
        "2014-06",
    )
    assert (photo["city"], photo["place_key"], photo["panorama_id"]) == ("PRS", "0000012", "Ab_c-D")
    assert (photo["role"], photo["split"], photo["utm_zone"]) == ("train", "train", "31U")


@pytest.mark.parametrize("lat", ["48.85123456789012", "-33.4", "48.8", "1e-05", "48.850"])
def test_coordinates_stay_text_in_names(tmp_path: Path, write: Any, check: Any, lat: str) -> None:
    city(write, [f"1,2014,6,90,PRS,{lat},2.349999999999997,x"], [
        f"PRS_0000001_2014_06_090_{lat}_2.349999999999997_x.jpg"
    ])  # fmt: skip
    photos, _ = listed(tmp_path, check)
    assert [photo["lat"] for photo in photos] == [float(lat)]


@pytest.mark.parametrize("panoid", ["0001234567890123", "NA", "nan", "null", "_a-B__c_", "--"])
def test_panorama_ids_stay_text(tmp_path: Path, write: Any, check: Any, panoid: str) -> None:
    city(write, [f"1,2014,6,90,PRS,48.8,2.3,{panoid}"], [f"PRS_0000001_2014_06_090_48.8_2.3_{panoid}.jpg"])
    photos, _ = listed(tmp_path, check)
    assert [photo["panorama_id"] for photo in photos] == [panoid]


@pytest.mark.parametrize(("northdeg", "heading"), [("411", 51.0), ("584", 224.0), ("360", 0.0), ("7", 7.0)])
def test_headings_are_taken_modulo_360_but_not_in_names(
    tmp_path: Path, write: Any, check: Any, northdeg: str, heading: float
) -> None:
    city(
        write, [f"1,2014,6,{northdeg},PRS,48.8,2.3,x"], [f"PRS_0000001_2014_06_{northdeg:>03}_48.8_2.3_x.jpg"]
    )
    photos, _ = listed(tmp_path, check)
    assert [photo["heading_deg"] for photo in photos] == [heading]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path, write: Any, check: Any) -> None:
    rows = ["1,2014,6,90,PRS,48.8,2.3,x", "1,2015,6,90,PRS,48.8,2.3,y"]
    files = ["PRS_0000001_2014_06_090_48.8_2.3_x.jpg", "PRS_0000001_2015_06_090_48.8_2.3_y.jpg"]
    city(write, rows, files, line_end="\r\n")
    csv = tmp_path / "Dataframes/PRS.csv"
    csv.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes().removesuffix(b"\r\n"))
    photos, reasons = listed(tmp_path, check)
    assert [photo["panorama_id"] for photo in photos] == ["x", "y"]
    assert reasons == {}


def test_upper_case_extension_and_name_with_other_digits_are_found(
    tmp_path: Path, write: Any, check: Any
) -> None:
    rows = ["1,2014,6,90,PRS,48.80,2.3,x", "1,2014,6,90,PRS,48.8,2.3,Y"]
    files = ["PRS_0000001_2014_06_090_48.8_2.3_x.jpg", "PRS_0000001_2014_06_090_48.8_2.3_Y.JPG"]
    city(write, rows, files)
    photos, reasons = listed(tmp_path, check)
    assert sorted(photo["path"] for photo in photos) == sorted(f"Images/PRS/{file}" for file in files)
    assert reasons == {}


def test_two_photos_of_one_panorama_are_not_mixed_up(tmp_path: Path, write: Any, check: Any) -> None:
    """A row whose file is gone must not take the file of another row of the same panorama."""
    rows = ["1,2014,6,90,PRS,48.8,2.3,x", "1,2014,6,180,PRS,48.8,2.3,x"]
    city(write, rows, ["PRS_0000001_2014_06_090_48.8_2.3_x.jpg"])
    photos, reasons = listed(tmp_path, check)
    assert [photo["heading_deg"] for photo in photos] == [90.0]
    assert reasons == {"PRS_0000001_2014_06_180_48.8_2.3_x.jpg": "missing_file"}


def test_rows_that_cannot_be_used_are_rejected_with_their_reason(
    tmp_path: Path, write: Any, check: Any
) -> None:
    good = "PRS_0000001_2014_06_090_48.8_2.3_good.jpg"
    rows = [
        "1,2014,6,90,PRS,48.8,2.3,good",
        "1,2014,6,90,PRS,48.8,2.3,good",
        "1,2014,6,90,PRS,48.8,2.3,gone",
        "1,2014,6,90,PRS,95.5,2.3,far",
        "1,2014,6,90,PRS,,2.3,empty",
        "1,2014,6,90,PRS,abc,2.3,text",
        "1,2014,6,north,PRS,48.8,2.3,north",
        "1,2014,6,90,LON,48.8,2.3,other",
        "1,2014,6",
        "one,2014,6,90,PRS,48.8,2.3,one",
    ]
    files = [
        good,
        "PRS_0000001_2014_06_090_95.5_2.3_far.jpg",
        "PRS_0000001_2014_06_090__2.3_empty.jpg",
        "PRS_0000001_2014_06_090_abc_2.3_text.jpg",
        "PRS_0000001_2014_06_north_48.8_2.3_north.jpg",
        "PRS_0000099_2014_06_090_48.8_2.3_nobody.jpg",
        "Thumbs.db",
    ]
    city(write, rows, files)
    photos, _ = listed(tmp_path, check)
    rejects = list_source(GsvCities(kind="gsv_cities", root=str(tmp_path))).rejects.to_pylist()
    assert [photo["path"] for photo in photos] == [f"Images/PRS/{good}"]
    assert sorted(
        (reject["source_uri"].split("_")[-1].split("/")[-1], reject["reason"]) for reject in rejects
    ) == [
        ("PRS.csv#line-10", "bad_row"),
        ("empty.jpg", "no_position"),
        ("far.jpg", "no_position"),
        ("gone.jpg", "missing_file"),
        ("good.jpg", "duplicate"),
        ("nobody.jpg", "no_position"),
        ("north.jpg", "bad_heading"),
        ("one.jpg", "bad_row"),
        ("other.jpg", "bad_row"),
        ("text.jpg", "bad_row"),
    ]


def test_only_the_chosen_cities_are_read(tmp_path: Path, write: Any, check: Any) -> None:
    for name in ("PRS", "OSL"):
        city(
            write,
            [f"1,2014,6,90,{name},48.8,2.3,x"],
            [f"{name}_0000001_2014_06_090_48.8_2.3_x.jpg"],
            name=name,
        )
    assert [photo["city"] for photo in listed(tmp_path, check, cities=["OSL"])[0]] == ["OSL"]
    assert [photo["city"] for photo in listed(tmp_path, check)[0]] == ["OSL", "PRS"]
    with pytest.raises(DataError, match="no CSV for TRT"):
        listed(tmp_path, check, cities=["TRT"])


def test_wrong_roots_and_tables_are_one_sentence(tmp_path: Path, write: Any, check: Any) -> None:
    with pytest.raises(DataError, match="no folder Dataframes in"):
        listed(tmp_path, check)
    write("Dataframes/PRS.csv", "place_id,year\n1,2014\n")
    with pytest.raises(
        DataError, match=r"PRS.csv has no column month, northdeg.*its columns are place_id, year"
    ):
        listed(tmp_path, check)
    write("Dataframes/PRS.csv", (HEADER + "\n1,2014,6,90,PRS,48.8,2.3,Fürth\n").encode("latin-1"))
    with pytest.raises(DataError, match="UTF"):
        listed(tmp_path, check)
    write("Dataframes/PRS.csv", "")
    with pytest.raises(DataError, match="is empty"):
        listed(tmp_path, check)
