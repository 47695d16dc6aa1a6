"""What a user gets wrong is one clear sentence: what, where, what to do. No photo is read for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placeray.datasets import list_source
from placeray.datasets.planning import NormalizeConfig, plan_source
from placeray.errors import DataError, PlacerayError, StorageError

LATIN = "path,lat,lon\nr\xe5dhus.jpg,55.7,13.2\n".encode("latin-1")


def plan(root: Path, **source: Any) -> Any:
    values = {"name": "mine", "root": str(root), **source}
    config = NormalizeConfig.model_validate({"sources": [values]})
    return plan_source(config.sources[0], config)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("gsv_cities", {}, "mine/train: no folder Dataframes in {root}"),
        ("sf_xl", {}, "no such folder: {root}/processed/train"),
        ("pitts30k_mat", {}, "no such file: {root}/datasets/mine_train.mat"),
        ("at_layout", {}, "no such folder: {root}/images/test/database"),
        ("msls", {}, "mine/train: no folder of any city of the split in {root}/train_val"),
        ("photo_table", {}, "no such file: {root}/manifest.csv"),
        ("photo_table", {"table": "list.parquet"}, "no such file: {root}/list.parquet"),
        ("photo_folder", {}, "no such folder: {root}"),
    ],
)
def test_a_root_that_is_not_there(tmp_path: Path, kind: str, settings: dict[str, Any], sentence: str) -> None:
    root = tmp_path / "none"
    with pytest.raises(PlacerayError) as raised:
        plan(root, kind=kind, **settings)
    assert str(raised.value) == sentence.format(root=root)


@pytest.mark.parametrize(
    ("kind", "files", "sentence"),
    [
        ("gsv_cities", ["Dataframes/notes.txt"], "no CSV for any city"),
        ("sf_xl", ["processed/train/notes.txt"], "no photo below"),
        ("sf_xl", ["processed/train_images_paths.txt"], "no photo in"),
        ("at_layout", ["images/test/database/x.txt", "images/test/queries/x.txt"], "no photo below"),
        ("photo_folder", ["notes.txt"], r"no photo \(\.jpg, \.jpeg, \.png\)"),
        ("photo_table", ["manifest.csv"], "is empty: it has no header line"),
    ],
)
def test_an_empty_set(tmp_path: Path, write: Any, kind: str, files: list[str], sentence: str) -> None:
    for file in files:
        write(file, "")
    with pytest.raises(DataError, match=sentence):
        plan(tmp_path, kind=kind)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (LATIN, "cannot be read as CSV: .*invalid UTF8"),
        ("path,lat,lon\na.jpg,1,2\n".encode("utf-16"), "is not UTF-8 text"),
        (b"path;lat;lon\na.jpg;1;2\n", "has no column path, lat, lon; its columns are path;lat;lon"),
        (b"path,latitude\na.jpg,1\n", "has no column lat, lon; its columns are path, latitude"),
        (b"path,lat,lon,lat\na.jpg,1,2,3\n", "has two columns of one name"),
        (b"path,lat,lon\n", "has no rows"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, write: Any, data: bytes, sentence: str) -> None:
    write("manifest.csv", data)
    with pytest.raises(DataError, match=sentence):
        plan(tmp_path, kind="photo_table", columns={"lat": "lat", "lon": "lon"})


def test_parquet_tables_that_cannot_be_used(tmp_path: Path, write: Any) -> None:
    settings = {"kind": "photo_table", "table": "list.parquet", "columns": {"lat": "lat", "lon": "lon"}}
    write("list.parquet", b"no parquet")
    with pytest.raises(StorageError, match=r"list\.parquet cannot be read as parquet"):
        plan(tmp_path, **settings)
    pq.write_table(pa.table({"path": ["a.jpg"], "lat": [1.0]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="has no column lon; its columns are path, lat"):
        plan(tmp_path, **settings)
    pq.write_table(pa.table({"path": ["a.jpg"], "lat": [[1.0]], "lon": [1.0]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"column lat holds list<.*>, expected text, numbers or times"):
        plan(tmp_path, **settings)


def test_a_list_in_another_encoding(tmp_path: Path, write: Any) -> None:
    write("processed/train_images_paths.txt", "37.70/@1@2@r\xe5d.jpg\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"processed/train_images_paths.txt is not UTF-8 text$"):
        list_source(
            NormalizeConfig.model_validate({"sources": [{"kind": "sf_xl", "root": str(tmp_path)}]}).sources[0]
        )


def test_a_folder_that_may_not_be_read(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write("images/test/database/@1@2@.jpg")

    def refuse(*_: Any, **options: Any) -> Any:
        options["onerror"](PermissionError(13, "Permission denied"))

    monkeypatch.setattr(os, "walk", refuse)  # root may read everything, so the refusal is acted
    with pytest.raises(StorageError, match="images/test/database: Permission denied"):
        plan(tmp_path, kind="at_layout")
