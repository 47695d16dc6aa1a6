"""The table of photos that every source is listed into, its ids, and the common checks on its rows.

A reader fills a `Draft` for every batch of at most BATCH_ROWS rows: text and number columns of equal length, and
marks rows that cannot be used with a reason. `Draft.finish` then does what is the same for all sources: headings,
UTM, missing positions. `join_listings` puts the batches together and finds the photos that are named twice.

A set may have tens of millions of rows, so nothing here makes a Python object per row and keeps it: columns are
Arrow's, names that repeat are stored once, an id is 16 bytes. A row of SF-XL takes about 250 bytes.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from placeray import contracts, geo, storage
from placeray.datasets.source import Listing, SourceBase

BATCH_ROWS = 200_000
ID = pa.binary(16)
NAME = pa.dictionary(pa.int32(), pa.string())  # text that many rows share
PHOTOS = pa.schema(
    [
        ("image_id", ID),
        ("dataset", NAME),
        ("city", NAME),
        ("split", NAME),
        ("role", NAME),
        ("lat", pa.float64()),
        ("lon", pa.float64()),
        ("utm_east", pa.float64()),
        ("utm_north", pa.float64()),
        ("utm_zone", NAME),
        ("heading_deg", pa.float64()),
        ("captured", pa.string()),
        ("frame", pa.int64()),
        ("panorama_id", pa.large_string()),
        ("path", pa.large_string()),  # relative to the root of the source: what the id is made of
        ("place_key", pa.string()),  # the place as the source itself names it, inside its city
    ]
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Photos that are not read; where a folder holds whatever a camera made, they are named instead of passed over.
OTHER_SUFFIXES = (
    ".heic", ".heif", ".avif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Texts: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[str | None] | str | None"


def image_ids(dataset: str, paths: Texts) -> pa.Array:
    """128-bit ids of data set and relative path: the same on every machine and in every order."""
    prefix = f"{dataset}\n".encode()
    digest = xxhash.xxh3_128_digest
    words = texts(paths).cast(pa.large_binary())
    pieces = [
        b"".join([digest(prefix + path) for path in words.slice(start, 65536).to_pylist()])
        for start in range(0, len(words), 65536)
    ]
    return pa.FixedSizeBinaryArray.from_buffers(ID, len(words), [None, pa.py_buffer(b"".join(pieces))])


def hex_text(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Ids as the 32 hexadecimal digits that contracts hold."""
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    raw = np.frombuffer(ids.buffers()[1], dtype=np.uint8)[16 * ids.offset : 16 * (ids.offset + len(ids))]
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = digits[np.stack([raw >> 4, raw & 15], axis=1)]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))


