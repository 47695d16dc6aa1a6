"""The sheet of samples: photos of a place side by side, or a query beside the map photos that are right for it.

The only part of a look that reads image bytes: those of the photos it shows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from placeray import storage
from placeray.datasets.reading import PlacesFile
from placeray.evaluation.photos import photos_of_file, thumbnail
from placeray.overview.answers import AnswerFinder, PhotoRow
from placeray.overview.placing import PlaceRow

_PHOTO_FIELDS = ("image_id", "lat", "lon", "heading_deg", "captured", "frame")


class SheetPhoto(NamedTuple):
    """A small JPEG (None when it cannot be had) and what is known of the photo."""

    image: bytes | None
    image_id: str
    captured: str | None
    heading_deg: float | None
    frame: int | None
    note: str = ""


class SheetRow(NamedTuple):
    """Photos side by side: of one place, or a query and its answers. `more` photos are not shown."""

    source: str
    title: str
    position: tuple[float, float] | None
    photos: list[SheetPhoto]
    more: int = 0
    remark: str = ""


def place_row(source: str, place: PlaceRow, num_photos: int, width_px: int) -> SheetRow:
    """The first photos of a place, which are in no order: ids are hashes."""
    with storage.open_read(place.file) as handle:
        parquet = pq.ParquetFile(handle)
        first = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if place.row < first + size:
                break
            first += size
        columns = ["lat", "lon", *(f"photos.list.element.{name}" for name in _PHOTO_FIELDS)]
        row = parquet.read_row_group(group, columns=columns).slice(place.row - first, 1).to_pylist()[0]
    shown = row["photos"][:num_photos]
    with PlacesFile(place.file) as places:
        (images,) = places.read([place.row], [range(len(shown))])
    photos = [
        SheetPhoto(
            thumbnail(image, width_px=width_px),
            photo["image_id"],
            photo["captured"],
            photo["heading_deg"],
            photo["frame"],
        )
        for photo, image in zip(shown, images, strict=True)
    ]
    return SheetRow(source, place.place_id, (row["lat"], row["lon"]), photos, len(row["photos"]) - len(shown))


def query_row(source: str, finder: AnswerFinder, unit: str, width_px: int) -> SheetRow:
    """A query and its nearest right answers; `unit` is what their gap is counted in."""
    query = finder.query
    images = _images([query, *finder.answers])
    photos = [
        SheetPhoto(
            thumbnail(images[row.image_id], width_px=width_px) if row.image_id in images else None,
            row.image_id,
            row.values["captured"],
            row.values["heading_deg"],
            row.values["frame"],
            row.values["role"] if row.gap is None else f"{_gap(row.gap, unit)} away",
        )
        for row in (query, *finder.answers)
    ]
    position = None if query.values["lat"] is None else (query.values["lat"], query.values["lon"])
    is_query = query.values["role"] == "query"
    remark = ""
    if is_query and not finder.answers:
        remark = "no map photo is a right answer" if finder.rule else "no right answers are stated"
    title = f"{'query' if is_query else 'map photo'} {query.image_id[:12]}"
    return SheetRow(source, title, position, photos, remark=remark)


def _gap(gap: float, unit: str) -> str:
    """`17 m`, `1 frame`, `2 frames`."""
    return f"{gap:.0f} {unit.removesuffix('s') if round(gap) == 1 else unit}"


def _images(rows: Sequence[PhotoRow]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted({row.file for row in rows}):
        found.update(photos_of_file(file, [row.image_id for row in rows if row.file == file]))
    return found
