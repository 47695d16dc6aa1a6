"""'@' names, in SF-XL trees and in the datasets_vg form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placeray.datasets import list_source, photos
from placeray.datasets.at_layout import AtLayout
from placeray.datasets.sf_xl import SfXl
from placeray.errors import DataError, StorageError

SF = "@0544388.51@4172758.25@10@S@037.70098@-122.49646@{pano}@@{heading}@@@@{captured}@@.jpg"
PITTS = "@0585270.09@4477170.09@17@T@040.43965@-079.99478@000829@{tile}@@@@@@pitch1_yaw2@.jpg"


def evaluation_set(tmp_path: Path, **settings: Any) -> AtLayout:
    return AtLayout(kind="at_layout", name="set", root=str(tmp_path), **settings)


def write_pair(write: Any, database: str, query: str, folder: str = "images/test") -> None:
    write(f"{folder}/database/{database}")
    write(f"{folder}/queries/{query}")


def test_all_fields_of_a_name(tmp_path: Path, write: Any, check: Any) -> None:
    write_pair(
        write,
        SF.format(pano="0012", heading="210", captured="201606"),
        SF.format(pano="q", heading="", captured=""),
    )
    (database, query), reasons = check(list_source(evaluation_set(tmp_path)))
    assert reasons == {}
    assert (database["role"], query["role"], database["split"]) == ("database", "query", "test")
    assert (database["utm_east"], database["utm_north"], database["utm_zone"]) == (
        544388.51,
        4172758.25,
        "10S",
    )
    assert (database["lat"], database["lon"]) == (37.70098, -122.49646)
    assert (database["panorama_id"], database["heading_deg"], database["captured"]) == (
        "0012",
        210.0,
        "2016-06",
    )
    assert (query["heading_deg"], query["captured"]) == (None, None)


def test_an_at_sign_in_a_folder_changes_nothing(tmp_path: Path, write: Any, check: Any) -> None:
    write_pair(write, "a@b@c/" + SF.format(pano="x", heading="7", captured="2016"), "@1@2@.jpg")
    rows, reasons = check(list_source(evaluation_set(tmp_path)))
    assert (rows[0]["utm_east"], rows[0]["heading_deg"], rows[0]["captured"]) == (544388.51, 7.0, "2016")
    assert reasons == {}


def test_frame_numbers_written_as_metres_need_no_zone(tmp_path: Path, write: Any, check: Any) -> None:
    """Nordland, AmsterTime and SPED write made-up metres; a radius in metres still tells right from wrong."""
    write_pair(write, "@0000000.00@0000025.00@@@@@@@@@@@@@.jpg", "@0000000.00@0000027.40@.jpg")
    rows, reasons = check(list_source(evaluation_set(tmp_path)))
    assert [(row["utm_north"], row["utm_zone"], row["lat"]) for row in rows] == [
        (25.0, None, None),
        (27.4, None, None),
    ]
    assert reasons == {}


def test_frame_numbers_are_read_back_from_metres(tmp_path: Path, write: Any, check: Any) -> None:
    """Nordland writes north = frame * 25 / 10.5 with one decimal, AmsterTime pair * 1000."""
    for frame in range(0, 27_592, 997):
        north = round(frame * 25 / 10.5, 1)
        write_pair(
            write, f"@0000000.00@{north:010.2f}@{frame}@.jpg", f"@0000000.00@{north:010.2f}@{frame}@.jpg"
        )
    config = evaluation_set(tmp_path, frame_spacing_m=25 / 10.5, positive={"kind": "frames", "window": 10})
    rows, reasons = check(list_source(config))
    assert reasons == {}
    assert sorted(row["frame"] for row in rows) == sorted([*range(0, 27_592, 997)] * 2)
    assert all(str(row["frame"]) == row["path"].split("@")[3] for row in rows)


def test_missing_metres_follow_from_degrees_and_the_other_way(tmp_path: Path, write: Any, check: Any) -> None:
    write_pair(
        write, "@@@@@037.70098@-122.49646@x@@@@@@@@.jpg", "@0544388.51@4172758.25@10@S@@@x@@@@@@@@.jpg"
    )
    (database, query), _ = check(list_source(evaluation_set(tmp_path)))
    assert database["utm_east"] == pytest.approx(544388.51, abs=1)
    assert database["utm_zone"] == "10S"
    assert query["lat"] == pytest.approx(37.70098, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("plain.jpg", "bad_name"),
        ("@0544388.51.jpg", "bad_name"),
        ("@east@4172758.25@.jpg", "bad_name"),
        ("@1@2@10@S@xx@-122.4@@@@@@@@@.jpg", "bad_name"),
        ("@@@@@@@@@@@@@@@.jpg", "no_position"),
        ("@@@@@095.00000@-122.49646@@@@@@@@@.jpg", "no_position"),
        ("@@@@@000.00000@0000.00000@@@@@@@@@.jpg", "no_position"),
        ("@1@2@10@S@37.7@-122.4@@@west@@@@@@.jpg", "bad_heading"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, write: Any, check: Any, name: str, reason: str) -> None:
    write_pair(write, name, "@1@2@.jpg")
    assert check(list_source(evaluation_set(tmp_path)))[1] == {name: reason}


def test_folders_of_a_set_and_case_of_extensions(tmp_path: Path, write: Any, check: Any) -> None:
    write("images/test/gallery/@1@2@.JPG")
    write("images/test/gallery/notes.txt")
    write("images/test/queries_night/deep/@3@4@.jpeg")
    settings = {"database": "gallery", "queries": "queries_night"}
    rows, _ = check(list_source(evaluation_set(tmp_path, **settings)))
    assert [row["path"].rsplit("/", 1)[-1] for row in rows] == ["@1@2@.JPG", "@3@4@.jpeg"]
    write("images/test/empty/readme.txt")
    with pytest.raises(DataError, match="no photo below"):
        list_source(evaluation_set(tmp_path, database="empty"))
    with pytest.raises(DataError, match="both null"):
        list_source(evaluation_set(tmp_path, database=None, queries=None))


@pytest.mark.parametrize(
    ("tile", "heading"), [("00", 0.0), ("11", 330.0), ("24", 0.0), ("35", 330.0), ("3", 90.0)]
)
def test_pitts_headings_come_from_tiles(
    tmp_path: Path, write: Any, check: Any, tile: str, heading: float
) -> None:
    write_pair(
        write, PITTS.format(tile=tile), PITTS.format(tile=tile).replace("0829", "0830"), "images/train"
    )
    rows, _ = check(list_source(evaluation_set(tmp_path, split="train", heading_from="tile")))
    assert [(row["heading_deg"], row["role"]) for row in rows] == [(heading, "train")] * 2


def test_training_photos_need_what_places_are_made_of(tmp_path: Path, write: Any, check: Any) -> None:
    write_pair(write, PITTS.format(tile=""), "@0000000.00@0000025.00@@@@@@@@120@@@@@.jpg", "images/train")
    _, reasons = check(list_source(evaluation_set(tmp_path, split="train")))
    assert sorted(reasons.values()) == ["bad_heading", "no_position"]


def test_sf_xl_reads_the_list_beside_the_folder(tmp_path: Path, write: Any, check: Any) -> None:
    names = [SF.format(pano=pano, heading="30", captured="201606") for pano in ("a", "b")]
    write("processed/train_images_paths.txt", f"37.70/{names[0]}\r\n37.70/{names[1]}\r\n")
    write(f"processed/train/37.70/{names[0]}")
    write(f"processed/train/37.71/{names[1]}")
    from_list, _ = check(list_source(SfXl(kind="sf_xl", root=str(tmp_path))))
    from_folder, _ = check(list_source(SfXl(kind="sf_xl", root=str(tmp_path), use_lists=False)))
    assert [row["path"].split("/")[2] for row in from_list] == ["37.70", "37.70"]
    assert [row["path"].split("/")[2] for row in from_folder] == ["37.70", "37.71"]
    assert from_list[0]["city"] == "san-francisco"


def test_sf_xl_folders_of_splits(tmp_path: Path, write: Any, check: Any) -> None:
    name = SF.format(pano="a", heading="", captured="")
    write(f"small/test/database/{name}")
    write(f"small/test/queries_v1/{name}")
    write(f"raw/train/database/{SF.format(pano='a', heading='5', captured='')}")
    config = SfXl(kind="sf_xl", root=str(tmp_path), tree="small", split="test", queries="queries_v1")
    assert [row["role"] for row in check(list_source(config))[0]] == ["database", "query"]
    rows, _ = check(list_source(SfXl(kind="sf_xl", root=str(tmp_path), tree="raw")))
    assert [row["role"] for row in rows] == ["train"]
    with pytest.raises(StorageError, match=r"no such folder: .*processed/val/database"):
        list_source(SfXl(kind="sf_xl", root=str(tmp_path), split="val"))


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2016", "2016"),
        ("201606", "2016-06"),
        ("20160612", "2016-06-12"),
        ("20160612_09", "2016-06-12T09"),
        ("20160612_093015", "2016-06-12T09:30:15"),
        ("2016-06-12", "2016-06-12"),
        ("2016:06:12 09:30:15", "2016-06-12T09:30:15"),
        ("2016-06-12T09:30:15.250+02:00", "2016-06-12T09:30:15.250+02:00"),
        ("June", None),
        ("", None),
    ],
)
def test_capture_times(text: str, iso: str | None) -> None:
    assert photos.parse_captured(photos.texts([text])).to_pylist() == [iso]


@given(st.floats(-1e6, 1e6, allow_nan=False), st.integers(0, 8), st.sampled_from(["", " ", "\r"]))
def test_padded_numbers_read_as_the_number(value: float, width: int, end: str) -> None:
    text = f"{value:0{width}.5f}{end}"
    numbers, bad = photos.parse_numbers(photos.texts([text, "x" + text, text + "m", "", "NaN"]))
    assert numbers[0] == float(text)
    assert bad.tolist() == [False, True, True, False, False]
    assert np.isnan(numbers[1:]).all()
