"""The plan of a normalize run: which photos go into which files, decided from metadata alone.

Every source is listed, its places are formed, and its photos are cut into *parts*, each of which becomes one
file of places and one of images. The rows of a part are a small parquet table; many of these lie one behind the other
in a plan file under `work/`, and a worker gets no more than the place of its own. A fingerprint covers the rows and
the settings, so that a part finished by an earlier run is recognised and one whose rows or settings have changed is
not. It does not cover the bytes of the photos: whether those have changed is for `writing.finished_report` to say.

Memory: the listing of a source is in memory once (see `photos`), and one of its columns a second time while the rows
are brought into the order of the files; of the parts only one plan file's worth is there at a time.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from placeray import storage
from placeray.config import Config
from placeray.datasets import SourceConfig, list_source
from placeray.datasets.photo_bytes import PhotoStorage
from placeray.datasets.photos import PHOTOS, hex_text, source_uris, take_rows
from placeray.datasets.places import CELL_COLUMNS, form_places
from placeray.datasets.source import SourceBase
from placeray.errors import DataError

# Not faults of the data: a query that a list leaves out, a panorama that a protocol leaves out.
EXPECTED_REASONS = ("not_selected", "panorama")
_TEXT = {
    field.name: pa.string() for field in [*PHOTOS, *CELL_COLUMNS] if not pa.types.is_primitive(field.type)
}
# What a worker gets of a photo: PHOTOS and CELL_COLUMNS as text, and where the bytes are.
PLANNED = pa.schema(
    [(field.name, _TEXT.get(field.name, field.type)) for field in [*PHOTOS, *CELL_COLUMNS]]
    + [("source_uri", pa.string())]
)
_PLAN_FILE_BYTES = 8 << 20
_MAX_NAME_BYTES = 100  # of a part of a path: file systems take 255, and numbers and endings come behind it
Ints = npt.NDArray[np.int64]


class NormalizeConfig(Config):
    """What becomes of raw data sets: it alone decides the bytes of the output."""

    sources: list[SourceConfig] = Field(min_length=1, description="data sets, or splits of them")
    photos: PhotoStorage = PhotoStorage()
    photos_per_file: int = Field(
        default=1000,
        ge=1,
        description="a file holds about so many photos, and fewer once it has photos.max_file_bytes",
    )
    read_unplaced: bool = Field(
        default=True,
        description="also read and check training photos that belong to no place; false saves the time",
    )
    max_reject_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="stop when a larger share of a source is faulty; the rejects are kept",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        keys = [source.key for source in self.sources]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"two sources are called {key}: give each its own name, ids are made of it")
        return self


class Part(NamedTuple):
    """One file's worth of photos. `rows`: their table, PHOTOS and CELL_COLUMNS, a slice of that of the source."""

    name: str
    rows: pa.Table
    settings: dict[str, Any]


class SourcePlan(NamedTuple):
    """The parts of one source, what it rejects without reading a pixel, and its counts so far."""

    source: SourceBase
    parts: Iterable[Part]  # made one by one: a large source has tens of thousands
    rejects: pa.Table
    counts: dict[str, Any]


def plan_source(source: SourceBase, config: NormalizeConfig) -> SourcePlan:
    """List a source, form its places, cut it into parts.

    Raises:
        DataError: the source is not there or holds nothing.
    """
    listing = list_source(source)
    if not listing.read:
        raise DataError(f"{source.key}: nothing to read in {storage.resolve(source.root)}")
    counts = {
        "read": listing.read,
        "kept": 0,
        "rejected": count_reasons(listing.rejects),
        "in_places": 0,
        "photos_without_place": 0,
        "places": 0,
        "places_dropped_small": 0,
    }
    photos, rejects = listing.photos, listing.rejects
    del listing  # its columns are taken apart below
    if not photos.num_rows:
        return SourcePlan(source, [], rejects, counts)
    if not source.is_training:
        for field in CELL_COLUMNS:
            photos = photos.append_column(field, pa.nulls(photos.num_rows, field.type))
        return SourcePlan(source, _photo_parts(source, config, _by_role(photos)), rejects, counts)
    placed = form_places(photos, source.places)  # type: ignore[attr-defined]
    counts["places_dropped_small"] = placed.num_small
    layout = _lay_out(placed.photos, config.photos_per_file)
    columns = dict(zip(placed.photos.column_names, placed.photos.columns, strict=True))
    del photos, placed
    ordered = take_rows(columns, layout.order)
    in_places = sum(file.rows for file in layout.files)
    parts = itertools.chain(
        _place_parts(source, layout.files, ordered),
        _photo_parts(source, config, ordered.slice(in_places)),
    )
    return SourcePlan(source, parts, rejects, counts)


