"""A look counts what a plain loop counts, whatever its blocks, and says what it cannot show."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from placeray import storage
from placeray.errors import DataError, StorageError
from placeray.overview.config import LookConfig
from placeray.overview.console import print_overview
from placeray.overview.look import Outcome, look

RULE = {"set/test": {"kind": "radius", "radius_m": 25.0}}
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def rows(make_photo: Any) -> list[dict[str, Any]]:
    """40 training photos of 10 places in two cities, and 12 evaluation photos, 3 of them on training streets."""
    found = []
    for number in range(40):
        place = number // 4
        found.append(
            make_photo(
                number,
                city="north" if place < 6 else EVIL,
                lat=55.7 + 0.001 * place + 0.00001 * (number % 4),
                lon=11.9995 + 0.0001 * place,
                heading_deg=float(number * 23 % 360) if number % 3 else None,
                captured=[None, "2016", "2017-05", "2018-02-03T07:30:00+02:00"][number % 4],
                place_id=f"set/{'north' if place < 6 else 'other'}/{place}" if place != 9 else None,
            )
        )
    for number in range(12):
        role, at = ("query", number) if number < 4 else ("database", number - 4)
        here = number in (0, 1, 4)  # near places 0 and 1
        found.append(
            make_photo(
                100 + number,
                split="test",
                role=role,
                lat=55.7 + 0.001 * at if here else 56.5 + 0.0001 * at,
                lon=11.9995 + 0.0001 * at,
                captured="2020-01-01T23:00",
                frame=number,
            )
        )
    return found


def run(root: Path, output: Path, *others: Path, **more: Any) -> Outcome:
    config = LookConfig(inputs=(str(root), *map(str, others)), **more)
    return look(config, str(output), say=lambda _: None)


def test_figures_are_those_of_a_plain_loop(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    refused = [("set", f"/raw/bad{number}.jpg", "decode_error", f"cut at {number}") for number in range(5)]
    overview = run(write_set("one", rows, RULE, refused), tmp_path / "look").overview
    train, test = overview.sources
    assert (train.name, test.name) == ("set/train", "set/test")
    for source in (train, test):
        mine = [row for row in rows if row["split"] == source.split]
        assert source.kept == len(mine)
        assert source.roles == Counter(row["role"] for row in mine)
        assert source.cities == Counter(row["city"] or "(no city)" for row in mine)
        times = [row["captured"] for row in mine if row["captured"]]
        assert source.years == Counter(time[:4] for time in times)
        assert source.hours == Counter(time[11:13] for time in times if len(time) > 12)
        assert source.with_time == len(times)
        headings = [row["heading_deg"] for row in mine if row["heading_deg"] is not None]
        bins = Counter(int(heading // 15) for heading in headings)
        assert source.headings == [bins[number] for number in range(24)]
    assert train.photos_per_place == {"4": 9}
    assert train.domains == {"set/north": (6, 24), f"set/{EVIL}": (3, 12)}
    assert train.photos_without_place == 4
    assert [(sample.reason, len(sample.rows)) for sample in overview.rejects] == [("decode_error", 3)]
    (leak,) = overview.leaks
    assert (leak.training, leak.evaluation, leak.places, leak.photos) == ("set/train", "set/test", 2, 8)
    assert (leak.queries, leak.database) == (2, 1)
    assert overview.pairs_compared == 1
    with open(tmp_path / "look/leakage.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["place_id"] for row in listed] == ["set/north/0", "set/north/1"]
    assert [float(row["distance_m"]) for row in listed] == [0.0, 0.0]


def test_blocks_and_files_do_not_change_a_byte(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    root = write_set("one", rows, RULE)
    outputs = []
    for number, size in enumerate((1, 5, 1000)):
        run(root, tmp_path / f"look{number}", rows_per_block=size, dots_per_city=9)
        files = ("overview.json", "leakage.csv", "page.html")
        outputs.append([(tmp_path / f"look{number}" / name).read_bytes() for name in files])
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_second_run_reads_the_figures(write_set: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    root, output = write_set("one", rows, RULE), tmp_path / "look"
    first = run(root, output)
    page = output / "page.html"
    before = page.stat().st_mtime_ns
    second = run(root, output)
    assert (first.already_finished, second.already_finished) == (False, True)
    assert second.overview == first.overview
    assert page.stat().st_mtime_ns == before
    assert not run(root, output, leakage_radius_m=30.0).already_finished
    (output / "manifest.json").unlink()
    assert not run(root, output).already_finished


def test_the_page_holds_everything_and_runs_nothing(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(write_set("one", rows, RULE, [("set", f"/raw/{EVIL}", "bad_row", EVIL)]), tmp_path / "look")
    page = (tmp_path / "look/page.html").read_text()
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count('class="map"') == 3
    assert page.count("data:image/jpeg;base64,") >= 3 * 4 + 3
    assert 'class="leak"' in page
    assert "0 m away" in page or "no map photo is a right answer" in page


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"kind": "frames", "window": 5}, "1 frame away"),
        ({"kind": "exact"}, "0 frames away"),
        (None, "no right answers"),
    ],
)
def test_sets_without_positions(
    write_set: Any, make_photo: Any, tmp_path: Path, rule: dict[str, Any] | None, expected: str
) -> None:
    """Frame numbers, or nothing at all: no map, a note, and answers by the rule of the set."""
    rows = [
        make_photo(
            number, split="test", role=("database", "query")[number % 2], frame=number // 2 if rule else None
        )
        for number in range(20)
    ]
    root = write_set("walk", rows, {"set/test": rule} if rule else {})
    outcome = run(root, tmp_path / "look")
    page = (tmp_path / "look/page.html").read_text()
    assert "so there is no map" in page
    assert expected in page
    assert outcome.overview.notes == [
        "set/test: 20 of 20 photos have no latitude and longitude; they are on no map and in no comparison."
    ]
    assert "Leakage was not looked for" in page


def test_metres_without_a_zone_still_tell_right_from_wrong(
    write_set: Any, make_photo: Any, tmp_path: Path
) -> None:
    """Nordland and others write made-up metres."""
    rows = [
        make_photo(number, split="test", role=role, utm_east=0.0, utm_north=20.0 * number)
        for number, role in enumerate(["query", "database", "database", "database"])
    ]
    run(write_set("made-up", rows, RULE), tmp_path / "look")
    page = (tmp_path / "look/page.html").read_text()
    assert "20 m away" in page
    assert "40 m away" not in page


def test_several_inputs_are_compared_with_each_other(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    train = write_set("train", [row for row in rows if row["split"] == "train"])
    test = write_set("test", [row for row in rows if row["split"] == "test"], RULE)
    apart = run(train, tmp_path / "a", test).overview
    assert [leak.places for leak in apart.leaks] == [2]
    twice = run(test, tmp_path / "b", test, train).overview
    assert [source.name for source in twice.sources] == ["set/train", "set/test", "set/test [2]"]
    alone = run(train, tmp_path / "c").overview
    assert alone.notes[0].startswith("No training set has an evaluation set")


def test_inputs_that_cannot_be_looked_at(write_set: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    root = write_set("one", rows, RULE)
    with pytest.raises(
        DataError, match=r"holds images/v1, expected normalized/v1: name the output of jobs/normalize"
    ):
        run(root / "images", tmp_path / "look")
    storage.remove(f"{root}/manifest.json")
    for folder in (root, tmp_path / "nowhere"):
        with pytest.raises(StorageError, match=r"has no manifest.json: the step that writes it has not run"):
            run(folder, tmp_path / "look")
    assert not (tmp_path / "look").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_counted(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    config = LookConfig(inputs=(str(write_set("one", rows, RULE)),))
    with pytest.raises(StorageError, match=r"cannot write .*/file/look/page\.html: .*/file: Not a directory"):
        look(config, str(tmp_path / "file" / "look"), said.append)
    assert said == []


def test_photos_that_moved_away_leave_a_gap(write_set: Any, make_photo: Any, tmp_path: Path) -> None:
    rows = [
        make_photo(n, split="test", role="query", lat=1.0, lon=1.0, image=b"no picture") for n in range(3)
    ]
    run(write_set("one", rows, RULE), tmp_path / "look")
    assert (tmp_path / "look/page.html").read_text().count("photo not available") == 3


def test_the_terminal_shows_the_same_figures(
    write_set: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    refused = [("set", "/raw/bad.jpg", "decode_error", "cut")]
    overview = run(write_set("one", rows, RULE, refused), tmp_path / "look").overview
    console = Console(width=80, record=True, file=open(tmp_path / "out.txt", "w"))  # noqa: SIM115
    print_overview(overview, console)
    printed = console.export_text()
    assert max(map(len, printed.splitlines()[:40])) <= 80
    for text in ("set/train", "decode_error", "2018", "set/north", "within 25 m of set/test"):
        assert text in printed, text
    document = json.loads((tmp_path / "look/overview.json").read_text())
    assert document["leaks"][0]["places"] == 2