def source_uris(root: str, paths: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Full uris of paths below a root that is resolved already."""
    return pc.binary_join_element_wise(pa.scalar(root.rstrip("/") + "/"), texts(paths), "")


def rejects_table(dataset: str, paths: Texts, uris: Texts, reasons: Texts, details: Texts) -> pa.Table:
    """Rows of rejects/v1, sorted by uri."""
    named = texts(paths)
    table = pa.table(
        {
            "image_id": hex_text(image_ids(dataset, named)),
            "dataset": texts(dataset, len(named)),
            "source_uri": texts(uris),
            "reason": texts(reasons),
            "detail": texts(details),
        },
        schema=contracts.table_schema("rejects/v1"),
    )
    return table.sort_by([("source_uri", "ascending"), ("reason", "ascending"), ("detail", "ascending")])


class Draft:
    """A batch of rows of a source on their way into a listing.

    Args:
        config: the source; its name, split and root go into every row.
        paths:  (n,) path of each photo relative to the root, or of the row that should have named one.
    """

    def __init__(self, config: SourceBase, paths: Texts) -> None:
        self.config = config
        self.root = storage.resolve(config.root)
        self.paths = normal_paths(texts(paths), self.root)
        self.size = len(self.paths)
        self.columns: dict[str, pa.Array] = {}
        self._reasons = np.zeros(self.size, dtype=np.uint8)  # position in _reason_names
        self._reason_names = [""]
        self._details: list[tuple[npt.NDArray[np.int64], pa.Array]] = []  # rows and what is wrong with them

    def text(self, **columns: Texts) -> "Draft":
        """Set text columns: one value for all rows, or one per row; empty text becomes null."""
        for name, values in columns.items():
            if values is None or isinstance(values, str):
                self.columns[name] = _constant(values or None, self.size)
            else:
                words = texts(values, self.size)
                self.columns[name] = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
        return self

    def number(self, **columns: npt.ArrayLike) -> "Draft":
        """Set number columns, one value per row; NaN becomes null, and a fraction in a column of whole numbers is a
        fault.
        """
        for name, values in columns.items():
            numbers, kind = np.asarray(values, dtype=np.float64), PHOTOS.field(name).type
            if pa.types.is_integer(kind):
                most = np.iinfo(kind.to_pandas_dtype()).max
                bad = ~np.isnan(numbers) & (
                    (np.trunc(numbers) != numbers) | (np.abs(numbers) > min(most, 2**53))
                )
                self.mark(bad, "bad_row", f"{name} is no whole number, or too large for one")
                numbers = np.where(bad, np.nan, numbers)
            self.columns[name] = pa.array(numbers, pa.float64(), from_pandas=True).cast(kind)
        return self

    def parse(self, name: str, values: Texts, reason: str = "bad_row") -> "Draft":
        """Set a number column from text; empty text and nan are null, other text that is no number is a
        fault.
        """
        words = texts(values, self.size)
        numbers, bad = parse_numbers(words)
        if bad.any():
            self.mark(
                bad, reason, pc.binary_join_element_wise(pa.scalar(f"{name} is no number:"), words, " ")
            )
        return self.number(**{name: numbers})

    def mark(self, rows: Mask, reason: str, detail: Texts) -> "Draft":
        """Reject rows that no earlier check rejected."""
        new = np.flatnonzero(np.asarray(rows, dtype=bool) & self.unmarked())
        if len(new):
            if reason not in self._reason_names:
                self._reason_names.append(reason)
            self._reasons[new] = self._reason_names.index(reason)
            words = texts(detail, len(new)) if isinstance(detail, str) else texts(detail).take(pa.array(new))
            self._details.append((new, words))
        return self

    def finish(self, needs_position: bool = True) -> Listing:
        """Fill what follows from the rows, run the checks that all sources share, split kept from rejected.

        Args:
            needs_position: a row without latitude, UTM and frame number is rejected.
        """
        self._fill_headings()
        self._fill_positions()
        if needs_position:
            placed = ~self._null("lat") | ~self._null("utm_east") | ~self._null("frame")
            self.mark(~placed, "no_position", "neither coordinates nor a frame number")
        if self.config.is_training:
            # Cells are made of metres, so a frame number alone is no position here.
            self.mark(self._null("lat") | self._null("utm_east"), "no_position", "a place needs coordinates")
            if getattr(getattr(self.config, "places", None), "heading_bin_deg", None) is not None:
                self.mark(
                    self._null("heading_deg"),
                    "bad_heading",
                    "no heading, and places are made of heading bins",
                )
        return self._split()

    def metres(self) -> Floats:
        """(n, 2) east and north of every row, NaN where there is no position; fills UTM from degrees
        first.
        """
        self._fill_positions()
        return np.stack([self._values("utm_east"), self._values("utm_north")], axis=1)

    def unmarked(self) -> Mask:
        """Rows that no check has rejected so far."""
        return np.asarray(self._reasons == 0)

    def _null(self, name: str) -> Mask:
        if name not in self.columns:
            return np.ones(self.size, dtype=bool)
        return self.columns[name].is_null().to_numpy(zero_copy_only=False)

    def _values(self, name: str) -> Floats:
        if name not in self.columns:
            return np.full(self.size, np.nan)
        return self.columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)

    def _fill_headings(self) -> None:
        """Turn any heading into [0, 360): Street View writes 411 where it means 51."""
        heading = self._values("heading_deg")
        self.mark(np.isinf(heading), "bad_heading", "heading is infinite")
        heading = np.mod(np.where(np.isfinite(heading), heading, np.nan), 360.0)
        self.number(heading_deg=np.where(heading >= 360.0, 0.0, heading))

    def _fill_positions(self) -> None:
        """Check coordinates, and compute UTM from degrees or degrees from UTM where one of them is
        missing.
        """
        lat, lon = self._values("lat"), self._values("lon")
        outside = ~(np.abs(lat) <= 90) | ~(np.abs(lon) <= 180)
        given = ~np.isnan(lat) & ~np.isnan(lon)
        self.mark(given & outside, "no_position", "latitude or longitude is out of range")
        # Cameras without a fix write 0, 0, a point in the Atlantic.
        null_island = given & (lat == 0) & (lon == 0)
        valid = given & ~outside & ~null_island
        east, north = self._values("utm_east"), self._values("utm_north")
        zone = self._zones()
        in_metres = np.isfinite(east) & np.isfinite(north)
        if (valid & ~in_metres).any():
            rows = valid & ~in_metres
            east[rows], north[rows], zone[rows] = geo.to_utm(lat[rows], lon[rows])
        if (valid & (zone == "")).any():
            rows = valid & (zone == "")
            zone[rows] = geo.utm_zone(lat[rows], lon[rows])
        if (~valid & in_metres & (zone != "")).any():
            rows = ~valid & in_metres & (zone != "")
            lat[rows], lon[rows] = geo.from_utm(east[rows], north[rows], zone[rows])
            valid |= rows
        self.number(
            lat=np.where(valid, lat, np.nan),
            lon=np.where(valid, lon, np.nan),
            utm_east=np.where(valid | in_metres, east, np.nan),
            utm_north=np.where(valid | in_metres, north, np.nan),
        )
        self.columns["utm_zone"] = pa.array(
            zone.astype(object), pa.string(), mask=zone == ""
        ).dictionary_encode()

    def _zones(self) -> npt.NDArray[np.str_]:
        """(n,) zone and band of every row, empty where unknown."""
        if "utm_zone" not in self.columns:
            return np.full(self.size, "", dtype="U3")
        column = _encoded(self.columns["utm_zone"])
        names = np.array([*column.dictionary.to_pylist(), ""], dtype="U3")
        return np.asarray(names[column.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)])

    def _split(self) -> Listing:
        own = {
            "image_id": lambda: image_ids(self.config.name, self.paths),
            "dataset": lambda: _constant(self.config.name, self.size),
            "split": lambda: _constant(self.config.split_name, self.size),
            "path": lambda: self.paths.cast(pa.large_string()),
        }
        columns = [
            own[field.name]()
            if field.name in own
            else _as_type(self.columns.get(field.name), field, self.size)
            for field in PHOTOS
        ]
        table = pa.table(columns, schema=PHOTOS)
        bad = np.flatnonzero(self._reasons)
        if not len(bad):
            return Listing(table, contracts.empty_table("rejects/v1"), self.size)
        rows = np.concatenate([rows for rows, _ in self._details])
        details = pa.concat_arrays([words for _, words in self._details]).take(pa.array(np.argsort(rows)))
        paths = self.paths.take(pa.array(bad))
        rejects = rejects_table(
            self.config.name,
            paths,
            source_uris(self.root, paths),
            pa.array(self._reason_names).take(pa.array(self._reasons[bad])),
            details,
        )
        return Listing(table.filter(pa.array(self.unmarked())), rejects, self.size)


def reject_all(config: SourceBase, paths: Texts, reason: str, detail: Texts) -> Listing:
    """Inputs that are known to be unusable, such as photos that no row of a table names."""
    draft = Draft(config, paths)
    return draft.mark(np.ones(draft.size, dtype=bool), reason, detail).finish()


def join_listings(config: SourceBase, listings: Iterable[Listing]) -> Listing:
    """One listing, sorted by path, of several parts of a source; a second row of one path is a duplicate.

    Whatever its role: a photo has one id, and a query that is in the map finds itself. The photo of the map is kept.
    Of rows that differ in more, the one that is kept does not depend on their order: see `_duplicates`.
    """
    parts = list(listings)
    if not parts:
        return Listing(PHOTOS.empty_table(), contracts.empty_table("rejects/v1"), 0)
    rejects = pa.concat_tables([part.rejects for part in parts])
    read = sum(part.read for part in parts)
    table = _sorted_by_path(parts)
    again = _duplicates(table)
    if again.any():
        paths = table["path"].filter(pa.array(again)).combine_chunks()
        uris = source_uris(storage.resolve(config.root), paths)
        found = rejects_table(
            config.name, paths, uris, texts("duplicate", len(paths)), _why_again(table, again)
        )  # fmt: skip
        table, rejects = table.filter(pa.array(~again)), pa.concat_tables([rejects, found])
    return Listing(table, rejects.combine_chunks(), read)


def take_rows(columns: dict[str, pa.ChunkedArray], order: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of a table in another order. `columns` is emptied on the way, so that only one of them is there twice."""
    indices = pa.array(order)
    return pa.table({name: columns.pop(name).combine_chunks().take(indices) for name in list(columns)})


def parse_numbers(words: pa.Array) -> tuple[Floats, Mask]:
    """Numbers in text, padded with zeros or not: (values, NaN where there is none; mask of text that is no
    number).
    """
    try:  # nearly always every word is a number or empty, and this is ten times as fast
        values = pc.if_else(pc.equal(words, ""), pa.scalar(None, words.type), words).cast(pa.float64())
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        if not np.isinf(numbers).any():
            return numbers, np.zeros(len(words), dtype=bool)
    except pa.ArrowInvalid:
        pass
    words = pc.utf8_ltrim(pc.utf8_trim_whitespace(words.fill_null("")), "+")
    number = pc.match_substring_regex(words, r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    empty = pc.is_in(pc.utf8_lower(words), pa.array(["", "nan", "none", "null", "na"]))
    values = pc.if_else(number, words, pa.scalar(None, pa.string())).cast(pa.float64())
    bad = pc.invert(pc.or_(number, empty))
    return values.to_numpy(zero_copy_only=False).astype(np.float64), bad.to_numpy(zero_copy_only=False)


def parse_flags(words: pa.Array) -> Mask:
    """True/False columns, whatever their case and line ends."""
    words = pc.utf8_lower(pc.utf8_trim_whitespace(words.fill_null("")))
    return pc.is_in(words, pa.array(["true", "1", "t", "yes"])).to_numpy(zero_copy_only=False)


def parse_captured(words: pa.Array) -> pa.Array:
    """Any prefix of `YYYYMMDD_hhmmss`, or ISO text, as an ISO 8601 prefix as long as what is known; null
    otherwise, also for a moment that does not exist. A month or day of 00 is unknown. A leap second, which few
    programs can read, is the one before it.
    """
    encoded = _encoded(words)
    words = pc.utf8_trim_whitespace(encoded.dictionary.cast(pa.string()))  # times repeat: each is parsed once
    for pattern, iso in (
        (r"^(\d{4})(\d{2})$", r"\1-\2"),
        (r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})$", r"\1-\2-\3T\4"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})(\d{2})$", r"\1-\2-\3T\4:\5"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})(\d{2})(\d{2})$", r"\1-\2-\3T\4:\5:\6"),
        (r"^(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})$", r"\1-\2-\3T\4:\5:\6"),
        (r"^(\d{4})[-:/](\d{2})[-:/](\d{2}) (\d{2}:.*)$", r"\1-\2-\3T\4"),
        (r"^(\d{4})/(\d{2})/(\d{2})$", r"\1-\2-\3"),
        (r"^(\d{4})-00(-.*)?$", r"\1"),
        (r"^(\d{4}-\d{2})-00(T.*)?$", r"\1"),
        # Inserted before a full hour of UTC, which is a quarter of an hour elsewhere.
        (r"^(\d{4}-\d{2}-\d{2}T\d{2}:(14|29|44|59)):60", r"\1:59"),
    ):
        words = pc.replace_substring_regex(words, pattern, iso)
    iso = pc.match_substring_regex(
        words,
        r"^[12]\d{3}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01])"
        r"(T([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d(\.\d+)?)?)?(Z|[+-]([01]\d|2[0-3]):?[0-5]\d)?)?)?)?$",
    )
    no_day = pc.match_substring_regex(words, r"^\d{4}-(02-3|(0[469]|11)-31)")
    leap_day = pc.match_substring_regex(words, r"^\d{4}-02-29")
    leap_year = pc.match_substring_regex(
        words, r"^(\d{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
    )
    iso = pc.and_not(pc.and_not(iso, no_day), pc.and_not(leap_day, leap_year))
    return pc.if_else(iso, words, pa.scalar(None, pa.string())).take(encoded.indices)


