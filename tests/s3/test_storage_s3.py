"""The storage functions against a real S3 server over HTTP on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pyarrow as pa
import pytest

from placeray import storage
from placeray.errors import StorageError

pytest.importorskip("s3fs")
pytest.importorskip("moto")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A new bucket on a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _wait_for(endpoint, server)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/placeray", method="PUT"), timeout=10)
        yield "s3://placeray"
    server.terminate()
    server.wait(10)


def _wait_for(endpoint: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(150):
        assert server.poll() is None, "the S3 server ended at once"
        try:
            urllib.request.urlopen(endpoint, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no S3 server at {endpoint}")


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
