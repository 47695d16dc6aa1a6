"""Normalized data sets of a few rows, written by hand through the contracts."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from placeray import contracts, storage
from placeray.datasets.writing import write_parquet

WriteSet = Callable[..., Path]


def jpeg(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (seed * 37 % 256, seed * 91 % 256, 120)).save(sink, "JPEG")
    return sink.getvalue()


def photo(number: int, **values: Any) -> dict[str, Any]:
    """A row of images/v1."""
    row: dict[str, Any] = dict.fromkeys(contracts.table_schema("images/v1").names)
    defaults = {
        "image_id": f"{number * 2654435761 % 2**128:032x}",
        "dataset": "set",
        "split": "train",
        "role": "train",
        "source_uri": f"/raw/{number}.jpg",
    }
    return row | defaults | values


@pytest.fixture
def make_photo() -> Callable[..., dict[str, Any]]:
    return photo


@pytest.fixture
def write_set(tmp_path: Path) -> WriteSet:
    """Write rows of images/v1 as a normalized data set of small files.

    Training rows with a place_id become places whose photos carry bytes; evaluation rows carry theirs.
    """

    def write(
        name: str,
        rows: list[dict[str, Any]],
        rules: dict[str, Any] | None = None,
        rejects: list[tuple[str, str, str, str]] | None = None,
        rows_per_file: int = 7,
    ) -> Path:
        root = tmp_path / name
        for number, row in enumerate(rows):
            if row["split"] != "train" and row["image"] is None:
                row["image"] = jpeg(number)
        images = []
        for start in range(0, len(rows), rows_per_file):
            table = _table("images/v1", rows[start : start + rows_per_file])
            images.append(write_parquet(f"{root}/images", f"{start:04d}.parquet", table))
        places = _place_rows(rows)
        files = {
            "images": images,
            "places": [
                write_parquet(f"{root}/places", f"{number}.parquet", _table("places/v1", [place]))
                for number, place in enumerate(places)
            ],
            "rejects": [],
        }
        if rejects:
            names = ("dataset", "source_uri", "reason", "detail")
            refused = [
                {"image_id": str(number)} | dict(zip(names, row)) for number, row in enumerate(rejects)
            ]
            files["rejects"] = [write_parquet(f"{root}/rejects", "r.parquet", _table("rejects/v1", refused))]
        for folder, written in files.items():
            manifest = contracts.table_manifest(f"{folder}/v1", written, made_by={})
            storage.commit_manifest(f"{root}/{folder}", manifest)
        document = {
            "contract": "normalized/v1",
            "counts": _counts(rows, places, rejects or []),
            "sources": [{}],
            "positive_rules": rules or {},
        }
        contracts.validate_document(document, "normalized/v1")
        storage.commit_manifest(str(root), document)
        return root

    return write


def _table(contract: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=contracts.table_schema(contract))


def _place_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    places: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["place_id"] is not None:
            places.setdefault(row["place_id"], []).append(row)
    inner = [field.name for field in contracts.table_schema("places/v1").field("photos").type.value_type]
    return [
        {
            "place_id": name,
            "dataset": photos[0]["dataset"],
            "city": photos[0]["city"] or "town",
            "domain": f"{photos[0]['dataset']}/{photos[0]['city'] or 'town'}",
            "lat": photos[0]["lat"],
            "lon": photos[0]["lon"],
            "num_photos": len(photos),
            "photos": [
                {key: row.get(key) for key in inner} | {"sha256": "0" * 64, "image": jpeg(at)}
                for at, row in enumerate(photos)
            ],
        }
        for name, photos in sorted(places.items())
    ]


def _counts(
    rows: list[dict[str, Any]], places: list[dict[str, Any]], rejects: list[tuple[str, str, str, str]]
) -> dict[str, Any]:
    keys = sorted({(row["dataset"], row["split"]) for row in rows})
    counts = {}
    for dataset, split in keys:
        mine = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
        reasons: dict[str, int] = {}
        for refused in rejects:
            if refused[0] == dataset and split == keys[-1][1]:
                reasons[refused[2]] = reasons.get(refused[2], 0) + 1
        placed = sum(row["place_id"] is not None for row in mine)
        counts[f"{dataset}/{split}"] = {
            "read": len(mine) + sum(reasons.values()),
            "kept": len(mine),
            "rejected": reasons,
            "in_places": placed,
            "photos_without_place": len(mine) - placed if split == "train" else 0,
            "places": sum(place["dataset"] == dataset for place in places) if split == "train" else 0,
            "places_dropped_small": 0,
        }
    return counts
