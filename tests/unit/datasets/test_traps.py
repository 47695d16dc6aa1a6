"""The traps of the published layouts, each with the tests that cover it, and the tests that no other file has."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placeray.datasets import list_source
from placeray.datasets.at_layout import AtLayout
from placeray.datasets.gsv_cities import GsvCities
from placeray.datasets.msls import Msls
from placeray.datasets.places import form_places
from placeray.datasets.planning import NormalizeConfig, plan_source, write_plan
from placeray.datasets.source import CellPlaces

HERE = "datasets/test_traps.py"
GSV, MSLS, AT = "datasets/test_gsv_cities.py", "datasets/test_msls.py", "datasets/test_at_names.py"
MAT, PLACES, TWIN = (
    "datasets/test_pitts30k_mat.py",
    "datasets/test_places.py",
    "datasets/test_reference_twin.py",
)

# What goes wrong in the published loaders and scripts -> the tests, as file::function below tests/unit.
TRAPS: dict[str, tuple[str, ...]] = {
    "MSLS raw.csv: longitude first, an index column, flags with any line end or none at the end": (
        f"{MSLS}::test_longitude_comes_before_latitude",
        f"{MSLS}::test_the_last_panorama_does_not_slip_through",
        f"{MSLS}::test_faults_have_reasons",
    ),
    "MSLS val: 740, 747, 750 and 11,084 are four query lists": (
        f"{MSLS}::test_query_lists",
        f"{MSLS}::test_the_list_of_750_holds_panoramas",
    ),
    "GSV names: digits of coordinates, northdeg of 360 and more, panoid with _, .JPG, place_id per city": (
        f"{GSV}::test_coordinates_stay_text_in_names",
        f"{HERE}::test_every_float_finds_its_photo",
        f"{GSV}::test_headings_are_taken_modulo_360_but_not_in_names",
        f"{GSV}::test_panorama_ids_stay_text",
        f"{GSV}::test_upper_case_extension_and_name_with_other_digits_are_found",
        f"{PLACES}::test_named_places_keep_the_names_of_their_city",
    ),
    "'@' belongs to the base name alone": (
        f"{AT}::test_an_at_sign_in_a_folder_changes_nothing",
        f"{HERE}::test_an_at_sign_in_the_root_changes_nothing",
    ),
    "Pitts: queries_real/ is not in the names, positions are transposed, tiles 12-23 do not exist, no heading": (
        f"{MAT}::test_positions_headings_and_query_folder",
        f"{MAT}::test_training_merges_database_and_queries",
        f"{AT}::test_pitts_headings_come_from_tiles",
        f"{AT}::test_training_photos_need_what_places_are_made_of",
    ),
    "headings mean different things: harmless inside a source, so sources are never mixed": (
        f"{HERE}::test_sources_that_show_one_street_share_no_place_and_no_domain",
        f"{HERE}::test_a_constant_offset_of_headings_keeps_the_places",
    ),
    "a cell needs its UTM zone; the letter is a band, not a hemisphere": (
        f"{PLACES}::test_zones_separate_cells_and_bands_do_not",
        f"{HERE}::test_the_zone_letter_is_a_latitude_band",
        "test_geo.py::test_bands_do_not_cut_the_grid_but_hemispheres_and_zones_do",
        "test_metrics.py::test_radius_reaches_across_grids",
        "test_metrics.py::test_equal_eastings_of_far_zones_are_not_near",
    ),
    "25 m is inclusive; recall counts queries without a positive, or leaves them out": (
        "test_metrics.py::test_radius_is_inclusive_and_counts_decimals_not_float_noise",
        f"{MSLS}::test_query_lists",
        "test_metrics.py::test_recall_equals_the_loop",
        "overview/test_leakage.py::test_the_border_counts_as_inside",
    ),
    "a cache must know all parameters and the content; groups must not be numbered by the listing": (
        f"{HERE}::test_no_finished_part_fits_other_parameters_or_another_city",
        "datasets/test_writing.py::test_a_part_is_finished_while_its_input_and_files_stay",
        "datasets/test_writing.py::test_a_part_whose_photos_have_changed_is_not_finished",
        f"{PLACES}::test_ids_do_not_depend_on_the_order_of_the_listing",
        f"{TWIN}::test_ids_and_places_do_not_depend_on_any_order",
    ),
    "GSV 1: northdeg over 360": (f"{GSV}::test_headings_are_taken_modulo_360_but_not_in_names",),
    "GSV 2: panoid holds _ and -": (f"{GSV}::test_panorama_ids_stay_text",),
    "GSV 3: negative coordinates of any number of digits": (f"{HERE}::test_every_float_finds_its_photo",),
    "GSV 4: reading and writing a float changes it": (f"{HERE}::test_every_float_finds_its_photo",),
    "GSV 5: panoid of digits, or spelt like a missing value": (f"{GSV}::test_panorama_ids_stay_text",),
    "GSV 6: missing images, duplicates, extensions in another case": (
        f"{GSV}::test_rows_that_cannot_be_used_are_rejected_with_their_reason",
        f"{GSV}::test_two_photos_of_one_panorama_are_not_mixed_up",
        f"{GSV}::test_upper_case_extension_and_name_with_other_digits_are_found",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_tests_that_are_there(trap: str) -> None:
    for test in TRAPS[trap]:
        file, _, name = test.partition("::")
        tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_every_float_finds_its_photo(tmp_path: Path, write: Any, check: Any) -> None:
    """str(float) of any length, on both sides of the equator and of Greenwich, some in exponent form."""
    rng = np.random.default_rng(4)
    lats = [*rng.uniform(-80, 80, 300).tolist(), 1e-05, -7.5, 48.0]
    lons = [*rng.uniform(-180, 180, 300).tolist(), -1.2e-05, 179.99999999999997, -0.1]
    lines = ["place_id,year,month,northdeg,city_id,lat,lon,panoid"]
    for number, (lat, lon) in enumerate(zip(lats, lons, strict=True)):
        lines.append(f"{number // 4},2014,6,90,PRS,{lat},{lon},same")
        write(f"Images/PRS/PRS_{number // 4:07d}_2014_06_090_{lat}_{lon}_same.jpg")
    write("Dataframes/PRS.csv", "\n".join(lines))
    photos, reasons = check(list_source(GsvCities(kind="gsv_cities", root=str(tmp_path))))
    assert reasons == {}
    assert sorted((row["lat"], row["lon"]) for row in photos) == sorted(zip(lats, lons, strict=True))


def test_an_at_sign_in_the_root_changes_nothing(tmp_path: Path, write: Any, check: Any) -> None:
    name = "@0544388.51@4172758.25@10@S@037.70098@-122.49646@p@@210@@@@201606@@.jpg"
    write(f"me@home@2/images/test/database/{name}")
    write(f"me@home@2/images/test/queries/{name}")
    config = AtLayout(kind="at_layout", name="set", root=str(tmp_path / "me@home@2"))
    rows, reasons = check(list_source(config))
    assert reasons == {}
    assert {(row["utm_east"], row["heading_deg"]) for row in rows} == {(544388.51, 210.0)}


def write_street(write: Any, root: str, offset_deg: int = 0) -> None:
    """The same 60 photos: three steps of 15 m, four headings."""
    for number in range(60):
        heading = (number % 4 * 90 + 10 + offset_deg) % 360
        east, north = 585_000 + 15 * (number // 20), 4_477_000 + number % 3
        write(
            f"{root}/images/train/database/@{east:010.2f}@{north:010.2f}@17@T@@@{number}@@{heading}@@@@@@.jpg"
        )
    write(f"{root}/images/train/queries/@0999999.00@4477000.00@17@T@@@q@@5@@@@@@.jpg")


def street(tmp_path: Path, root: str, name: str = "street") -> AtLayout:
    return AtLayout(kind="at_layout", name=name, root=str(tmp_path / root), split="train")


def test_sources_that_show_one_street_share_no_place_and_no_domain(tmp_path: Path, write: Any) -> None:
    write_street(write, "left-edge")
    write_street(write, "centre", offset_deg=33)
    ids: list[set[str]] = []
    for root in ("left-edge", "centre"):
        config = street(tmp_path, root, name=root)
        placed = form_places(list_source(config).photos, config.places).photos
        ids.append({text for name in ("place_id", "domain") for text in placed[name].to_pylist() if text})
        assert len(ids[-1]) > 8
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("offset_deg", [60, 120, 300])
def test_a_constant_offset_of_headings_keeps_the_places(tmp_path: Path, write: Any, offset_deg: int) -> None:
    """By whole bins the same photos stay together; by another angle the bins are others, but of the same rule."""
    write_street(write, "one")
    write_street(write, "other", offset_deg)
    partitions = []
    for root in ("one", "other"):
        config = street(tmp_path, root)
        rows = form_places(list_source(config).photos, config.places).photos.to_pylist()
        places: dict[str, set[str]] = {}
        for row in rows:
            if row["place_id"]:
                places.setdefault(row["place_id"], set()).add(row["panorama_id"])
        partitions.append({frozenset(members) for members in places.values()})
    assert partitions[0] == partitions[1]
    assert len(partitions[0]) > 8


def test_the_zone_letter_is_a_latitude_band(tmp_path: Path, write: Any, check: Any) -> None:
    """10S is San Francisco, north of the equator; 56H is Sydney, south of it."""
    write("images/test/database/@0544388.51@4172758.25@10@S@@@a@@@@@@@@.jpg")
    write("images/test/queries/@0334873.00@6252266.00@56@H@@@b@@@@@@@@.jpg")
    (north, south), _ = check(list_source(AtLayout(kind="at_layout", name="set", root=str(tmp_path))))
    assert (north["lat"], north["lon"]) == (pytest.approx(37.70, abs=0.01), pytest.approx(-122.50, abs=0.01))
    assert (south["lat"], south["lon"]) == (pytest.approx(-33.86, abs=0.01), pytest.approx(151.21, abs=0.01))
    raw = ",key,lon,lat,ca,captured_at,pano\n0,k,151.21,-33.86,10,2017-03-04,False\n"
    for role in ("database", "query"):
        write(f"train_val/sydney/{role}/raw.csv", raw.replace("k,", f"k{role},"))
        write(f"train_val/sydney/{role}/images/k{role}.jpg")
    config = Msls(kind="msls", root=str(tmp_path), cities=["sydney"])
    rows = form_places(list_source(config).photos, CellPlaces(min_photos=2)).photos.to_pylist()
    assert {row["place_id"].split("/")[2][:3] for row in rows} == {"56s"}


def test_no_finished_part_fits_other_parameters_or_another_city(tmp_path: Path, write: Any) -> None:
    """The published cache is named after the folder, which is `images` in every city, and after two of five numbers."""

    def prints(root: str, **places: Any) -> set[str]:
        source = {"kind": "at_layout", "name": "street", "root": str(tmp_path / root), "split": "train"}
        config = NormalizeConfig.model_validate(
            {"sources": [source | {"places": places}], "photos_per_file": 10}
        )
        parts = write_plan(plan_source(config.sources[0], config), config, str(tmp_path / "out"))
        return {part["fingerprint"] for part in parts if part["places_path"]}

    write_street(write, "one")
    write_street(write, "two", offset_deg=20)
    first = prints("one")
    assert first == prints("one")
    assert not first & prints("two")
    for change in (
        {"cell_m": 14}, {"cell_stride": 2}, {"heading_bin_deg": 90}, {"heading_stride": 3}, {"min_photos": 3},
    ):  # fmt: skip
        assert not first & prints("one", **change), change
