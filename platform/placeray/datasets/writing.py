"""One part of a normalize run: read its photos, write its places, images and rejects, then its report.

A part is a pure function of its planned rows and of the photos' bytes: run twice, by whomever, it writes the
same files. The report is written last, so a part with a report is a finished part.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from placeray import contracts, storage
from placeray.datasets import photos
from placeray.datasets.photo_bytes import PhotoBytes, PhotoStorage, Rejection, read_photo
from placeray.datasets.planning import count_reasons
from placeray.errors import DataError

PartDict = dict[str, Any]
Report = dict[str, Any]

# Places of one row group are read together; few, because a batch wants single places of a large file.
PLACES_PER_ROW_GROUP = 4
PHOTOS_PER_ROW_GROUP = 64
_MAX_BYTES = 2_000_000_000  # what one Arrow binary column can address

# GeoParquet 1.1: longitude and latitude of WGS84 (the default CRS84) as points in well-known binary.
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Point"]}},
}


class _Read(NamedTuple):
    """Planned rows whose photos are good, their bytes (None where nothing was read), and the rejects."""

    rows: pa.Table
    contents: list[PhotoBytes | None]
    rejects: pa.Table


def report_uri(output: str, part: PartDict) -> str:
    """Where the report of a part is."""
    return storage.join(output, "work", f"{part['name']}.report.json")


def finished_report(output: str, part: PartDict) -> Report | None:
    """The report of a part that an earlier run finished and whose files are all still there, else None."""
    uri = report_uri(output, part)
    if not storage.exists(uri):
        return None
    report: Report = storage.read_json(uri)
    if report["fingerprint"] != part["fingerprint"]:
        return None
    for folder, files in report["files"].items():
        for file in files:
            written = storage.join(output, folder, file["path"])
            if not storage.exists(written) or storage.size(written) != file["bytes"]:
                return None
    return report


def write_part(part: PartDict, output: str, config: PhotoStorage) -> Report:
    """Do one part and return its report: fingerprint, files per folder, counts."""
    rows = storage.read_table(part["plan"])
    read = (
        _read_photos(part, rows, config)
        if part["is_read"]
        else _Read(rows, [None] * rows.num_rows, _no_rejects())
    )
    kept = _drop_small_places(read.rows, part["min_photos"])
    in_places = int(pc.sum(kept["place_id"].is_valid()).as_py() or 0)
    files: dict[str, list[dict[str, Any]]] = {"images": [], "places": [], "rejects": []}
    num_places = 0
    if part["places_path"] and in_places:
        table = places_table(kept, read.contents)
        num_places = table.num_rows
        files["places"].append(_write_places(storage.join(output, "places"), part["places_path"], table))
    if kept.num_rows:
        table = images_table(kept, read.contents, keeps_bytes=part["keeps_bytes"])
        files["images"].append(_write_images(storage.join(output, "images"), part["images_path"], table))
    if read.rejects.num_rows:
        files["rejects"].append(write_rejects(output, part["rejects_path"], read.rejects))
    report = {
        "fingerprint": part["fingerprint"],
        "source": part["source"],
        "files": files,
        "counts": {
            "kept": kept.num_rows,
            "rejected": count_reasons(read.rejects),
            "in_places": in_places,
            "places": num_places,
            "places_dropped_small": pc.count_distinct(rows["place_id"]).as_py() - num_places,
        },
    }
    storage.write_json(report_uri(output, part), report)
    return report


def write_rejects(output: str, path: str, rejects: pa.Table) -> dict[str, Any]:
    """Write one file of rejects/v1; returns its entry for the manifest."""
    contracts.validate_table(rejects, "rejects/v1")
    return write_parquet(storage.join(output, "rejects"), path, rejects, compression="zstd")


def write_parquet(folder: str, path: str, table: pa.Table, **options: Any) -> dict[str, Any]:
    """Write one parquet file and return its manifest entry: path, rows, bytes, sha256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(folder, path), data)
    return {
        "path": path,
        "rows": table.num_rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def places_table(rows: pa.Table, contents: list[PhotoBytes | None]) -> pa.Table:
    """places/v1 of the rows that have a place, sorted by place_id; photos of a place by image_id."""
    schema = contracts.table_schema("places/v1")
    numbered = rows.append_column("content", pa.array(range(rows.num_rows), pa.int64()))
    numbered = numbered.filter(rows["place_id"].is_valid())
    numbered = numbered.sort_by([("place_id", "ascending"), ("image_id", "ascending")]).combine_chunks()
    chosen = [contents[number] for number in numbered["content"].to_pylist()]
    photo_type = schema.field("photos").type.value_type
    own = {
        "sha256": pa.array([content.sha256 if content else None for content in chosen], pa.string()),
        "image": pa.array([content.data if content else None for content in chosen], pa.binary()),
    }
    inner = [
        own[field.name] if field.name in own else numbered[field.name].combine_chunks()
        for field in photo_type
    ]
    structs = pa.StructArray.from_arrays(inner, fields=list(photo_type))
    place = numbered["place_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.flatnonzero(np.diff(place, prepend=-1))
    offsets = np.append(first, len(place)).astype(np.int32)
    sizes = np.diff(offsets)
    table = {
        "lat": _means(numbered["lat"], first, sizes),
        "lon": _means(numbered["lon"], first, sizes),
        "num_photos": pa.array(sizes, pa.int32()),
        "photos": pa.ListArray.from_arrays(pa.array(offsets), structs, type=schema.field("photos").type),
    }
    heads = numbered.take(pa.array(first))
    columns = [
        table[field.name] if field.name in table else heads[field.name].combine_chunks() for field in schema
    ]
    places = pa.table(columns, schema=schema)
    contracts.validate_table(places, "places/v1")
    return places


def images_table(rows: pa.Table, contents: list[PhotoBytes | None], keeps_bytes: bool) -> pa.Table:
    """images/v1 of planned rows, with the metadata that makes it GeoParquet."""
    schema = contracts.table_schema("images/v1").with_metadata({"geo": json.dumps(_GEO, sort_keys=True)})
    made = {
        "sha256": [content.sha256 if content else None for content in contents],
        "width": [content.width if content else None for content in contents],
        "height": [content.height if content else None for content in contents],
        "image": [content.data if content and keeps_bytes else None for content in contents],
    }
    columns = [
        point_wkb(rows["lat"], rows["lon"])
        if field.name == "geometry"
        else pa.array(made[field.name], field.type)
        if field.name in made
        else rows[field.name].combine_chunks()
        for field in schema
    ]
    table = pa.table(columns, schema=schema)
    contracts.validate_table(table, "images/v1")
    return table


def point_wkb(lat: pa.ChunkedArray, lon: pa.ChunkedArray) -> pa.Array:
    """Points in little-endian well-known binary, x = longitude; null without a position."""
    valid = pc.and_(lat.is_valid(), lon.is_valid()).to_numpy()
    points = np.zeros(len(valid), dtype=[("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])
    points["order"], points["type"] = 1, 1
    points["x"], points["y"] = lon.fill_null(0.0).to_numpy(), lat.fill_null(0.0).to_numpy()
    packed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(points.dtype.itemsize), len(points), [None, pa.py_buffer(points.tobytes())]
    )
    return pc.if_else(pa.array(valid), packed.cast(pa.binary()), pa.scalar(None, pa.binary()))


def _read_photos(part: PartDict, rows: pa.Table, config: PhotoStorage) -> _Read:
    uris = rows["source_uri"].to_pylist()
    with ThreadPoolExecutor(config.read_threads) as pool:
        results = list(pool.map(lambda uri: read_photo(uri, config), uris))
    contents: list[PhotoBytes | None] = [result for result in results if isinstance(result, PhotoBytes)]
    if sum(len(content.data) for content in contents if content) > _MAX_BYTES:
        raise DataError(f"the photos of one file exceed {_MAX_BYTES:,} bytes: lower photos_per_file")
    good = pa.array([isinstance(result, PhotoBytes) for result in results])
    bad = rows.filter(pc.invert(good))
    rejections = [result for result in results if isinstance(result, Rejection)]
    rejects = photos.rejects_table(
        part["dataset"],
        bad["path"].to_pylist(),
        bad["source_uri"].to_pylist(),
        [rejection.reason for rejection in rejections],
        [rejection.detail for rejection in rejections],
    )
    return _Read(rows.filter(good).combine_chunks(), contents, rejects)


def _drop_small_places(rows: pa.Table, min_photos: int) -> pa.Table:
    """Free the photos of places that rejects have left with too few."""
    counts = {item["values"]: item["counts"] for item in pc.value_counts(rows["place_id"]).to_pylist()}
    small = [name for name, count in counts.items() if name is not None and count < min_photos]
    if not small:
        return rows
    dropped = pc.is_in(rows["place_id"], value_set=pa.array(small, pa.string()))
    at = rows.schema.get_field_index("place_id")
    column = pc.if_else(dropped, pa.scalar(None, pa.string()), rows["place_id"])
    return rows.set_column(at, "place_id", column).combine_chunks()


def _write_places(folder: str, path: str, table: pa.Table) -> dict[str, Any]:
    return write_parquet(
        folder,
        path,
        table,
        row_group_size=PLACES_PER_ROW_GROUP,
        compression={_leaf(name): "zstd" for name in _leaves(table.schema) if name != "photos.image"}
        | {_leaf("photos.image"): "none"},  # JPEG does not get smaller
        use_dictionary=False,
        write_statistics=["place_id"],
    )


def _write_images(folder: str, path: str, table: pa.Table) -> dict[str, Any]:
    return write_parquet(
        folder,
        path,
        table,
        row_group_size=PHOTOS_PER_ROW_GROUP,
        compression={name: "none" if name == "image" else "zstd" for name in table.schema.names},
        use_dictionary=["dataset", "city", "split", "role", "utm_zone"],
        write_statistics=["image_id", "lat", "lon", "captured"],
    )


def _leaves(schema: pa.Schema) -> list[str]:
    names = [name for name in schema.names if name != "photos"]
    return names + [f"photos.{field.name}" for field in schema.field("photos").type.value_type]


def _leaf(name: str) -> str:
    """How parquet spells a column inside a list."""
    return name.replace("photos.", "photos.list.element.", 1)


def _means(values: pa.ChunkedArray, first: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]) -> pa.Array:
    numbers = values.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)
    return pa.array(np.add.reduceat(numbers, first) / sizes)


def _no_rejects() -> pa.Table:
    return contracts.empty_table("rejects/v1")
