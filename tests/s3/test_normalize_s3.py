"""The normalize job from s3:// to s3://: through a server that fails now and then, and through an outage."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import Proxy
from small_town import (
    assert_nothing_is_half_readable,
    config_of,
    digests,
    draw_town,
    start_job,
)

pytest.importorskip("ray")

from placeray import storage
from placeray.cluster.normalizing import normalize
from placeray.datasets.reading import list_domains
from placeray.errors import StorageError


@pytest.fixture(scope="module")
def raw(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("town")
    draw_town(folder)
    for path in storage.file_sizes(str(folder)):
        storage.write_bytes(f"{bucket}/raw/{path}", (folder / path).read_bytes())
    return f"{bucket}/raw"


@pytest.fixture(scope="module")
def shaky(bucket: str, raw: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output of a job whose every fifth request fails, in four ways: it repeats them and says nothing."""
    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"])
    ways: list[int | str] = [500, "reset", 503, "cut"]
    proxy.fault = lambda number, method, path: ways[number // 5 % 4] if number % 5 == 0 else None
    folder = tmp_path_factory.mktemp("job")
    job = start_job(folder, raw, f"{bucket}/shaky", {"AWS_ENDPOINT_URL": proxy.endpoint})
    out, error = job.communicate(timeout=240)
    proxy.stop()
    assert job.returncode == 0, error
    assert proxy.faults > 50
    assert "read 92, kept 90, rejected 2; wrote 16 places" in out
    return digests(f"{bucket}/shaky")


def test_a_server_that_fails_now_and_then(bucket: str, raw: str, shaky: dict[str, str]) -> None:
    """Every photo that is kept has the bytes of its source."""
    domains = list_domains(f"{bucket}/shaky")
    assert sum(len(domain.place_ids) for domain in domains) == 16
    places = [place for domain in domains for place in storage.read_table(domain.file).to_pylist()]
    photos = [photo for place in places for photo in place["photos"]]
    assert len(photos) == 78
    assert all(storage.read_bytes(photo["source_uri"]) == photo["image"] for photo in photos)
    assert not [path for path in shaky if "plan" in path]


def test_an_outage_ends_the_job_with_one_sentence_and_loses_nothing(
    bucket: str, raw: str, shaky: dict[str, str], proxy: Any, tmp_path: Path
) -> None:
    reached = threading.Event()
    written: list[str] = []

    def outage(number: int, method: str, path: str) -> str | None:
        if method == "PUT" and "/interrupted/" in path:
            written.append(path)
            if len(written) > 15:
                reached.set()
        return "reset" if reached.is_set() else None

    proxy.fault = outage
    job = start_job(tmp_path, raw, f"{bucket}/interrupted", {"AWS_MAX_ATTEMPTS": "2"})
    assert reached.wait(200)
    proxy.stop()
    _, error = job.communicate(timeout=240)
    last = error.strip().splitlines()[-1]
    assert job.returncode == 1
    assert last.startswith("normalize.py: ")
    assert "the object store does not answer" in last
    assert "run the same job again" in last
    proxy.fault = lambda number, method, path: None
    proxy.start()
    assert_nothing_is_half_readable(f"{bucket}/interrupted")
    assert not storage.has_manifest(f"{bucket}/interrupted")
    job = start_job(tmp_path, raw, f"{bucket}/interrupted")
    _, error = job.communicate(timeout=240)
    assert job.returncode == 0, error
    assert digests(f"{bucket}/interrupted") == shaky


def test_an_unreachable_store_is_one_sentence(
    bucket: str, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.stop()
    with pytest.raises(StorageError, match=r"does not answer .*; check AWS_ENDPOINT_URL and the network$"):
        normalize(config_of(f"{bucket}/raw"), f"{bucket}/nowhere")


def test_a_bucket_that_is_not_there(bucket: str, raw: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/out/config\.json: there is no such bucket"):
        normalize(config_of(raw), "s3://no-such-bucket/out")
    with pytest.raises(StorageError, match="no such folder: s3://no-such-bucket/raw/images/train/database"):
        normalize(config_of("s3://no-such-bucket/raw"), str(tmp_path / "out"))


def test_refused_access_is_one_sentence(bucket: str, proxy: Any) -> None:
    proxy.fault = lambda number, method, path: 403
    with pytest.raises(
        StorageError, match=r"refuses access .*; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    ):
        normalize(config_of(f"{bucket}/raw"), f"{bucket}/refused")


def test_absent_keys_are_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        normalize(config_of(f"{bucket}/raw"), f"{bucket}/refused")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "AWS_ENDPOINT_URL" in os.environ
