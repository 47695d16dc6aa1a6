"""Mapillary Street-Level Sequences: city folders with database and query, four CSV files each.

Sources: `mapillary/mapillary_sls:mapillary_sls/datasets/msls.py`,
`Tong-Jin01/Unified_dataset:preprocess_msls.py`. Differs from the latter: flags are read as flags whatever the
line ends, files are joined by key, and photos of two cities never share a cache.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.csv_text import CsvText, broken_lines, read_csv
from placeray.datasets.photos import Draft, Mask
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName, WithinRadius
from placeray.errors import DataError

CITIES: dict[SplitName, tuple[str, ...]] = {
    "train": (
        *(
            "trondheim",
            "london",
            "boston",
            "melbourne",
            "amsterdam",
            "helsinki",
            "tokyo",
            "toronto",
            "saopaulo",
        ),
        *("moscow", "zurich", "paris", "bangkok", "budapest", "austin", "berlin", "ottawa", "phoenix", "goa"),
        *("amman", "nairobi", "manila"),
    ),
    "val": ("cph", "sf"),
    "test": ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala"),
}
QueryList = Literal["official-740", "official-747", "official-750", "vg-11084"]


class Msls(SourceBase):
    """One split of MSLS. Train cities become places, val cities a map and queries, test has no labels."""

    kind: Literal["msls"]
    name: str = "msls"
    split: SplitName = "train"
    cities: list[str] | None = Field(
        default=None, description="city folders to read; null = those of the split there are"
    )
    query_list: QueryList = Field(
        default="official-740",
        description="queries of val: subtask `all` (750), no panoramas (747), with a positive (740), or all",
    )
    places: CellPlaces = CellPlaces()

    @model_validator(mode="before")
    @classmethod
    def _test_has_no_labels(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("split") == "test":
            return {"positive": None, **values}
        return values


class _City(NamedTuple):
    """Where one city of a source is: `path` below root."""

    config: Msls
    name: str
    path: str


def list_photos(config: Msls) -> Listing:
    """Database and query of every city of the split."""
    folder = "test" if config.split == "test" else "train_val"
    wanted = config.cities if config.cities is not None else CITIES[config.split]
    present = [city for city in sorted(wanted) if storage.exists(storage.join(config.root, folder, city))]
    missing = sorted(set(wanted) - set(present)) if config.cities is not None else []
    if missing or not present:
        raise DataError(
            f"{config.key}: no folder {', '.join(missing) or 'of any city of the split'} "
            f"in {storage.resolve(storage.join(config.root, folder))}"
        )
    return photos.join_listings(
        config, (_list_city(_City(config, city, f"{folder}/{city}")) for city in present)
    )


def _list_city(city: _City) -> Listing:
    database = _draft_role(city, "database")
    query = _draft_role(city, "query")
    if city.config.split == "val":
        _select_queries(city, database[0], query[0])
    needs_position = city.config.split != "test"
    return photos.join_listings(
        city.config,
        [part for draft, *others in (database, query) for part in (draft.finish(needs_position), *others)],
    )


def _draft_role(city: _City, role: str) -> tuple[Draft, Listing, Listing]:
    """Rows of raw.csv as a draft; broken lines; photos that no row names."""
    config, folder = city.config, f"{city.path}/{role}"
    rows, csv_path = _read_rows(city, folder)
    paths = pc.binary_join_element_wise(
        pa.scalar(f"{folder}/images/"), rows.column("key"), pa.scalar(".jpg"), ""
    )
    images = storage.join(config.root, folder, "images")
    on_disk = photos.list_images(images) if storage.exists(images) else []
    paths, absent, nameless = _match_files(
        paths, pa.array([f"{folder}/images/{name}" for name in on_disk], pa.string())
    )
    draft = Draft(config, paths)
    draft.mark(
        pc.equal(rows.column("key"), "").to_numpy(zero_copy_only=False), "bad_row", f"{csv_path}: no key"
    )
    draft.parse("lat", rows.column("lat")).parse("lon", rows.column("lon"))
    if not (config.split == "val" and role == "query" and config.query_list == "official-750"):
        draft.mark(photos.parse_flags(rows.column("pano")), "panorama", "the row is flagged as a panorama")
    draft.parse("heading_deg", rows.column("ca"), "bad_heading")
    draft.mark(absent, "missing_file", f"{csv_path} has a row, but there is no image file")
    draft.text(
        city=city.name,
        role="train" if config.is_training else role,
        captured=photos.parse_captured(rows.column("captured_at")),
    )
    if config.split == "val":
        _use_published_utm(city, folder, draft, rows)
    return (
        draft,
        broken_lines(config, csv_path, rows),
        photos.reject_all(config, nameless, "no_position", f"no row of {csv_path} names this photo"),
    )


def _read_rows(city: _City, folder: str) -> tuple[CsvText, str]:
    """raw.csv; for a test city, which has none, the keys of seq_info.csv."""
    csv_path = f"{folder}/raw.csv"
    if city.config.split == "test" and not storage.exists(storage.join(city.config.root, csv_path)):
        csv_path = f"{folder}/seq_info.csv"
        return read_csv(storage.join(city.config.root, csv_path), ["key"]), csv_path
    needed = ["key", "lon", "lat", "ca", "captured_at", "pano"]
    return read_csv(storage.join(city.config.root, csv_path), needed), csv_path


def _match_files(paths: pa.Array, on_disk: pa.Array) -> tuple[pa.Array, Mask, pa.Array]:
    """The file of each row whatever the case of its extension, rows without one, files without a row."""
    lowered = pc.replace_substring_regex(on_disk, r"\.[A-Za-z]+$", ".jpg")
    found = pc.coalesce(pc.index_in(paths, value_set=on_disk), pc.index_in(paths, value_set=lowered))
    free = np.ones(len(on_disk), dtype=bool)
    free[found.drop_null().to_numpy()] = False
    absent = found.is_null().to_numpy(zero_copy_only=False)
    return pc.coalesce(on_disk.take(found), paths), absent, on_disk.filter(pa.array(free))


def _use_published_utm(city: _City, folder: str, draft: Draft, rows: CsvText) -> None:
    """East and north of postprocessed.csv, which the official positives are measured on."""
    uri = storage.join(city.config.root, folder, "postprocessed.csv")
    if not storage.exists(uri):
        return
    published = read_csv(uri, ["key", "easting", "northing"])
    at = pc.index_in(rows.column("key"), value_set=published.column("key"))
    draft.parse("utm_east", published.column("easting").take(at))
    draft.parse("utm_north", published.column("northing").take(at))


def _select_queries(city: _City, database: Draft, query: Draft) -> None:
    """Reject, as not_selected, the queries that the chosen list leaves out."""
    name = city.config.query_list
    if name == "vg-11084":
        return
    uri = storage.join(city.config.root, city.path, "query", "subtask_index.csv")
    index = read_csv(uri, ["key", "all"])
    selected = index.column("key").filter(pa.array(photos.parse_flags(index.column("all"))))
    keys = pc.replace_substring_regex(photos.basenames(query.paths), r"\.[A-Za-z]+$", "")
    listed = pc.is_in(keys, value_set=selected).to_numpy(zero_copy_only=False)
    query.mark(~listed, "not_selected", f"not among the queries of the list {name}")
    if name == "official-740":
        query.mark(
            ~_has_positive(city.config, database, query), "not_selected", f"no positive, so not in {name}"
        )


def _has_positive(config: Msls, database: Draft, query: Draft) -> Mask:
    """Queries with a usable database photo of their city within the radius, border included."""
    radius = (
        config.positive.radius_m if isinstance(config.positive, WithinRadius) else WithinRadius().radius_m
    )
    there, where = database.metres(), query.metres()
    known = np.isfinite(where).all(axis=1)
    usable = there[np.isfinite(there).all(axis=1) & database.unmarked()]
    distance = np.full(query.size, np.inf)
    if len(usable):
        from scipy.spatial import KDTree  # here, because every worker of every source loads this file

        distance[known] = KDTree(usable).query(where[known])[0]
    return distance <= radius
