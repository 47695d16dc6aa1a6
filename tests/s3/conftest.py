"""A real S3 server over HTTP on loopback, and a proxy before it."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from s3_proxy import Proxy, free_port

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A new bucket on a server of its own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        _wait_for(endpoint, server)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/placeray", method="PUT"), timeout=10)
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://placeray"
        s3fs.S3FileSystem.clear_instance_cache()
    server.terminate()
    server.wait(10)


def _wait_for(endpoint: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 server ended at once"
        try:
            urllib.request.urlopen(endpoint, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no S3 server at {endpoint}")


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that AWS_ENDPOINT_URL points to."""
    made = Proxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()  # clients remember the endpoint they were made with
    yield made
    made.stop()
    s3fs.S3FileSystem.clear_instance_cache()
