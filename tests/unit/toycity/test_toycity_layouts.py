"""Every layout is what its readers expect: parsed here by small readers that share nothing with the writers."""

import csv
import io
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from placeray import geo


def test_gsv_rows_compose_the_names_of_their_photos(tiny_city: Any) -> None:
    root = tiny_city.root / "gsv_cities"
    for city in tiny_city.config.gsv_cities.cities:
        text = (root / f"Dataframes/{city}.csv").read_text()
        assert text.splitlines()[0] == "place_id,year,month,northdeg,city_id,lat,lon,panoid"
        rows = list(csv.DictReader(io.StringIO(text)))
        composed = [
            f"{r['city_id']}_{int(r['place_id']):07d}_{int(r['year']):04d}_{int(r['month']):02d}_"
            f"{int(r['northdeg']):03d}_{r['lat']}_{r['lon']}_{r['panoid']}"
            for r in rows
        ]
        on_disk = {file.stem for file in (root / "Images" / city).iterdir()}
        missing = [
            fault for fault in tiny_city.faults(f"gsv_cities/{city}") if fault["fault"] == "missing_file"
        ]
        assert set(composed) - on_disk == {Path(fault["path"]).stem for fault in missing}
        assert on_disk <= set(composed)
        for r in rows:
            assert str(float(r["lat"])) == r["lat"]
            assert str(float(r["lon"])) == r["lon"]
        photos = Counter(r["place_id"] for r in rows)
        assert min(photos.values()) >= 4
        south = {float(r["lat"]) < 0 for r in rows}
        assert south == {city == "Melbourne"}


def test_gsv_places_are_100_m_apart_and_their_photos_close(tiny_city: Any) -> None:
    rows = list(csv.DictReader((tiny_city.root / "gsv_cities/Dataframes/Melbourne.csv").open()))
    spots: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for r in rows:
        spots[r["place_id"]].append((float(r["lat"]), float(r["lon"])))
    centres = np.array([np.mean(spot, axis=0) for spot in spots.values()])
    for first in range(len(centres)):
        for second in range(first):
            assert geo.distance_m(*centres[first], *centres[second]) > 95
    for centre, spot in zip(centres, spots.values(), strict=True):
        assert all(geo.distance_m(*centre, *point) < 10 for point in spot)


AT_NAME = re.compile(
    r"^@\d{7}\.\d{2}@\d{7}\.\d{2}@\d{2}@[C-X]@[-\d]\d{2}\.\d{5}@[-\d]\d{3}\.\d{5}@[\w-]*@\d{0,2}@\d{0,3}@@@@\d*@[^@]*@\.jpg$"
)


@pytest.mark.parametrize(
    ("folder", "zone"),
    [("sf_xl/processed/train", "10S"), ("pitts30k/images", "17T"), ("eval/images/test", "54S")],
)
def test_at_names_agree_with_themselves(tiny_city: Any, folder: str, zone: str) -> None:
    """All fields have their form, and the position in degrees is the position in metres."""
    odd = {Path(fault["path"]).name for fault in tiny_city.faults("") if fault["fault"] == "too_few_fields"}
    files = [file for file in (tiny_city.root / folder).rglob("*.jpg") if file.name not in odd]
    assert files
    for file in files:
        assert AT_NAME.match(file.name), file.name
        _, east, north, number, letter, lat, lon = file.name.split("@")[:7]
        assert number + letter == zone
        utm = geo.to_utm([float(lat)], [float(lon)], zone)
        assert utm.east[0] == pytest.approx(float(east), abs=1.5)  # five decimals of a degree are a metre
        assert utm.north[0] == pytest.approx(float(north), abs=1.5)


