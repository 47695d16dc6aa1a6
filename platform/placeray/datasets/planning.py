"""The plan of a normalize run: which photos go into which files, decided from metadata alone.

Every source is listed, its places are formed, and its photos are cut into *parts*, each of which becomes one
file of places and one of images. A part's rows lie in a small parquet file under `work/`, so a worker needs
no more than the part's name; its fingerprint covers these rows and the settings, so that a part finished by
an earlier run is recognised and one whose input has changed is not.
"""

import hashlib
import json
from collections.abc import Iterator
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
from placeray.datasets.places import CELL_COLUMNS, form_places
from placeray.datasets.source import SourceBase
from placeray.errors import DataError

# Not faults of the data: a query that a list leaves out, a panorama that a protocol leaves out.
EXPECTED_REASONS = ("not_selected", "panorama")


class NormalizeConfig(Config):
    """What becomes of raw data sets: it alone decides the bytes of the output."""

    sources: list[SourceConfig] = Field(min_length=1, description="data sets, or splits of them")
    photos: PhotoStorage = PhotoStorage()
    photos_per_file: int = Field(
        default=1000,
        ge=1,
        description="a file holds about so many photos; a worker needs three times their bytes",
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
    """One file's worth of photos. `rows`: their table, PHOTOS and CELL_COLUMNS."""

    name: str
    rows: pa.Table
    settings: dict[str, Any]


class SourcePlan(NamedTuple):
    """The parts of one source, what it rejects without reading a pixel, and its counts so far."""

    source: SourceBase
    parts: list[Part]
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
    photos, parts = listing.photos, []
    if photos.num_rows and source.is_training:
        placed = form_places(photos, source.places)  # type: ignore[attr-defined]
        counts["places_dropped_small"] = placed.num_small
        has_place = placed.photos["place_id"].is_valid()
        parts = list(_domain_parts(source, config, placed.photos.filter(has_place)))
        photos = placed.photos.filter(pc.invert(has_place))
    else:
        for field in CELL_COLUMNS:
            photos = photos.append_column(field, pa.nulls(photos.num_rows, field.type))
    parts += _photo_parts(source, config, photos)
    return SourcePlan(source, parts, listing.rejects, counts)


def write_plan(plan: SourcePlan, config: NormalizeConfig, output: str) -> list[dict[str, Any]]:
    """Write the rows of each part under `work/` and return the part dicts that workers get."""
    parts = []
    for part in plan.parts:
        sink = pa.BufferOutputStream()
        pq.write_table(part.rows, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        meaning = json.dumps([part.settings, config.photos.model_dump(mode="json")], sort_keys=True)
        uri = storage.join(output, "work", f"{part.name}.plan.parquet")
        storage.write_bytes(uri, data)
        parts.append(
            {
                "name": part.name,
                "rows": part.rows.num_rows,
                "plan": uri,
                "fingerprint": hashlib.sha256(data + meaning.encode()).hexdigest(),
                **part.settings,
            }
        )
    return parts


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


def _domain_parts(source: SourceBase, config: NormalizeConfig, photos: pa.Table) -> Iterator[Part]:
    """One part per domain, or several of about `photos_per_file` photos for a large one."""
    if not photos.num_rows:
        return
    photos = photos.sort_by([("domain", "ascending"), ("place_id", "ascending"), ("image_id", "ascending")])
    min_photos = source.places.min_photos  # type: ignore[attr-defined]
    for domain, first, count in _runs(photos["domain"]):
        rows = photos.slice(first, count)
        files = _file_of_photos(rows["place_id"], config.photos_per_file)
        for number in np.unique(files).tolist():
            path = f"{_file_name(domain)}.{number:04d}" if files.any() else _file_name(domain)
            below_dataset = path.removeprefix(f"{_file_name(source.name)}/")
            yield _part(
                source,
                f"places/{path}",
                rows.filter(pa.array(files == number)),
                images_path=f"{source.name}/train-train/{below_dataset}.parquet",
                places_path=f"{path}.parquet",
                min_photos=min_photos,
            )


def _photo_parts(source: SourceBase, config: NormalizeConfig, photos: pa.Table) -> Iterator[Part]:
    """Photos that form no places, in the order of their paths: one run of files per role."""
    photos = photos.sort_by([("role", "ascending"), ("path", "ascending")])
    for role, first, count in _runs(photos["role"]):
        for number, start in enumerate(range(first, first + count, config.photos_per_file)):
            stem = f"unplaced-{number:05d}" if source.is_training else f"{number:05d}"
            path = f"{source.name}/{source.split_name}-{role}/{stem}"
            rows = photos.slice(start, min(config.photos_per_file, first + count - start))
            is_read = not source.is_training or config.read_unplaced or source.keeps_bytes
            yield _part(source, f"images/{path}", rows, images_path=f"{path}.parquet", is_read=is_read)


def _part(source: SourceBase, name: str, rows: pa.Table, **settings: Any) -> Part:
    defaults = {"places_path": None, "min_photos": 0, "is_read": True}
    return Part(
        name,
        rows.combine_chunks(),
        {
            **defaults,
            **settings,
            "source": source.key,
            "dataset": source.name,
            "rejects_path": f"{name}.parquet",
            "keeps_bytes": source.keeps_bytes,
        },
    )


def _runs(column: pa.ChunkedArray) -> list[tuple[str, int, int]]:
    """(value, first row, rows) of each run of equal values in a sorted column."""
    if not len(column):
        return []
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], len(codes))
    names = encoded.dictionary.to_pylist()
    return [
        (names[codes[start]], int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)
    ]


def _file_of_photos(place_ids: pa.ChunkedArray, photos_per_file: int) -> npt.NDArray[np.int64]:
    """Number of the file of each photo of a domain; photos of one place stay together.

    Places are spread evenly, by a hash of their id: each file of a large domain is a sample of the whole city.
    """
    runs = _runs(place_ids)
    sizes = np.array([count for _, _, count in runs], dtype=np.int64)
    total = int(sizes.sum())
    num_files = -(-total // photos_per_file)
    digests = [hashlib.sha256(name.encode()).digest() for name, _, _ in runs]
    order = np.array(sorted(range(len(runs)), key=digests.__getitem__), dtype=np.int64)
    before = np.empty(len(runs), dtype=np.int64)
    before[order] = np.cumsum(sizes[order]) - sizes[order]
    return np.repeat(before * num_files // total, sizes)


def _file_name(domain: str) -> str:
    """A domain as a path: cities of other people's tables may hold any character."""
    parts = [quote(part, safe=" +,()") for part in domain.split("/")]
    return "/".join(part.replace(".", "%2E") if not part.strip(".") else part for part in parts)
