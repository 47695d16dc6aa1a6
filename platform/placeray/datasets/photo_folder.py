"""Anyone's folder of photos, placed by the GPS tags that phones and cameras write into them (EXIF)."""

import io
import numbers
import posixpath
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import PIL.Image
from PIL.ExifTags import GPS, IFD, Base
from pydantic import Field

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.photos import Draft
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName
from placeray.errors import DataError
from placeray.pictures import BROKEN_TAGS, NO_IMAGE

_HEADER_BYTES = 256 << 10  # holds the tags of nearly every photo; of an object store no more is read
_READ_THREADS = 8
# Of a folder with whatever a camera made.
_SUFFIXES = (*photos.IMAGE_SUFFIXES, *photos.OTHER_SUFFIXES)


class PhotoFolder(SourceBase):
    """A folder of photos, or a pair of folders: one of the map, one of queries.

    Where one of the two lies inside the other, its photos have its role alone: queries are never part of the map.
    """

    kind: Literal["photo_folder"]
    split: SplitName = "test"
    database: str | None = Field(
        default="", description="folder of the map below root; empty = root itself; null = none"
    )
    queries: str | None = Field(default=None, description="folder of the queries below root; null = none")
    needs_position: bool = Field(
        default=True, description="reject photos without GPS; false for unlabelled sets"
    )
    places: CellPlaces = CellPlaces(heading_bin_deg=None)


def list_photos(config: PhotoFolder) -> Listing:
    """One photo per image file. Only the headers of the files are read."""
    folders = {
        role: _prefix(folder)
        for role, folder in (("database", config.database), ("query", config.queries))
        if folder is not None
    }
    if not folders:
        raise DataError(f"{config.key}: database and queries are both null, so there is nothing to read")
    if len(set(folders.values())) < len(folders):
        raise DataError(
            f"{config.key}: database and queries are the same folder {config.queries!r}; "
            "name two folders, or set one of them to null"
        )
    parts = []
    for role, prefix in folders.items():
        inner = tuple(other for other in folders.values() if other != prefix and other.startswith(prefix))
        found = False
        for names in photos.walk_images(storage.join(config.root, prefix), _SUFFIXES):
            paths = [prefix + name for name in names.to_pylist()]
            paths = [path for path in paths if not path.startswith(inner)]
            found = found or not all(map(_is_other, paths))
            parts.append(_list_role(config, "train" if config.is_training else role, paths))
        if not found:
            where = storage.resolve(storage.join(config.root, prefix))
            besides = f" besides those of {inner[0]}" if inner else ""
            raise DataError(f"{config.key}: no photo (.jpg, .jpeg, .png) in {where}{besides}")
    return photos.join_listings(config, parts)


def _prefix(folder: str) -> str:
    """What the paths of a folder below the root begin with: empty for the root itself."""
    plain = posixpath.normpath(folder.strip("/"))
    return "" if plain == "." else f"{plain}/"


def _list_role(config: PhotoFolder, role: str, paths: list[str]) -> Listing:
    draft = Draft(config, paths)
    other = np.array([_is_other(path) for path in paths], dtype=bool)
    draft.mark(other, "decode_error", "photos of this format are not read: convert it to JPEG or PNG")

    def header_of(path: str) -> dict[str, Any] | None:
        return None if _is_other(path) else read_header(storage.join(config.root, path))

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        headers = list(pool.map(header_of, paths))
    unreadable = np.array([header is None for header in headers], dtype=bool)
    draft.mark(unreadable, "decode_error", "the file is no image that can be opened")
    known = [header or {} for header in headers]
    if config.needs_position or config.is_training:
        unclear = np.array([header.get("is_unclear", False) for header in known], dtype=bool)
        draft.mark(
            unclear, "no_position", "GPS tags are there, but no latitude and longitude can be read from them"
        )
    draft.number(
        lat=[header.get("lat", np.nan) for header in known],
        lon=[header.get("lon", np.nan) for header in known],
        heading_deg=[header.get("heading_deg", np.nan) for header in known],
    )
    draft.text(
        role=role,
        city=config.name.split("/")[-1],
        captured=photos.parse_captured(photos.texts([header.get("captured", "") for header in known])),
    )
    return draft.finish(config.needs_position)


def _is_other(path: str) -> bool:
    return path.lower().endswith(photos.OTHER_SUFFIXES)


def read_header(uri: str) -> dict[str, Any] | None:
    """lat, lon, heading_deg and captured of an image file as far as its EXIF has them; None for no image or no file.

    `is_unclear` is there and true where it has a latitude or longitude that cannot be read.
    """
    if not storage.is_remote(storage.resolve(uri)):
        if not storage.is_file(uri):
            return None
        with storage.open_read(uri) as file:
            return _header_of(file)
    start = storage.read_bytes(uri, 0, _HEADER_BYTES)
    header = _header_of(io.BytesIO(start))
    if header is None and len(start) == _HEADER_BYTES:
        header = _header_of(io.BytesIO(storage.read_bytes(uri)))
    return header


def _header_of(file: Any) -> dict[str, Any] | None:
    try:
        with PIL.Image.open(file) as image:
            try:
                return _tags_of(image)
            except BROKEN_TAGS:
                return {}  # a good photo with broken tags has no position
    except NO_IMAGE:
        return None


def _tags_of(image: PIL.Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    gps, details = exif.get_ifd(IFD.GPSInfo), exif.get_ifd(IFD.Exif)
    header: dict[str, Any] = {
        "captured": str(details.get(Base.DateTimeOriginal, "") or exif.get(Base.DateTime, ""))
    }
    for name, value, reference, negative in (
        ("lat", GPS.GPSLatitude, GPS.GPSLatitudeRef, "S"),
        ("lon", GPS.GPSLongitude, GPS.GPSLongitudeRef, "W"),
    ):
        degrees = _degrees(gps.get(value), str(gps.get(reference, "")).strip("\0 ").upper(), negative)
        if degrees is not None:
            header[name] = degrees
        elif value in gps:
            header["is_unclear"] = True
    heading = gps.get(GPS.GPSImgDirection)
    if heading is not None and _finite(heading) is not None:
        header["heading_deg"] = _finite(heading)
    return header


def _degrees(value: Any, letter: str, negative: str) -> float | None:
    """Degrees of a coordinate: degrees, minutes, seconds as EXIF has them, or decimal degrees as one number.

    None where there is nothing to read (0/0 where a phone had no fix), or nothing that has one meaning only: a number
    in text may be NMEA's ddmm.mm, and a negative one with the letter of the other half of the world says both.
    """
    parts = (value,) if isinstance(value, numbers.Real) else value
    if not isinstance(parts, tuple) or len(parts) not in (1, 3):
        return None
    found = [number for number in map(_finite, parts) if number is not None]
    if len(found) < len(parts) or (found[0] < 0 and letter not in ("", negative)):
        return None
    size = sum(abs(part) / scale for part, scale in zip(found, (1, 60, 3600), strict=False))
    return -size if found[0] < 0 or letter == negative else size


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None