def list_images(root: str) -> list[str]:
    """Paths of image files below a folder, relative to it, sorted; the case of the extension does not
    matter.
    """
    return sorted(name for names in walk_images(root) for name in names.to_pylist())


def walk_images(root: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[pa.Array]:
    """The same paths in pieces of at most about BATCH_ROWS, in the order of the folders.

    A name that is no UTF-8 is given with `\\xe9` for such a byte: no file has that name, so it is refused as missing.
    """
    names: list[str] = []
    for folder in storage.walk_files(root):
        found = [name for name in folder if name.lower().endswith(suffixes)]
        names += [
            name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
            for name in found
        ]
        while len(names) >= BATCH_ROWS:
            yield pa.array(names[:BATCH_ROWS], pa.string())
            del names[:BATCH_ROWS]
    if names:
        yield pa.array(names, pa.string())


def basenames(paths: pa.Array) -> pa.Array:
    """The last part of each path."""
    parts = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
    return parts.values.take(pa.array(parts.offsets.to_numpy(zero_copy_only=False)[1:] - 1))


def texts(values: Texts, size: int = 0) -> pa.Array:
    """A plain array of text from a sequence, or from one value for `size` rows."""
    if isinstance(values, str) or values is None:
        return pa.repeat(pa.scalar(values, pa.string()), size)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        return pa.array(list(values), pa.string())
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def _constant(value: str | None, size: int) -> pa.Array:
    """One name for all rows."""
    if value is None:
        return pa.nulls(size, NAME)
    return pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), pa.array([value], pa.string()))


