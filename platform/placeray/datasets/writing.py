"""One part of a normalize run: read its photos, write its places, images and rejects, then its report.

A part is a pure function of its planned rows and of the photos' bytes: run twice, by whomever, it writes the
same files. The report is written last, so a part with a report is a finished part, as long as its photos stay.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from placeray import contracts, storage
from placeray.datasets import photos
from placeray.datasets.photo_bytes import PhotoBytes, PhotoStorage, Rejection, read_photos
from placeray.datasets.planning import count_reasons, read_plan
from placeray.errors import DataError

PartDict = dict[str, Any]
Report = dict[str, Any]

# Places of one row group are read together; few, because a batch wants single places of a large file.
PLACES_PER_ROW_GROUP = 4
PHOTOS_PER_ROW_GROUP = 64
_PIECE_BYTES = 8 << 20  # of photos in memory before they are written
# Of a parquet file, whose writer hands over hundreds of tiny pieces for each large one.
_BUFFER_BYTES = 1 << 20
_MAX_BYTES = 2_000_000_000  # what one Arrow binary column can address

# GeoParquet 1.1: longitude and latitude of WGS84 (the default CRS84) as points in well-known binary.
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Point"]}},
}


def _places_options() -> dict[str, Any]:
    """How places/ is written. JPEG does not get smaller, and ids hardly repeat."""
    schema = contracts.table_schema("places/v1")
    inner = [f"photos.list.element.{field.name}" for field in schema.field("photos").type.value_type]
    leaves = [name for name in schema.names if name != "photos"] + inner
    return {
        "row_group_size": PLACES_PER_ROW_GROUP,
        "compression": {name: "none" if name.endswith(".image") else "zstd" for name in leaves},
        "use_dictionary": False,
        "write_statistics": ["place_id"],
    }


def _images_options() -> dict[str, Any]:
    """How images/ is written."""
    names = contracts.table_schema("images/v1").names
    return {
        "row_group_size": PHOTOS_PER_ROW_GROUP,
        "compression": {name: "none" if name == "image" else "zstd" for name in names},
        "use_dictionary": ["dataset", "city", "split", "role", "utm_zone"],
        "write_statistics": ["image_id", "lat", "lon", "captured"],
    }


class _Read(NamedTuple):
    """Planned rows whose photos are good, their bytes (None where nothing was read), and the rejects."""

    rows: pa.Table
    contents: list[PhotoBytes | None]
    rejects: pa.Table


def finished_report(output: str, part: PartDict, there: Mapping[str, int]) -> Report | None:
    """The report of a part that an earlier run finished, whose files are all still there and whose photos have not
    changed since, else None.

    Photos are looked at where both they and the output are local files: one system call each, and only of a part that
    has a report, so a first run pays nothing. In an object store a changed photo goes unnoticed, because asking for
    each would take as long as reading it: there, begin a new output after replacing photos.

    Args:
        there: bytes of every file below `output`, by its path.
    """
    if f"work/{part['name']}.report.json" not in there:
        return None
    report: Report = storage.read_json(storage.report_uri(output, part))
    written = {
        f"{folder}/{file['path']}": file["bytes"]
        for folder, files in report["files"].items()
        for file in files
    }
    complete = all(there.get(path) == size for path, size in written.items())
    if not complete or report["fingerprint"] != part["fingerprint"]:
        return None
    return report if _photos_stayed(output, part, report, list(written)) else None


def _photos_stayed(output: str, part: PartDict, report: Report, written: list[str]) -> bool:
    """Whether no photo of a part has changed, gone or come since the first of its files was written.

    By the time of the last change of the file itself (ctime): a copy that keeps the old time of the content is a
    change too, and a camera whose clock runs ahead is none.
    """
    output = storage.resolve(output)
    if not part["is_read"] or storage.is_remote(output):
        return True
    uris = read_plan(part)["source_uri"].to_pylist()
    if any(storage.is_remote(uri) for uri in uris):
        return True
    files = [storage.join(output, path) for path in written]
    finished_ns = min(os.stat(file).st_mtime_ns for file in [*files, storage.report_uri(output, part)])
    gone = set()
    for uri in uris:
        try:
            if os.stat(uri).st_ctime_ns >= finished_ns:
                return False
        except OSError:
            gone.add(uri)
    return gone == _missing_then(output, report)


def _missing_then(output: str, report: Report) -> set[str]:
    """The photos of a part that were not there when it was written."""
    missing: set[str] = set()
    if "missing_file" in report["counts"]["rejected"]:
        for file in report["files"]["rejects"]:
            rejects = storage.read_table(storage.join(output, "rejects", file["path"]))
            missing.update(
                rejects["source_uri"].filter(pc.equal(rejects["reason"], "missing_file")).to_pylist()
            )
    return missing


def write_part(part: PartDict, output: str, config: PhotoStorage) -> Report:
    """Do one part and return its report: fingerprint, files per folder, counts.

    Photos are read, checked and written in pieces of some 8 MiB, so memory does not grow with the part.
    """
    rows = read_plan(part)
    counts: dict[str, int] = dict.fromkeys(("kept", "in_places", "places"), 0)
    rejects = [contracts.empty_table("rejects/v1")]
    with (
        RollingParquet(
            storage.join(output, "places"), part["places_path"] or "", config, _places_options()
        ) as places,
        RollingParquet(
            storage.join(output, "images"), part["images_path"], config, _images_options()
        ) as images,
    ):
        for piece in _read_pieces(part, rows, config):
            rejects.append(piece.rejects)
            kept = _drop_small_places(piece.rows, part["min_photos"])
            in_places = int(pc.sum(kept["place_id"].is_valid()).as_py() or 0)
            if in_places:
                table = places_table(kept, piece.contents)
                places.write(table)
                counts["places"] += table.num_rows
            if kept.num_rows:
                images.write(images_table(kept, piece.contents, keeps_bytes=part["keeps_bytes"]))
            counts["kept"] += kept.num_rows
            counts["in_places"] += in_places
    rejected = pa.concat_tables(rejects).combine_chunks()
    files = {"images": images.files, "places": places.files, "rejects": []}
    if rejected.num_rows:
        files["rejects"].append(write_rejects(output, part["rejects_path"], rejected))
    planned_places = pc.count_distinct(rows["place_id"]).as_py()
    report = {
        "fingerprint": part["fingerprint"],
        "source": part["source"],
        "files": files,
        "counts": {
            **counts,
            "rejected": count_reasons(rejected),
            "places_dropped_small": planned_places - counts["places"],
        },
    }
    storage.write_json(storage.report_uri(output, part), report)
    return report


class RollingParquet:
    """The parquet files of one part in one folder: a new one whenever the last holds `max_file_bytes`.

    The first is called `path`, the next ones end with -2, -3 ... A file begins with the first table written to it, so
    a part without rows makes none. `files` are their manifest entries: path, rows, bytes, sha256.
    """

    def __init__(self, folder: str, path: str, config: PhotoStorage, options: Mapping[str, Any]) -> None:
        self.files: list[dict[str, Any]] = []
        self._folder, self._path = folder, path
        self._max_bytes = config.max_file_bytes
        self._options = dict(options)
        self._row_group_rows = self._options.pop("row_group_size")
        self._file: storage.FileWriter | None = None
        self._buffer: Any = None
        self._parquet: Any = None
        self._rows = 0

    def __enter__(self) -> "RollingParquet":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._file is None:
            return
        if kind is None:
            self._finish_file()
        else:
            self._discard()

    def _discard(self) -> None:
        assert self._file is not None
        self._file.discard()
        # Both hand over what they have left, which a discarded file drops. A writer that is not closed does so when it
        # is collected, into a buffer that is gone, and takes the process with it.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._parquet.close()
        self._buffer.detach()
        self._file = self._buffer = self._parquet = None

    def write(self, table: pa.Table) -> None:
        """Append rows to the current file."""
        if self._file is None:
            self._file = storage.FileWriter(storage.join(self._folder, self._next_path()))
            self._buffer = pa.BufferedOutputStream(pa.PythonFile(self._file, mode="w"), _BUFFER_BYTES)
            self._parquet = pq.ParquetWriter(self._buffer, table.schema, **self._options)
        self._parquet.write_table(table, row_group_size=self._row_group_rows)
        self._rows += table.num_rows
        if self._buffer.tell() >= self._max_bytes:
            self._finish_file()

    def _next_path(self) -> str:
        number = len(self.files) + 1
        return self._path if number == 1 else f"{self._path.removesuffix('.parquet')}-{number}.parquet"

    def _finish_file(self) -> None:
        assert self._file is not None
        try:
            self._parquet.close()
            self._buffer.detach()  # writes what is left in it
            self._file.commit()
        except BaseException:
            self._discard()
            raise
        self.files.append(
            {
                "path": self._next_path(),
                "rows": self._rows,
                "bytes": self._file.size,
                "sha256": self._file.sha256,
            }
        )
        self._file, self._buffer, self._parquet, self._rows = None, None, None, 0


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
        "image": _joined(chosen),
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
        "image": _joined(contents) if keeps_bytes else pa.nulls(len(contents), pa.binary()),
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


def _joined(contents: Sequence[PhotoBytes | None]) -> pa.Array:
    """The bytes of photos as one binary array: copied once, where building it value by value copies four times."""
    data = [content.data if content else b"" for content in contents]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in data])]).astype(np.int32)
    joined = pa.BinaryArray.from_buffers(
        pa.binary(), len(data), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    )
    absent = [content is None for content in contents]
    return pc.if_else(pa.array(absent), pa.scalar(None, pa.binary()), joined) if any(absent) else joined


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


def _read_pieces(part: PartDict, rows: pa.Table, config: PhotoStorage) -> Iterator[_Read]:
    """The rows of a part with their photos, some 8 MiB at a time; a place is never split."""
    if not part["is_read"]:
        yield _Read(rows, [None] * rows.num_rows, contracts.empty_table("rejects/v1"))
        return
    place_ids = rows["place_id"].to_pylist()
    results: list[PhotoBytes | Rejection] = []
    first, size = 0, 0
    for at, result in enumerate(read_photos(rows["source_uri"].to_pylist(), config)):
        if size >= _PIECE_BYTES and (place_ids[at] is None or place_ids[at] != place_ids[at - 1]):
            yield _piece(part, rows.slice(first, at - first), results)
            results, first, size = [], at, 0
        results.append(result)
        size += len(result.data) if isinstance(result, PhotoBytes) else 0
        if size > _MAX_BYTES:
            raise DataError(
                f"the photos of the place {place_ids[at]} exceed {_MAX_BYTES:,} bytes: make cells smaller"
            )
    yield _piece(part, rows.slice(first), results)


def _piece(part: PartDict, rows: pa.Table, results: list[PhotoBytes | Rejection]) -> _Read:
    """Rows with a good photo, and the others as rejects."""
    good = pa.array([isinstance(result, PhotoBytes) for result in results], pa.bool_())
    bad = rows.filter(pc.invert(good))
    rejections = [result for result in results if isinstance(result, Rejection)]
    rejects = photos.rejects_table(
        part["dataset"],
        bad["path"],
        bad["source_uri"],
        [rejection.reason for rejection in rejections],
        [rejection.detail for rejection in rejections],
    )
    contents: list[PhotoBytes | None] = [result for result in results if isinstance(result, PhotoBytes)]
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


def _means(values: pa.ChunkedArray, first: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]) -> pa.Array:
    numbers = values.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)
    return pa.array(np.add.reduceat(numbers, first) / sizes)
