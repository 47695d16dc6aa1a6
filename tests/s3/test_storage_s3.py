"""The storage functions against a real S3 server over HTTP on loopback."""

import os
import urllib.request
from typing import Any

import pyarrow as pa
import pytest

from placeray import storage
from placeray.errors import StorageError


def test_files_and_tables_round_trip(bucket: str) -> None:
    root = f"{bucket}/set"
    table = pa.table({"x": [1, 2, 3]})
    storage.write_table(f"{root}/part.parquet", table)
    storage.write_text(f"{root}/deep/er.txt", "ä")
    assert storage.read_table(f"{root}/part.parquet", ["x"]).equals(table)
    assert storage.read_text(f"{root}/deep/er.txt") == "ä"
    assert storage.list_files(root) == [f"{root}/deep/er.txt", f"{root}/part.parquet"]
    assert storage.size(f"{root}/deep/er.txt") == 2


def test_a_listing_sees_what_another_client_wrote(bucket: str) -> None:
    root = f"{bucket}/seen"
    storage.write_text(f"{root}/a", "1")
    assert storage.list_files(root) == [f"{root}/a"]
    urllib.request.urlopen(
        urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/placeray/seen/b", data=b"2", method="PUT"),
        timeout=10,
    )
    assert storage.list_files(root) == [f"{root}/a", f"{root}/b"]


def test_manifest_commits_the_folder(bucket: str) -> None:
    root = f"{bucket}/committed"
    storage.write_text(f"{root}/data", "x")
    with pytest.raises(StorageError, match=r"has no manifest\.json"):
        storage.read_manifest(root)
    storage.commit_manifest(root, {"rows": 1})
    assert storage.read_manifest(root) == {"rows": 1}
    storage.remove(f"{root}/data")
    assert not storage.exists(f"{root}/data")


def test_missing_object_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=f"no such file: {bucket}/none"):
        storage.read_bytes(f"{bucket}/none")


def test_pieces_of_an_object(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/pieces", b"0123456789")
    assert storage.read_bytes(f"{bucket}/pieces", 2, 5) == b"234"
    assert storage.read_bytes(f"{bucket}/pieces") == b"0123456789"
    assert storage.file_sizes(f"{bucket}/none") == {}


def test_a_large_object_is_written_in_pieces_or_not_at_all(bucket: str) -> None:
    piece = os.urandom(9 << 20)
    with storage.FileWriter(f"{bucket}/large/whole") as file:
        for _ in range(4):
            file.write(piece)
    assert storage.read_bytes(f"{bucket}/large/whole") == piece * 4
    broken = storage.FileWriter(f"{bucket}/large/broken")
    for _ in range(4):
        broken.write(piece)
    broken.__exit__(RuntimeError, None, None)
    assert storage.file_sizes(f"{bucket}/large") == {"whole": 36 << 20}


@pytest.mark.parametrize("fault", [500, 503, "reset", "cut"])
def test_passing_failures_are_repeated(bucket: str, proxy: Any, fault: Any) -> None:
    storage.write_bytes(f"{bucket}/passing/a", b"a" * 1000)
    proxy.fault = lambda number, method, path: fault if number % 2 else None
    proxy.requests = 0
    assert storage.read_bytes(f"{bucket}/passing/a") == b"a" * 1000
    storage.write_bytes(f"{bucket}/passing/b", b"b" * 1000)
    assert storage.file_sizes(f"{bucket}/passing") == {"a": 1000, "b": 1000}
    assert proxy.faults >= 2


def test_what_does_not_pass_is_one_sentence(bucket: str, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: there is no such bucket"):
        storage.write_bytes("s3://no-such-bucket/x", b"1")
    proxy.fault = lambda number, method, path: 500
    with pytest.raises(StorageError, match=r"s3://placeray/x: the object store failed .*try again"):
        storage.write_bytes(f"{bucket}/x", b"1")
    proxy.stop()
    for call in (storage.exists, storage.read_bytes, storage.list_files, storage.size, storage.remove):
        with pytest.raises(
            StorageError, match=r"does not answer \(.*\); check AWS_ENDPOINT_URL and the network$"
        ):
            call(f"{bucket}/x")
