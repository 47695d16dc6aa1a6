"""Photos: image bytes by image_id out of images/v1, and the small JPEGs a page embeds."""

import io
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from placeray import storage
from placeray.errors import StorageError
from placeray.pictures import BROKEN_TAGS, upright_rgb


def load_photos(folders: Sequence[str], image_ids: Collection[str]) -> dict[str, bytes]:
    """Encoded photos of some rows of images/v1; ids that are not there or cannot be read are left out.

    Only row groups that hold a wanted id have their image column read, so a few photos out of a large set
    cost its id column. Photos stored by reference are read from their `source_uri`.
    """
    wanted = pa.array(sorted(image_ids), pa.string())
    found: dict[str, bytes] = {}
    for folder in folders:
        manifest = storage.read_manifest(folder)
        for entry in manifest["files"]:
            found.update(photos_of_file(storage.join(folder, entry["path"]), wanted))
            if len(found) == len(wanted):
                return found
    return found


def photos_of_file(uri: str, image_ids: Sequence[str] | pa.Array) -> dict[str, bytes]:
    """The same out of one file of images/v1."""
    wanted = pa.array(image_ids, pa.string())
    found: dict[str, bytes] = {}
    with storage.open_read(uri) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            ids = parquet.read_row_group(group, columns=["image_id"]).column("image_id")
            mask = pc.is_in(ids, value_set=wanted)
            if not pc.any(mask).as_py():
                continue
            rows = parquet.read_row_group(group, columns=["image_id", "source_uri", "image"]).filter(mask)
            for row in rows.to_pylist():
                image = row["image"] if row["image"] is not None else _referenced(row["source_uri"])
                if image is not None:
                    found[row["image_id"]] = image
    return found


def thumbnail(image: bytes, *, width_px: int, quality: int = 78) -> bytes | None:
    """An upright RGB JPEG of at most `width_px` columns and rows; None when the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.draft("RGB", (width_px, width_px))
            small = upright_rgb(picture)
            small.thumbnail((width_px, width_px), Image.Resampling.LANCZOS)
    except BROKEN_TAGS:
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def thumbnails(photos: Mapping[str, bytes], *, width_px: int) -> dict[str, bytes]:
    """Thumbnails of those photos that are pictures."""
    small = {image_id: thumbnail(image, width_px=width_px) for image_id, image in photos.items()}
    return {image_id: image for image_id, image in small.items() if image is not None}


def _referenced(uri: str) -> bytes | None:
    """A photo that moved away since normalization leaves a gap on the page; it does not cost the report."""
    try:
        return storage.read_bytes(uri)
    except StorageError:
        return None