def _encoded(column: pa.Array) -> pa.Array:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _as_type(column: pa.Array | None, field: pa.Field, size: int) -> pa.Array:
    if column is None:
        return pa.nulls(size, field.type)
    if field.type == NAME:
        return _encoded(column)
    return column.cast(field.type) if column.type != field.type else column


def _sorted_by_path(parts: list[Listing]) -> pa.Table:
    """The photos of all parts; empties the list. Lists are mostly sorted already: then nothing moves.

    Arrow sorts chunk by chunk and merges, so parts that are sorted in themselves cost one walk through each.
    """
    table = pa.concat_tables([part.photos for part in parts]).unify_dictionaries()
    parts.clear()
    paths = table["path"]
    if table.num_rows < 2 or pc.all(pc.less_equal(paths.slice(0, len(paths) - 1), paths.slice(1))).as_py():
        return table
    order = pc.sort_indices(paths).to_numpy()
    columns = dict(zip(table.column_names, table.columns, strict=True))
    del table, paths
    return take_rows(columns, order)


def _duplicates(table: pa.Table) -> Mask:
    """Rows of a table sorted by path whose path another row has that comes before it by content: by role (database,
    query), latitude, longitude, heading, time, then by all the rest; without a value last.
    """
    again = np.zeros(table.num_rows, dtype=bool)
    if table.num_rows < 2:
        return again
    paths = table["path"]
    same = pc.equal(paths.slice(1), paths.slice(0, len(paths) - 1)).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if not len(rows):
        return again
    first = ["path", "role", "lat", "lon", "heading_deg", "captured"]
    keys = [*first, *(name for name in PHOTOS.names if name not in [*first, "image_id", "dataset", "split"])]
    found = table.select(keys).take(pa.array(rows))
    columns = [
        column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
        for column in found.columns
    ]
    found = pa.table(columns, names=keys)
    order = pc.sort_indices(found, sort_keys=[(name, "ascending") for name in keys]).to_numpy()
    values = found["path"].take(pa.array(order)).combine_chunks().dictionary_encode("encode")
    codes = values.indices.to_numpy(zero_copy_only=False)
    again[rows[order[1:][codes[1:] == codes[:-1]]]] = True
    return again


