"""GSV-Cities: `Dataframes/<city>.csv` with one row per photo, `Images/<city>/<composed name>.jpg`.

Sources: `amaralibey/gsv-cities:README.md` and `dataloaders/train/GSVCitiesDataset.py`. Places are those of
the column place_id, which counts inside a city. Differs from the reference loader: values stay text while
names are composed (its float parser changes one name in seven), the extension counts in any case, and a photo
whose composed name is not there is looked for by its place and panorama.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.csv_text import CsvText, broken_lines, read_csv
from placeray.datasets.photos import Draft
from placeray.datasets.source import Listing, NamedPlaces, SourceBase
from placeray.errors import DataError

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")


class GsvCities(SourceBase):
    """The training set of Street View photos at 100 m and more from place to place."""

    kind: Literal["gsv_cities"]
    name: str = "gsv-cities"
    cities: list[str] | None = Field(
        default=None, description="city codes to read; null reads every CSV there is"
    )
    places: NamedPlaces = NamedPlaces()


def list_photos(config: GsvCities) -> Listing:
    """All rows of the cities, and every photo that no row names (rejected: it has no position)."""
    frames = storage.join(config.root, "Dataframes")
    if not storage.exists(frames):
        raise DataError(f"{config.key}: no folder Dataframes in {storage.resolve(config.root)}")
    found = [file.rsplit("/", 1)[-1].removesuffix(".csv") for file in storage.list_files(frames, ".csv")]
    cities = config.cities if config.cities is not None else found
    missing = sorted(set(cities) - set(found))
    if missing or not cities:
        raise DataError(
            f"{config.key}: no CSV for {', '.join(missing) or 'any city'} in {storage.resolve(frames)}"
        )
    return photos.join_listings(config, (_list_city(config, city) for city in sorted(cities)))


def _list_city(config: GsvCities, city: str) -> Listing:
    csv_path = f"Dataframes/{city}.csv"
    rows = read_csv(storage.join(config.root, csv_path), COLUMNS)
    folder = storage.join(config.root, "Images", city)
    on_disk = pa.array(photos.list_images(folder) if storage.exists(folder) else [], pa.string())
    found = _find_files(rows, on_disk)
    composed = pc.coalesce(on_disk.take(found), _compose_names(rows))
    draft = Draft(config, pc.binary_join_element_wise(pa.scalar(f"Images/{city}"), composed, "/"))
    draft.mark(
        pc.not_equal(rows.column("city_id"), city).to_numpy(zero_copy_only=False),
        "bad_row",
        pc.binary_join_element_wise(
            pa.scalar(f"{csv_path} names another city:"), rows.column("city_id"), " "
        ),
    )
    bad_place = pc.invert(pc.match_substring_regex(rows.column("place_id"), r"^\d+$"))
    draft.mark(
        bad_place.to_numpy(zero_copy_only=False), "bad_row", _at_line(csv_path, rows, "place_id is no number")
    )
    draft.parse("lat", rows.column("lat")).parse("lon", rows.column("lon"))
    draft.parse("heading_deg", rows.column("northdeg"), "bad_heading")
    draft.mark(
        found.is_null().to_numpy(zero_copy_only=False),
        "missing_file",
        _at_line(csv_path, rows, "no such image file"),
    )
    draft.text(
        city=city,
        role="train",
        panorama_id=rows.column("panoid"),
        place_key=pc.utf8_lpad(rows.column("place_id"), 7, "0"),
        captured=_captured(rows),
    )
    return photos.join_listings(
        config,
        [draft.finish(), broken_lines(config, csv_path, rows), _nameless_files(config, city, on_disk, found)],
    )


def _compose_names(rows: CsvText) -> pa.Array:
    """`<city>_<place 7>_<year 4>_<month 2>_<northdeg 3>_<lat>_<lon>_<panoid>.jpg`, from text as it stands."""
    stem = pc.binary_join_element_wise(
        rows.column("city_id"),
        pc.utf8_lpad(rows.column("place_id"), 7, "0"),
        pc.utf8_lpad(rows.column("year"), 4, "0"),
        pc.utf8_lpad(rows.column("month"), 2, "0"),
        pc.utf8_lpad(rows.column("northdeg"), 3, "0"),
        rows.column("lat"),
        rows.column("lon"),
        rows.column("panoid"),
        "_",
    )
    return pc.binary_join_element_wise(stem, pa.scalar(".jpg"), "")


def _find_files(rows: CsvText, on_disk: pa.Array) -> pa.Array:
    """Position of each row's photo in `on_disk`, null where there is none.

    First by the exact name, then by the name with the extension in another case, then by (place, panorama)
    when exactly one photo carries these and no other row claims it.
    """
    names = _compose_names(rows)
    exact = pc.index_in(names, value_set=on_disk)
    same = pc.coalesce(exact, pc.index_in(_lower_suffix(names), value_set=_lower_suffix(on_disk)))
    lost = same.is_null()
    if not pc.any(lost).as_py() or not len(on_disk):
        return same
    parts = pc.split_pattern(pc.binary_join_element_wise(on_disk, pa.scalar("_" * 7), ""), "_", max_splits=7)
    panorama = pc.utf8_rtrim(pc.list_element(parts, 7), "_")
    keys = pc.binary_join_element_wise(
        pc.utf8_ltrim(pc.list_element(parts, 1), "0"),
        pc.replace_substring_regex(panorama, r"\.[A-Za-z]+$", ""),
        "_",
    )
    wanted = pc.binary_join_element_wise(
        pc.utf8_ltrim(rows.column("place_id"), "0"), rows.column("panoid"), "_"
    )
    counts = {item["values"]: item["counts"] for item in pc.value_counts(keys).to_pylist()}
    claimed = set(same.drop_null().to_pylist())
    positions = pc.index_in(wanted, value_set=keys).to_pylist()
    unsure = [
        position is None or position in claimed or counts[key] > 1
        for position, key in zip(positions, wanted.to_pylist(), strict=True)
    ]
    by_key = pa.array([None if skip else at for at, skip in zip(positions, unsure, strict=True)], pa.int32())
    return pc.coalesce(same, by_key)


def _lower_suffix(names: pa.Array) -> pa.Array:
    """Only the extension changes case: panorama ids differ by case alone."""
    stem = pc.replace_substring_regex(names, r"\.[A-Za-z]+$", "")
    return pc.binary_join_element_wise(stem, pc.utf8_lower(pc.utf8_slice_codeunits(names, -4)), "")


def _captured(rows: CsvText) -> pa.Array:
    year_month = pc.binary_join_element_wise(
        pc.utf8_lpad(rows.column("year"), 4, "0"), pc.utf8_lpad(rows.column("month"), 2, "0"), ""
    )
    return photos.parse_captured(year_month)


def _at_line(csv_path: str, rows: CsvText, what: str) -> pa.Array:
    return pc.binary_join_element_wise(
        pa.scalar(f"{what} for {csv_path} line"), rows.lines.cast(pa.string()), " "
    )


def _nameless_files(config: GsvCities, city: str, on_disk: pa.Array, found: pa.Array) -> Listing:
    """Photos without a row are inputs too: they appear among the rejects."""
    free = np.ones(len(on_disk), dtype=bool)
    free[found.drop_null().to_numpy()] = False
    paths = pc.binary_join_element_wise(pa.scalar(f"Images/{city}"), on_disk.filter(pa.array(free)), "/")
    return photos.reject_all(
        config, paths, "no_position", f"no row of Dataframes/{city}.csv names this photo"
    )
