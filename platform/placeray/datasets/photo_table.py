"""Anyone's photos listed in a CSV or parquet: path, position or frame number, and whatever else is known."""

import posixpath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from placeray import storage
from placeray.config import Config
from placeray.datasets import photos
from placeray.datasets.csv_text import CsvText, broken_lines, read_csv
from placeray.datasets.photos import Draft, Mask
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName
from placeray.errors import DataError

_OUTSIDE = "the path is not below root: write it relative to root, or choose a root above all photos:"
Role = Literal["database", "query", "train", "skip"]


class Columns(Config):
    """Which column holds what; null = the table does not say."""

    path: str = Field(default="path", description="path of the photo, relative to root or in full below it")
    lat: str | None = Field(default=None, description="WGS84 latitude, degrees")
    lon: str | None = Field(default=None, description="WGS84 longitude, degrees")
    frame: str | None = Field(default=None, description="frame number along a traverse")
    heading_deg: str | None = Field(default=None, description="heading, degrees")
    captured: str | None = Field(
        default=None, description="capture time: ISO 8601 or YYYYMMDD_hhmmss, any prefix"
    )
    role: str | None = Field(default=None, description="what says whether a photo is of the map or a query")
    city: str | None = Field(default=None, description="city or subset")


class PhotoTable(SourceBase):
    """A table of photos. Split train makes places of cells, the others a map and queries."""

    kind: Literal["photo_table"]
    split: SplitName = "test"
    table: str = Field(default="manifest.csv", description="CSV with a header, or .parquet, below root")
    columns: Columns = Columns()
    roles: dict[str, Role] = Field(
        default={}, description="value of the role column -> role; empty takes the values as they are"
    )
    default_role: Role = Field(
        default="database", description="role of all photos when the table has no role column"
    )
    places: CellPlaces = CellPlaces(heading_bin_deg=None)


def list_photos(config: PhotoTable) -> Listing:
    """One photo per row."""
    uri = storage.join(config.root, config.table)
    needed = [name for name in config.columns.model_dump().values() if name is not None]
    rows = _read_parquet(uri, needed) if config.table.endswith(".parquet") else read_csv(uri, needed)
    if not rows.table.num_rows:
        if rows.broken:
            line, text = rows.broken[0]
            raise DataError(
                f"{config.key}: no row of {storage.resolve(uri)} has as many fields as its header; line {line} is "
                f"{text[:200]!r}: name every column, and quote values that hold a comma"
            )
        raise DataError(f"{config.key}: {storage.resolve(uri)} has no rows")
    parts = [_list_rows(config, batch) for batch in rows.batches(photos.BATCH_ROWS)]
    return photos.join_listings(config, [*parts, broken_lines(config, config.table, rows)])


def _list_rows(config: PhotoTable, rows: CsvText) -> Listing:
    wanted = config.columns
    given = rows.column(wanted.path)
    paths, outside = below_root(given, storage.resolve(config.root))
    draft = Draft(config, paths)
    draft.mark(outside, "bad_row", pc.binary_join_element_wise(pa.scalar(_OUTSIDE), given, " "))
    lines = pc.binary_join_element_wise(
        pa.scalar(f"no path in {config.table} line"), rows.lines.cast(pa.string()), " "
    )
    draft.mark(pc.equal(draft.paths, "").to_numpy(zero_copy_only=False), "bad_row", lines)
    for name in ("lat", "lon", "frame", "heading_deg"):
        column = getattr(wanted, name)
        if column is not None:
            draft.parse(name, rows.column(column), "bad_heading" if name == "heading_deg" else "bad_row")
    city: pa.Array | str = config.name.split("/")[-1]
    if wanted.city is not None:
        named = rows.column(wanted.city)
        city = pc.if_else(pc.equal(named, ""), pa.scalar(city), named)
    draft.text(
        role=_roles(config, rows, draft),
        city=city,
        captured=photos.parse_captured(rows.column(wanted.captured)) if wanted.captured else None,
    )
    return draft.finish()