def write_plan(plan: SourcePlan, config: NormalizeConfig, output: str) -> list[dict[str, Any]]:
    """Write the rows of all parts under `work/` and return the part dicts that workers get."""
    root = storage.resolve(plan.source.root)
    photo_settings = config.photos.model_dump(mode="json")
    parts: list[dict[str, Any]] = []
    waiting: list[bytes] = []
    size, number = 0, 0
    for part in plan.parts:
        data = _encode(part.rows, root)
        meaning = json.dumps([part.settings, photo_settings], sort_keys=True)
        parts.append(
            {
                "name": part.name,
                "rows": part.rows.num_rows,
                "plan": plan_file(output, plan.source, number),
                "plan_start": size,
                "plan_end": size + len(data),
                "fingerprint": hashlib.sha256(data + meaning.encode()).hexdigest(),
                **part.settings,
            }
        )
        waiting.append(data)
        size += len(data)
        if size >= _PLAN_FILE_BYTES:
            storage.write_bytes(plan_file(output, plan.source, number), b"".join(waiting))
            waiting, size, number = [], 0, number + 1
    if waiting:
        storage.write_bytes(plan_file(output, plan.source, number), b"".join(waiting))
    return parts


def plan_file(output: str, source: SourceBase, number: int) -> str:
    """Where the plan of some parts of a source is while a run lasts."""
    return storage.join(output, "work", f"{source.key}.plan-{number:05d}")


def read_plan(part: dict[str, Any]) -> pa.Table:
    """The rows of one part: as PLANNED says."""
    data = storage.read_bytes(part["plan"], part["plan_start"], part["plan_end"])
    return pq.read_table(pa.BufferReader(data))


def _encode(rows: pa.Table, root: str) -> bytes:
    """A part as PLANNED parquet: text in full, ids in hexadecimal, uris of the photos. Same rows, same bytes."""
    made = {
        "image_id": hex_text(rows["image_id"]),
        "source_uri": source_uris(root, rows["path"]),
    }
    columns = [
        made[field.name] if field.name in made else _plain(rows[field.name].combine_chunks()).cast(field.type)
        for field in PLANNED
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=PLANNED),
        sink,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def count_reasons(rejects: pa.Table) -> dict[str, int]:
    """Rejects per reason, sorted by reason."""
    counts = pc.value_counts(rejects["reason"]).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counts, key=lambda item: str(item["values"]))}


def check_share(key: str, counts: dict[str, Any], config: NormalizeConfig, rejects_folder: str) -> None:
    """Raise DataError when too many inputs of a source are faulty."""
    faults = {name: count for name, count in counts["rejected"].items() if name not in EXPECTED_REASONS}
    share = sum(faults.values()) / counts["read"]
    if share > config.max_reject_share:
        found = ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
        raise DataError(
            f"{key}: {sum(faults.values())} of {counts['read']} inputs are faulty ({found}), more than "
            f"max_reject_share={config.max_reject_share:g} allows; see the rows in {rejects_folder}"
        )


class _File(NamedTuple):
    """One planned file of places: its domain, its number there, how many files the domain has, and its photos."""

    domain: str
    number: int
    of: int
    rows: int


class _Layout(NamedTuple):
    """order: (n,) rows of the photos as they stand in the files, those without a place last. files: in that order."""

    order: npt.NDArray[np.int64]
    files: list[_File]


def _lay_out(photos: pa.Table, photos_per_file: int) -> _Layout:
    """Sort placed photos by domain, file, place and image id; the others keep their order, which is by path."""
    place_ids, place = _codes(photos["place_id"])
    domain_names, domain = _codes(photos["domain"])
    rows = np.flatnonzero(place >= 0)
    others = np.flatnonzero(place < 0)
    if not len(rows):
        return _Layout(others, [])
    place = place[rows]
    domain_of_place = np.zeros(len(place_ids), dtype=np.int64)
    domain_of_place[place] = domain[rows]
    sizes = np.bincount(place, minlength=len(place_ids))
    file_of_place = np.zeros(len(place_ids), dtype=np.int64)
    for number in np.unique(domain_of_place).tolist():
        mine = np.flatnonzero(domain_of_place == number)
        names = place_ids.take(pa.array(mine)).to_pylist()
        file_of_place[mine] = _file_of_places(names, sizes[mine], photos_per_file)
    order_of_places = np.lexsort((np.arange(len(place_ids)), file_of_place, domain_of_place))
    rank = np.empty(len(place_ids), dtype=np.int64)
    rank[order_of_places] = np.arange(len(place_ids))
    high, low = _id_halves(photos["image_id"], rows)
    order = rows[np.lexsort((low, high, rank[place]))]
    files = _files(domain_of_place, file_of_place, sizes, order_of_places, domain_names.to_pylist())
    return _Layout(np.concatenate([order, others]), files)


