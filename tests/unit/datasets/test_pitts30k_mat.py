"""The .mat form of Pitts30k: ten fields, transposed positions, queries in a folder that their names do not
have.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from placeray.datasets import list_source
from placeray.datasets.pitts30k_mat import PittsMat
from placeray.errors import DataError

DATABASE = ["000/000829_pitch1_yaw1.jpg", "000/000829_pitch2_yaw12.jpg"]
QUERIES = ["000/000001_pitch1_yaw4.jpg"]


def mat_file(database: list[str], queries: list[str], utm_database: Any, utm_queries: Any) -> bytes:
    def cells(names: list[str]) -> Any:
        column = np.empty((len(names), 1), dtype=object)
        column[:, 0] = names
        return column

    fields = {
        "whichSet": "train",
        "dbImageFns": cells(database),
        "utmDb": utm_database,
        "qImageFns": cells(queries),
        "utmQ": utm_queries,
        "numImages": float(len(database)),
        "numQueries": float(len(queries)),
        "posDistThr": 25.0,
        "posDistSqThr": 625.0,
        "nonTrivPosDistSqThr": 100.0,
    }
    sink = io.BytesIO()
    scipy.io.savemat(sink, {"dbStruct": fields})
    return sink.getvalue()


@pytest.fixture
def tree(write: Any) -> Any:
    utm = np.array([[585000.5, 585100.5], [4477000.5, 4477100.5]])
    for split in ("train", "val"):
        write(
            f"datasets/pitts30k_{split}.mat",
            mat_file(DATABASE, QUERIES, utm, np.array([[585050.0], [4477050.0]])),
        )
    for name in DATABASE:
        write(name)
    return write(f"queries_real/{QUERIES[0]}").parents[2]


def test_positions_headings_and_query_folder(tree: Path, check: Any) -> None:
    (first, second, query), reasons = check(
        list_source(PittsMat(kind="pitts30k_mat", root=str(tree), split="val"))
    )
    assert reasons == {}
    assert [row["path"] for row in (first, second, query)] == [*DATABASE, f"queries_real/{QUERIES[0]}"]
    assert (second["utm_east"], second["utm_north"], second["utm_zone"]) == (585100.5, 4477100.5, "17T")
    assert [row["heading_deg"] for row in (first, second, query)] == [0.0, 330.0, 90.0]
    assert (first["panorama_id"], first["role"], query["role"]) == ("000829", "database", "query")
    assert (query["lat"], query["lon"]) == (pytest.approx(40.44, abs=0.01), pytest.approx(-80.0, abs=0.01))


def test_training_merges_database_and_queries(tree: Path, check: Any) -> None:
    rows, _ = check(list_source(PittsMat(kind="pitts30k_mat", root=str(tree))))
    assert {(row["role"], row["split"], row["city"]) for row in rows} == {("train", "train", "pitts30k")}
    assert len(rows) == 3


def test_missing_files_and_foreign_names(tree: Path, write: Any, check: Any) -> None:
    names = ["000/000829_pitch1_yaw1.jpg", "006/009999_pitch1_yaw1.jpg", "000/holiday.jpg"]
    write("000/holiday.jpg")
    utm = np.array([[585000.0] * 3, [4477000.0] * 3])
    write("datasets/pitts30k_train.mat", mat_file(names, [], utm, np.empty((2, 0))))
    rows, reasons = check(list_source(PittsMat(kind="pitts30k_mat", root=str(tree))))
    assert [row["path"] for row in rows] == names[:1]
    assert reasons == {"009999_pitch1_yaw1.jpg": "missing_file", "holiday.jpg": "bad_name"}


def test_an_empty_list_as_matlab_writes_it(tree: Path, write: Any, check: Any) -> None:
    utm = np.array([[585000.5, 585100.5], [4477000.5, 4477100.5]])
    empty = {
        "dbStruct": scipy.io.loadmat(io.BytesIO(mat_file(DATABASE, [], utm, np.zeros((0, 0)))))["dbStruct"]
    }
    empty["dbStruct"]["qImageFns"][0, 0] = np.zeros((0, 0))
    sink = io.BytesIO()
    scipy.io.savemat(sink, empty)
    write("datasets/pitts30k_val.mat", sink.getvalue())
    rows, reasons = check(list_source(PittsMat(kind="pitts30k_mat", root=str(tree), split="val")))
    assert [row["path"] for row in rows] == DATABASE
    assert reasons == {}


def test_other_folder_names(tmp_path: Path, write: Any, check: Any) -> None:
    utm = np.array([[585000.0], [4477000.0]])
    write("pitts30k_test.mat", mat_file(DATABASE[:1], QUERIES, utm, utm))
    write(f"images/{DATABASE[0]}")
    write(f"queries/{QUERIES[0]}")
    config = PittsMat(
        kind="pitts30k_mat", root=str(tmp_path), split="test", mat_file="{name}_{split}.mat",
        database_folder="images", query_folder="queries",
    )  # fmt: skip
    rows, reasons = check(list_source(config))
    assert [row["path"] for row in rows] == [f"images/{DATABASE[0]}", f"queries/{QUERIES[0]}"]
    assert reasons == {}


def test_files_that_are_no_dbstruct(tree: Path, write: Any) -> None:
    config = PittsMat(kind="pitts30k_mat", root=str(tree))
    write(
        "datasets/pitts30k_train.mat", mat_file(DATABASE, QUERIES, np.zeros((2, 2)).T[:1], np.zeros((2, 1)))
    )
    with pytest.raises(DataError, match=r"2 database names but positions of shape \(1, 2\)"):
        list_source(config)
    write("datasets/pitts30k_train.mat", b"not a Matlab file at all")
    with pytest.raises(DataError, match="cannot be read as a Matlab file"):
        list_source(config)
    sink = io.BytesIO()
    scipy.io.savemat(sink, {"other": 1.0})
    write("datasets/pitts30k_train.mat", sink.getvalue())
    with pytest.raises(DataError, match="holds no dbStruct"):
        list_source(config)
