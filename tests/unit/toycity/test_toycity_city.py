"""The whole city: same bytes every time, planted faults as recorded, counts that reconcile, re-runs for nothing."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from placeray.errors import ConfigError, StorageError
from placeray.toycity import city as city_module
from placeray.toycity.city import draw_city
from placeray.toycity.config import GsvConfig, ToyCityConfig


def test_same_config_same_bytes_with_any_number_of_processes(
    tiny_city: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(city_module, "POOL_PAYS_FROM", 0)
    draw_city(tiny_city.config, str(tmp_path), num_workers=2)
    first, second = _hashes(tiny_city.root), _hashes(tmp_path)
    assert len(first) > 200
    assert first == second


def test_another_seed_is_another_city(tiny_city: Any, tmp_path: Path) -> None:
    config = tiny_city.config.model_copy(update={"seed": 4})
    draw_city(config, str(tmp_path), num_workers=1)
    photos = [
        {value for name, value in _hashes(root).items() if name.endswith(".jpg")}
        for root in (tiny_city.root, tmp_path)
    ]
    shared = photos[0] & photos[1]
    assert len(shared) <= 2  # the empty file and the one that is no image


def test_counts_reconcile(tiny_city: Any) -> None:
    faults = tiny_city.document["faults"]
    for name, layout in tiny_city.document["layouts"].items():
        files = [file for file in (tiny_city.root / name).rglob("*") if file.suffix.lower() == ".jpg"]
        assert layout["photos"] == len(files)
        for part, counts in layout["parts"].items():
            assert counts["read"] == counts["kept"] + sum(counts["rejected"].values())
            mine = [f for f in faults if f["source"] == f"{name}/{part}" and f["expected"] != "kept"]
            assert sum(counts["rejected"].values()) == len(mine)
    inputs = sum(
        counts["read"]
        for layout in tiny_city.document["layouts"].values()
        for counts in layout["parts"].values()
    )
    without_file = sum(f["expected"] in ("missing_file", "duplicate") for f in faults)
    assert inputs == tiny_city.report.photos + without_file


def test_photos_that_must_be_kept_decode_and_the_broken_ones_do_not(tiny_city: Any) -> None:
    expected = {fault["path"]: fault["expected"] for fault in tiny_city.document["faults"]}
    assert len(expected) == len(tiny_city.document["faults"]) == 28
    for file in tiny_city.root.rglob("*"):
        if file.suffix.lower() == ".jpg":
            broken = expected.get(str(file.relative_to(tiny_city.root))) == "decode_error"
            assert _decodes(file) is not broken, file
    for path, reason in expected.items():
        assert (tiny_city.root / path).exists() is (reason != "missing_file"), path


def test_expected_reasons_are_those_of_the_contract(tiny_city: Any, repository: Path) -> None:
    columns = json.loads((repository / "schemas/rejects.v1.json").read_text())["columns"]
    text = next(column["description"] for column in columns if column["name"] == "reason")
    assert {fault["expected"] for fault in tiny_city.document["faults"]} <= {*text.split(", "), "kept"}


@pytest.mark.parametrize(
    ("fault", "sees"),
    [
        ("northdeg_411", lambda cells, line: cells[3] == "411"),
        (
            "panoid_digits_leading_zeros",
            lambda cells, line: cells[7].startswith("000") and cells[7].isdigit(),
        ),
        ("panoid_NA", lambda cells, line: cells[7] == "NA"),
        ("panoid_underscore_and_dash", lambda cells, line: "_" in cells[7] and "-" in cells[7]),
        ("lat_out_of_range", lambda cells, line: float(cells[5]) > 90),
        ("coordinates_17_digits", lambda cells, line: len(cells[5].replace(".", "")) >= 17),
    ],
)
def test_gsv_fault_rows_stand_where_the_record_says(tiny_city: Any, fault: str, sees: Any) -> None:
    (record,) = [f for f in tiny_city.faults("gsv_cities") if f["fault"] == fault]
    line = (tiny_city.root / record["table"]).read_text().splitlines()[1 + record["row"]]
    assert sees(line.split(","), line)


def test_duplicate_row_and_upper_case_extension(tiny_city: Any) -> None:
    records = {f["fault"]: f for f in tiny_city.faults("gsv_cities")}
    lines = (tiny_city.root / records["duplicate_row"]["table"]).read_text().splitlines()[1:]
    row = records["duplicate_row"]["row"]
    assert lines[row] == lines[row - 1]
    assert records["extension_upper_case"]["path"].endswith(".JPG")


def test_msls_raw_ends_in_a_panorama_without_newline(tiny_city: Any) -> None:
    data = (tiny_city.root / "msls/train_val/helsinki/query/raw.csv").read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") > 5
    assert data.endswith(b",True")
    assert (tiny_city.root / "msls/train_val/helsinki/database/raw.csv").read_bytes().endswith(b"False\n")


def test_a_city_without_faults_is_part_of_the_one_with_faults(tiny_city: Any, tmp_path: Path) -> None:
    plain = tiny_city.config.model_copy(update={"faults": False})
    report = draw_city(plain, str(tmp_path), num_workers=1)
    assert report.faults == 0
    assert all(
        not counts["rejected"] for layout in report.layouts.values() for counts in layout["parts"].values()
    )
    with_faults = _hashes(tiny_city.root)
    for name, value in _hashes(tmp_path).items():
        if name.endswith(".jpg"):
            assert with_faults[name] == value


def test_finished_city_is_left_alone_and_another_one_refused(tiny_city: Any) -> None:
    before = (tiny_city.root / "toycity.json").stat().st_mtime_ns
    again = draw_city(tiny_city.config, str(tiny_city.root))
    assert again.already_finished
    assert again.photos == tiny_city.report.photos
    assert again.layouts == tiny_city.report.layouts
    assert (tiny_city.root / "toycity.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"another toy city \(other seed\): give this one another folder"):
        draw_city(tiny_city.config.model_copy(update={"seed": 99}), str(tiny_city.root))


def test_interrupted_city_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _only_gsv()
    drawn: list[str] = []
    original = city_module.draw_photo

    def stop_after_five(config: ToyCityConfig, task: Any) -> bytes:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(task.path)
        return original(config, task)

    monkeypatch.setattr(city_module, "draw_photo", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        draw_city(config, str(tmp_path), num_workers=1)
    assert not (tmp_path / "toycity.json").exists()
    with pytest.raises(ConfigError, match="another toy city"):
        draw_city(config.model_copy(update={"seed": 1}), str(tmp_path))

    rest: list[str] = []
    monkeypatch.setattr(
        city_module, "draw_photo", lambda config, task: rest.append(task.path) or original(config, task)
    )
    report = draw_city(config, str(tmp_path), num_workers=1)
    assert not report.already_finished
    assert len(drawn) + len(rest) == report.photos
    assert not set(drawn) & set(rest)
    assert not (tmp_path / "toycity.started.json").exists()


def test_progress_counts_up_to_the_number_of_photos(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = draw_city(
        _only_gsv(), str(tmp_path), lambda done, total: calls.append((done, total)), num_workers=1
    )
    assert calls == sorted(calls)
    assert calls[-1] == (report.photos, report.photos)


def test_object_stores_and_unknown_cities_are_refused() -> None:
    with pytest.raises(StorageError, match="needs a local path"):
        draw_city(_only_gsv(), "s3://bucket/city")
    with pytest.raises(ValueError, match="each city once"):
        GsvConfig(cities=("Atlantis",))


def _only_gsv() -> ToyCityConfig:
    nothing = {"sf_xl": {"places": 0}, "pitts30k_mat": {"places": 0}, "pitts30k": {"places": 0}}
    values = {
        "seed": 2,
        "width_px": 48,
        "height_px": 36,
        "msls": {"places_per_city": 0},
        "evaluation": {"places": 0},
    }
    return ToyCityConfig.model_validate(
        values | nothing | {"gsv_cities": {"cities": ["Osaka"], "places_per_city": 2}}
    )


def _hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder) / name
            found[str(file.relative_to(root))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _decodes(file: Path) -> bool:
    try:
        Image.open(file).load()
    except OSError:
        return False
    return True