def _files(domain: Ints, file: Ints, sizes: Ints, order: Ints, names: list[str]) -> list[_File]:
    """The planned files, from the domain, file and photos of each place."""
    domain, file, sizes = domain[order], file[order], sizes[order]
    starts = np.flatnonzero(np.diff(domain, prepend=-1) | np.diff(file, prepend=-1))
    rows = np.add.reduceat(sizes, starts)
    per_domain = np.bincount(domain[starts], minlength=len(names))
    return [
        _File(names[domain[start]], int(file[start]), int(per_domain[domain[start]]), int(count))
        for start, count in zip(starts, rows, strict=True)
    ]


def _place_parts(source: SourceBase, files: list[_File], ordered: pa.Table) -> Iterator[Part]:
    """One part per domain, or several of about `photos_per_file` photos for a large one."""
    min_photos = source.places.min_photos  # type: ignore[attr-defined]
    first = 0
    for file in files:
        path = f"{_file_name(file.domain)}.{file.number:04d}" if file.of > 1 else _file_name(file.domain)
        below_dataset = path.removeprefix(f"{_file_name(source.name)}/")
        yield _part(
            source,
            f"places/{path}",
            ordered.slice(first, file.rows),
            images_path=f"{source.name}/train-train/{below_dataset}.parquet",
            places_path=f"{path}.parquet",
            min_photos=min_photos,
        )
        first += file.rows


def _photo_parts(source: SourceBase, config: NormalizeConfig, photos: pa.Table) -> Iterator[Part]:
    """Photos that form no places, sorted by role and path: one run of files per role."""
    role_names, roles = _codes(photos["role"])
    borders = [*np.flatnonzero(np.diff(roles, prepend=-1)).tolist(), len(roles)]
    for first, end in itertools.pairwise(borders):
        role = role_names[int(roles[first])].as_py()
        for number, start in enumerate(range(first, end, config.photos_per_file)):
            stem = f"unplaced-{number:05d}" if source.is_training else f"{number:05d}"
            path = f"{source.name}/{source.split_name}-{role}/{stem}"
            rows = photos.slice(start, min(config.photos_per_file, end - start))
            is_read = not source.is_training or config.read_unplaced or source.keeps_bytes
            yield _part(source, f"images/{path}", rows, images_path=f"{path}.parquet", is_read=is_read)


def _by_role(photos: pa.Table) -> pa.Table:
    """Sorted by role; within one the order stays, which is by path."""
    names, roles = _codes(photos["role"])
    rank = np.argsort(np.argsort(np.array(names.to_pylist())))
    columns = dict(zip(photos.column_names, photos.columns, strict=True))
    del photos
    return take_rows(columns, np.argsort(rank[roles], kind="stable"))


def _part(source: SourceBase, name: str, rows: pa.Table, **settings: Any) -> Part:
    defaults = {"places_path": None, "min_photos": 0, "is_read": True}
    return Part(
        name,
        rows,
        {
            **defaults,
            **settings,
            "source": source.key,
            "dataset": source.name,
            "rejects_path": f"{name}.parquet",
            "keeps_bytes": source.keeps_bytes,
        },
    )


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """(names, (n,) position of each row's name among them, -1 for null) of a dictionary column."""
    encoded = column.unify_dictionaries().combine_chunks()
    return encoded.dictionary, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _id_halves(ids: pa.ChunkedArray, rows: Ints) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Ids of some rows as two numbers that sort as the ids do."""
    chosen = ids.combine_chunks().take(pa.array(rows))
    halves = np.frombuffer(chosen.buffers()[1], dtype=">u8")[: 2 * len(rows)].reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _file_of_places(place_ids: list[str], sizes: Ints, photos_per_file: int) -> Ints:
    """Number of the file of each place of a domain.

    Places are spread evenly, by a hash of their id: each file of a large domain is a sample of the whole city.
    """
    total = int(sizes.sum())
    num_files = -(-total // photos_per_file)
    digests = [hashlib.sha256(name.encode()).digest() for name in place_ids]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    before = np.empty(len(digests), dtype=np.int64)
    before[order] = np.cumsum(sizes[order]) - sizes[order]
    return before * num_files // total


def _file_name(domain: str) -> str:
    """A domain as a path: cities of other people's tables may hold any character."""
    parts = [_short_name(quote(part, safe=" +,()")) for part in domain.split("/")]
    return "/".join(part.replace(".", "%2E") if not part.strip(".") else part for part in parts)


def _short_name(name: str) -> str:
    """A long name as its beginning and a hash of the whole: a letter of Japanese takes nine bytes when quoted."""
    if len(name) <= _MAX_NAME_BYTES:
        return name
    beginning = re.sub(r"%.?$", "", name[: _MAX_NAME_BYTES - 17])  # no half of a quoted byte
    return f"{beginning}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