def test_sf_xl_places_are_cells_of_group_0(tiny_city: Any) -> None:
    """M=10, N=5, alpha=60, L=2: as many cells of four photos and more as the config says, in the first group."""
    photos = Counter()
    for file in (tiny_city.root / "sf_xl/processed/train").rglob("@*.jpg"):
        fields = file.name.split("@")
        if len(fields) < 15:
            continue
        assert file.parent.name == f"{float(fields[5]):.2f}"
        assert fields[13].isdigit()
        assert len(fields[13]) == 6
        if _decodes(file):
            assert Image.open(file).size == (48, 48)
        photos[int(float(fields[1]) // 10), int(float(fields[2]) // 10), int(fields[9]) // 60] += 1
    groups = Counter((e % 5, n % 5, h % 2) for (e, n, h), count in photos.items() if count >= 4)
    assert groups[0, 0, 0] == tiny_city.config.sf_xl.places
    assert sum(groups.values()) == tiny_city.config.sf_xl.places + tiny_city.config.sf_xl.other_places


def test_sf_xl_list_stands_beside_its_folder(tiny_city: Any) -> None:
    listed = (tiny_city.root / "sf_xl/processed/train_images_paths.txt").read_text().splitlines()
    folder = tiny_city.root / "sf_xl/processed/train"
    missing = [path for path in listed if not (folder / path).exists()]
    assert len(missing) == 1
    assert len(listed) == len(set(listed)) == sum(1 for _ in folder.rglob("*.jpg")) + 1


def test_pitts_tiles_form_cells(tiny_city: Any) -> None:
    photos = Counter()
    for file in (tiny_city.root / "pitts30k/images/train").rglob("@*.jpg"):
        fields = file.name.split("@")
        if len(fields) < 15:
            continue
        pitch, yaw = map(int, re.fullmatch(r"pitch([12])_yaw(\d+)", fields[14]).groups())
        tile = int(fields[8])
        assert tile == (pitch - 1) * 24 + yaw - 1
        assert tile not in range(12, 24)
        assert 1 <= yaw <= 12
        assert re.fullmatch(r"\d{6}", fields[7])
        assert fields[9] == fields[13] == ""
        photos[int(float(fields[1]) // 15), int(float(fields[2]) // 15), tile % 12 * 30 // 60] += 1
    full = [cell for cell, count in photos.items() if count >= 4]
    assert len(full) == tiny_city.config.pitts30k.places
    for split in ("train", "val", "test"):
        for role in ("database", "queries"):
            assert any((tiny_city.root / f"pitts30k/images/{split}/{role}").iterdir())


def test_pitts_mat_gives_the_ten_fields(tiny_city: Any) -> None:
    root = tiny_city.root / "pitts30k_mat"
    for split in ("train", "val", "test"):
        table = scipy.io.loadmat(root / f"datasets/pitts30k_{split}.mat")["dbStruct"].item()
        assert len(table) == 10
        assert table[0].item() == split
        names, queries = table[1], table[3]
        assert names.shape == (table[5].item(), 1)
        assert table[2].shape == (2, len(names))
        assert queries.shape == (table[6].item(), 1)
        assert table[4].shape == (2, len(queries))
        assert [table[index].item() for index in (7, 8, 9)] == [25, 625, 100]
        lost = [name for (cell,) in names if not (root / (name := cell.item())).exists()]
        assert len(lost) == (1 if split == "train" else 0)
        assert all((root / "queries_real" / cell.item()).exists() for (cell,) in queries)
        assert all(
            re.fullmatch(r"\d{3}/\d{6}_pitch[12]_yaw\d+\.jpg", cell.item()) for (cell,) in [*names, *queries]
        )
        assert np.all((table[2][0] > 5e5) & (table[2][1] > 4.4e6))  # east first


def test_msls_tables_agree(tiny_city: Any) -> None:
    """Four tables per part with the same keys; positions in degrees and metres agree; cells hold the places."""
    photos = Counter()
    for role in ("database", "query"):
        folder = tiny_city.root / "msls/train_val/helsinki" / role
        tables = {name: _read_csv(folder / f"{name}.csv") for name in MSLS_COLUMNS}
        for name, (header, rows) in tables.items():
            assert header == ["", *MSLS_COLUMNS[name]]
            assert [row[0] for row in rows] == [str(index) for index in range(len(rows))]
            assert [row[1] for row in rows] == [row[1] for row in tables["raw"][1]]
        for raw, post in zip(tables["raw"][1], tables["postprocessed"][1], strict=True):
            if raw[2] and raw[6] == "False":
                utm = geo.to_utm([float(raw[3])], [float(raw[2])])  # the longitude comes first
                assert utm.zone[0] == "35V"
                assert utm.east[0] == pytest.approx(float(post[2]), abs=0.01)
                assert utm.north[0] == pytest.approx(float(post[3]), abs=0.01)
                photos[int(utm.east[0] // 15), int(utm.north[0] // 15), int(float(raw[4]) // 60)] += 1
        keys = {row[1] for row in tables["raw"][1]}
        missing = keys - {file.stem for file in (folder / "images").iterdir()}
        assert len(missing) == (1 if role == "query" else 0)
    assert sum(count >= 4 for count in photos.values()) == tiny_city.config.msls.places_per_city
    assert (
        len({(e % 3, n % 3, h % 2) for (e, n, h), count in photos.items() if count >= 4}) == 1
    )  # one street


MSLS_COLUMNS = {
    "raw": ["key", "lon", "lat", "ca", "captured_at", "pano"],
    "postprocessed": [
        "key",
        "easting",
        "northing",
        "unique_cluster",
        "control_panel",
        "night",
        "view_direction",
    ],
    "seq_info": ["key", "sequence_key", "frame_number"],
    "subtask_index": ["key", "all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d"],
}


def test_msls_groups_spread_over_streets(tiny_config: Any) -> None:
    from placeray.toycity.layouts.msls import plan_msls

    larger = tiny_config.model_copy(
        update={"msls": tiny_config.msls.model_copy(update={"places_per_city": 24, "groups": 3})}
    )
    photos = Counter()
    for name, data in plan_msls(larger).files.items():
        if "helsinki" in name and name.endswith("raw.csv"):
            for _, _, lon, lat, heading, _, pano in list(csv.reader(io.StringIO(data.decode())))[1:]:
                if lat and pano == "False":
                    utm = geo.to_utm([float(lat)], [float(lon)])
                    photos[int(utm.east[0] // 15), int(utm.north[0] // 15), int(float(heading) // 60)] += 1
    groups = Counter((e % 3, n % 3, h % 2) for (e, n, h), count in photos.items() if count >= 4)
    assert sorted(groups.values()) == [8, 8, 8]


def test_evaluation_queries_have_their_place_in_the_database(tiny_city: Any) -> None:
    folder = tiny_city.root / "eval/images/test"
    spots = {role: _positions(folder / role) for role in ("database", "queries")}
    sizes = tiny_city.config.evaluation
    assert len(spots["queries"]) == sizes.places * sizes.queries
    assert len(spots["database"]) == sizes.places * sizes.database_photos + sizes.distractor_places
    near = np.linalg.norm(spots["queries"][:, None] - spots["database"][None], axis=2) <= 25
    assert (near.sum(axis=1) == sizes.database_photos).all()


def test_no_two_layouts_share_a_street(tiny_config: Any) -> None:
    from placeray.toycity.layouts import LAYOUTS

    owner: dict[Any, str] = {}
    for name, plan in LAYOUTS.items():
        for task in plan(tiny_config).photos:
            assert owner.setdefault(task.street, name) == name


def _positions(folder: Path) -> np.ndarray:
    return np.array(
        [[float(part) for part in file.name.split("@")[1:3]] for file in sorted(folder.iterdir())]
    )


def _read_csv(file: Path) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(io.StringIO(file.read_bytes().decode(), newline=""))
    return header, rows


def _decodes(file: Path) -> bool:
    try:
        Image.open(file).load()
    except OSError:
        return False
    return True
