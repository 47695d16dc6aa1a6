"""The table of photos that every source is listed into, its ids, and the common checks on its rows.

A reader fills a `Draft`: text and number columns of equal length, and marks rows that cannot be used with a
reason. `Draft.finish` then does what is the same for all sources: ids, uris, UTM, missing positions,
duplicates.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from placeray import contracts, geo, storage
from placeray.datasets.source import Listing, SourceBase

PHOTOS = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("city", pa.string()),
        ("split", pa.string()),
        ("role", pa.string()),
        ("lat", pa.float64()),
        ("lon", pa.float64()),
        ("utm_east", pa.float64()),
        ("utm_north", pa.float64()),
        ("utm_zone", pa.string()),
        ("heading_deg", pa.float64()),
        ("captured", pa.string()),
        ("frame", pa.int64()),
        ("panorama_id", pa.string()),
        ("source_uri", pa.string()),
        ("path", pa.string()),  # relative to the root of the source: the part of the id that names the photo
        ("place_key", pa.string()),  # the place as the source itself names it, inside its city
    ]
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Texts: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[str | None] | str | None"


def image_ids(dataset: str, paths: Iterable[str]) -> pa.Array:
    """128-bit hexadecimal ids of data set and relative path: the same on every machine and in every order."""
    prefix = f"{dataset}\n".encode()
    return pa.array([xxhash.xxh3_128_hexdigest(prefix + path.encode()) for path in paths], pa.string())


def rejects_table(
    dataset: str, paths: Sequence[str], uris: Sequence[str], reasons: Any, details: Any
) -> pa.Table:
    """Rows of rejects/v1, sorted by uri."""
    table = pa.table(
        {
            "image_id": image_ids(dataset, paths),
            "dataset": pa.array([dataset] * len(paths), pa.string()),
            "source_uri": pa.array(list(uris), pa.string()),
            "reason": pa.array(list(reasons), pa.string()),
            "detail": pa.array(list(details), pa.string()),
        },
        schema=contracts.table_schema("rejects/v1"),
    )
    return table.sort_by([("source_uri", "ascending"), ("reason", "ascending"), ("detail", "ascending")])


class Draft:
    """Rows of a source on their way into a listing.

    Args:
        config: the source; its name, split and root go into every row.
        paths:  (n,) path of each photo relative to the root, or of the row that should have named one.
    """

    def __init__(self, config: SourceBase, paths: Texts) -> None:
        self.config = config
        self.root = storage.resolve(config.root)
        self.paths = texts(paths, None)
        self.size = len(self.paths)
        self.columns: dict[str, pa.Array] = {}
        self.reasons: npt.NDArray[np.object_] = np.full(self.size, None, dtype=object)
        self.details: npt.NDArray[np.object_] = np.full(self.size, None, dtype=object)

    def text(self, **columns: Texts) -> "Draft":
        """Set text columns: one value for all rows, or one per row; empty text becomes null."""
        for name, values in columns.items():
            words = texts(values, self.size)
            self.columns[name] = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
        return self

    def number(self, **columns: npt.ArrayLike) -> "Draft":
        """Set number columns, one value per row; NaN becomes null."""
        for name, values in columns.items():
            array = pa.array(np.asarray(values, dtype=np.float64), pa.float64(), from_pandas=True)
            self.columns[name] = array.cast(PHOTOS.field(name).type)
        return self

    def parse(self, name: str, values: Texts, reason: str = "bad_row") -> "Draft":
        """Set a number column from text; empty text and nan are null, other text that is no number is a
        fault.
        """
        words = texts(values, self.size)
        numbers, bad = parse_numbers(words)
        self.mark(bad, reason, pc.binary_join_element_wise(pa.scalar(f"{name} is no number:"), words, " "))
        return self.number(**{name: numbers})

    def mark(self, rows: Mask, reason: str, detail: Texts) -> "Draft":
        """Reject rows that no earlier check rejected."""
        new = np.asarray(rows, dtype=bool) & self.unmarked()
        if new.any():
            self.reasons[new] = reason
            self.details[new] = texts(detail, self.size).filter(pa.array(new)).to_pylist()
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
        self._mark_duplicates()
        return self._split()

    def metres(self) -> Floats:
        """(n, 2) east and north of every row, NaN where there is no position; fills UTM from degrees
        first.
        """
        self._fill_positions()
        return np.stack([self._values("utm_east"), self._values("utm_north")], axis=1)

    def unmarked(self) -> Mask:
        """Rows that no check has rejected so far."""
        return np.array([reason is None for reason in self.reasons], dtype=bool)

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
        zone = np.array(
            self.columns.get("utm_zone", pa.nulls(self.size, pa.string())).fill_null("").to_pylist(),
            dtype="U3",
        )
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
        ).text(utm_zone=pa.array(zone.tolist(), pa.string()))

    def _mark_duplicates(self) -> None:
        usable = np.flatnonzero(self.unmarked())
        if not len(usable):
            return
        codes = self.paths.take(pa.array(usable)).dictionary_encode().indices.to_numpy(zero_copy_only=False)
        first = np.unique(codes, return_index=True)[1]
        again = np.ones(len(usable), dtype=bool)
        again[first] = False
        rows = np.zeros(self.size, dtype=bool)
        rows[usable[again]] = True
        self.mark(rows, "duplicate", "an earlier row names the same photo")

    def _split(self) -> Listing:
        kept = pa.array(self.unmarked())
        root = self.root.rstrip("/") + "/"
        uris = pc.binary_join_element_wise(pa.scalar(root), self.paths, "")
        ready: dict[str, Any] = {
            **self.columns,
            "path": self.paths,
            "source_uri": uris,
            "dataset": texts(self.config.name, self.size),
            "split": texts(self.config.split_name, self.size),
        }
        columns = [
            ready.get(field.name, pa.nulls(self.size, field.type))
            for field in PHOTOS
            if field.name != "image_id"
        ]
        table = pa.table(
            columns, schema=pa.schema([field for field in PHOTOS if field.name != "image_id"])
        ).filter(kept)
        table = table.sort_by("path").combine_chunks()
        photos = table.add_column(
            0, PHOTOS.field("image_id"), image_ids(self.config.name, table["path"].to_pylist())
        )
        bad = pc.invert(kept)
        rejects = rejects_table(
            self.config.name,
            self.paths.filter(bad).to_pylist(),
            uris.filter(bad).to_pylist(),
            self.reasons[~self.unmarked()],
            self.details[~self.unmarked()],
        )
        return Listing(photos, rejects, self.size)


def reject_all(config: SourceBase, paths: Texts, reason: str, detail: Texts) -> Listing:
    """Inputs that are known to be unusable, such as photos that no row of a table names."""
    draft = Draft(config, paths)
    return draft.mark(np.ones(draft.size, dtype=bool), reason, detail).finish()


def join_listings(listings: Sequence[Listing]) -> Listing:
    """One listing of several parts of a source, such as its cities."""
    return Listing(
        pa.concat_tables([item.photos for item in listings]).combine_chunks().sort_by("path"),
        pa.concat_tables([item.rejects for item in listings]).combine_chunks(),
        sum(item.read for item in listings),
    )


def parse_numbers(words: pa.Array) -> tuple[Floats, Mask]:
    """Numbers in text, padded with zeros or not: (values, NaN where there is none; mask of text that is no
    number).
    """
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
    otherwise.
    """
    words = pc.utf8_trim_whitespace(words.fill_null(""))
    for pattern, iso in (
        (r"^(\d{4})(\d{2})$", r"\1-\2"),
        (r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})$", r"\1-\2-\3T\4"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})(\d{2})$", r"\1-\2-\3T\4:\5"),
        (r"^(\d{4})(\d{2})(\d{2})_(\d{2})(\d{2})(\d{2})$", r"\1-\2-\3T\4:\5:\6"),
        (r"^(\d{4})[-:](\d{2})[-:](\d{2}) (\d{2}:.*)$", r"\1-\2-\3T\4"),
    ):
        words = pc.replace_substring_regex(words, pattern, iso)
    iso = pc.match_substring_regex(
        words, r"^\d{4}(-\d{2}(-\d{2}(T\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?)?)?)?$"
    )
    return pc.if_else(iso, words, pa.scalar(None, pa.string()))


def list_images(root: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Paths of image files below a folder, relative to it, sorted; the case of the extension does not
    matter.
    """
    full = storage.resolve(root).rstrip("/") + "/"
    return sorted(file[len(full) :] for file in storage.list_files(full) if file.lower().endswith(suffixes))


def basenames(paths: pa.Array) -> pa.Array:
    """The last part of each path."""
    return pc.replace_substring_regex(paths, r"^.*/", "")


def texts(values: Texts, size: int | None = None) -> pa.Array:
    """A plain array of text from a sequence, or from one value for `size` rows."""
    if isinstance(values, str) or values is None:
        return pa.array([values] * (size or 0), pa.string())
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks().cast(pa.string())
    return values.cast(pa.string()) if isinstance(values, pa.Array) else pa.array(list(values), pa.string())