def below_root(paths: pa.Array, root: str) -> tuple[pa.Array, Mask]:
    """Paths as they count from `root`, also those that name it in full; and which of them (n,) lie elsewhere.

    A path that begins with a slash counts from `root` too, where that has the folder the path begins with.
    """
    full = pc.match_substring_regex(paths, r"^(/|\w+://)").fill_null(False)
    if not pc.any(full).as_py():
        return paths, np.zeros(len(paths), dtype=bool)
    plain = pc.replace_substring_regex(paths, "^file://(/.*)$", r"\1")
    if not storage.is_remote(root):
        plain = _normal_where_full(plain)
    base = root.rstrip("/") + "/"
    below = pc.starts_with(plain, pattern=base).fill_null(False)
    plain = pc.if_else(below, pc.utf8_slice_codeunits(plain, len(base)), plain)
    outside = pc.and_not(pc.match_substring_regex(plain, r"^\w+://").fill_null(False), below)
    if not storage.is_remote(root):
        first = pc.struct_field(pc.extract_regex(plain, "^/+(?P<folder>[^/]+)/"), "folder")
        there = [name for name in first.drop_null().unique().to_pylist() if storage.exists(f"{base}{name}")]
        lost = pc.and_not(first.is_valid(), pc.is_in(first, pa.array(there, pa.string())))
        outside = pc.or_(outside, lost)
    return plain, outside.to_numpy(zero_copy_only=False)


def _normal_where_full(paths: pa.Array) -> pa.Array:
    """Paths that begin with a slash without `.`, `..` and doubled slashes, which would hide where they lead."""
    rows = pc.match_substring_regex(paths, r"^/.*(/\.{1,2}(/|$)|//)|^//").fill_null(False)
    if not pc.any(rows).as_py():
        return paths
    plain = ["/" + posixpath.normpath(path).lstrip("/") for path in paths.filter(rows).to_pylist()]
    return pc.replace_with_mask(paths, rows, pa.array(plain, pa.string()))


def _roles(config: PhotoTable, rows: CsvText, draft: Draft) -> pa.Array | str:
    if config.is_training:
        return "train"
    if config.columns.role is None:
        return config.default_role
    values = rows.column(config.columns.role)
    names = pa.array(list(config.roles) or ["database", "query", "train", "skip"], pa.string())
    roles = pa.array(list(config.roles.values()) or names.to_pylist(), pa.string())
    found = roles.take(pc.index_in(values, value_set=names))
    draft.mark(
        found.is_null().to_numpy(zero_copy_only=False),
        "bad_row",
        pc.binary_join_element_wise(
            pa.scalar(f"{config.columns.role} is none of {names.to_pylist()}:"), values, " "
        ),
    )
    draft.mark(
        np.asarray(pc.equal(found.fill_null(""), "skip")),
        "not_selected",
        "the role of the row is configured as skip",
    )
    return found


def _read_parquet(uri: str, needed: list[str]) -> CsvText:
    """A parquet table as text columns: numbers print as the shortest text that reads back to them."""
    full = storage.resolve(uri)
    present = storage.read_schema(uri).names
    missing = [name for name in needed if name not in present]
    if missing:
        raise DataError(f"{full} has no column {', '.join(missing)}; its columns are {', '.join(present)}")
    table = storage.read_table(uri, list(dict.fromkeys(needed)))
    texts = []
    for name in table.column_names:
        try:
            texts.append(table[name].cast(pa.string()).fill_null(""))
        except pa.ArrowException:
            raise DataError(
                f"{full}: column {name} holds {table[name].type}, expected text, numbers or times"
            ) from None
        try:
            texts[-1].validate(full=True)  # other programs write any bytes as text
        except pa.ArrowInvalid:
            raise DataError(f"{full}: column {name} is not UTF-8 text") from None
    lines = pa.array(np.arange(1, table.num_rows + 1, dtype=np.int64))
    return CsvText(pa.table(texts, names=table.column_names), lines, [])