def _why_again(table: pa.Table, again: Mask) -> pa.Array:
    """A sentence for each row that is a duplicate."""
    named = table.select(["path", "role"])
    rows = named.filter(pa.array(again))
    kept = named.filter(pc.and_(pc.is_in(named["path"], value_set=rows["path"]), pa.array(~again)))
    of_map = kept["path"].filter(pc.equal(kept["role"].cast(pa.string()), "database"))
    itself = pc.and_(pc.equal(rows["role"].cast(pa.string()), "query"), pc.is_in(rows["path"], of_map))
    found = pa.scalar("the photo is in the map: as a query it would find itself")
    return pc.if_else(itself, found, pa.scalar("another row names the same photo"))


def normal_paths(paths: pa.Array, root: str) -> pa.Array:
    """Paths below a root that are spelt in one way: without `.`, `..` and, where files are local, doubled slashes."""
    odd = r"(^|/)\.{1,2}(/|$)" if storage.is_remote(root) else r"(^|/)\.{1,2}(/|$)|//|^/."
    rows = pc.match_substring_regex(paths, odd).fill_null(False)
    if not pc.any(rows).as_py():
        return paths
    plain = [posixpath.normpath(path).lstrip("/") for path in paths.filter(rows).to_pylist()]
    return pc.replace_with_mask(paths, rows, pa.array(plain, pa.string()))
