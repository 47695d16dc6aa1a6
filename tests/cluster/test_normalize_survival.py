"""Killed drivers and workers, a full disk, other orders and numbers of workers: the output is the same to the byte."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_town import (
    assert_nothing_is_half_readable,
    config_of,
    digests,
    draw_town,
    kill_after,
    start_job,
)

from placeray import storage
from placeray.cluster.normalizing import normalize
from placeray.datasets.reading import list_domains
from placeray.errors import PlacerayError, StorageError

MOMENTS = random.Random(20260).sample(range(1, 31), 10)  # numbers of files written before the kill


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("town")
    draw_town(root / "raw")
    return root


@pytest.fixture(scope="module")
def undisturbed(ray_session: Any, town: Path) -> dict[str, str]:
    report = normalize(config_of(str(town / "raw")), str(town / "undisturbed"), num_cpus=0.5)
    assert (report.total("read"), report.total("rejected"), report.total("places")) == (92, 2, 16)
    found = digests(str(town / "undisturbed"))
    assert len(found) > max(MOMENTS)
    assert not [path for path in found if "plan" in path or ".tmp-" in path]
    return found


def run_again(town: Path, output: str) -> None:
    normalize(config_of(str(town / "raw")), output, num_cpus=0.5)


def kill_the_driver(town: Path, tmp_path: Path, moment: int) -> str:
    output = str(tmp_path / f"driver-{moment}")
    killed = kill_after(start_job(tmp_path, str(town / "raw"), output), output, moment)
    assert killed, "the job ended before the kill"
    assert_nothing_is_half_readable(output)
    if not storage.has_manifest(output):
        with pytest.raises(StorageError, match="not finished"):
            list_domains(output)
    return output


@pytest.mark.parametrize("moment", [MOMENTS[0], MOMENTS[1]])
def test_a_killed_driver(town: Path, tmp_path: Path, undisturbed: dict[str, str], moment: int) -> None:
    output = kill_the_driver(town, tmp_path, moment)
    run_again(town, output)
    assert digests(output) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_killed_at_ten_moments(
    town: Path, tmp_path: Path, undisturbed: dict[str, str], moment: int
) -> None:
    test_a_killed_driver(town, tmp_path, undisturbed, moment)


def kill_a_worker(output: str, moment: int, killed: list[int]) -> None:
    """Wait for so many files, then SIGKILL one of the actors that write."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(storage.file_sizes(output)) >= moment:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::MapWorker"):
                    os.kill(process.pid, 9)
                    killed.append(process.pid)
                    return
        time.sleep(0.003)


def check_killed_worker(town: Path, tmp_path: Path, undisturbed: dict[str, str], moment: int) -> None:
    """The job itself goes on; were it to stop, running it again would have to finish it."""
    output, killed = str(tmp_path / f"worker-{moment}"), list[int]()
    watcher = threading.Thread(target=kill_a_worker, args=(output, moment, killed))
    watcher.start()
    try:
        run_again(town, output)
    except PlacerayError:
        assert_nothing_is_half_readable(output)
        run_again(town, output)
    watcher.join()
    assert killed
    assert digests(output) == undisturbed


def test_a_killed_worker(town: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    check_killed_worker(town, tmp_path, undisturbed, 5)


@pytest.mark.slow
@pytest.mark.parametrize("moment", random.Random(7).sample(range(3, 26), 10))
def test_a_worker_killed_at_ten_moments(
    town: Path, tmp_path: Path, undisturbed: dict[str, str], moment: int
) -> None:
    check_killed_worker(town, tmp_path, undisturbed, moment)


def test_one_worker_and_shuffled_listings(
    town: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = storage.walk_files

    def shuffled(root: str) -> Iterator[list[str]]:
        names = [name for folder in walk(root) for name in folder]
        random.Random(1).shuffle(names)
        yield from ([name] for name in names)

    monkeypatch.setattr(storage, "walk_files", shuffled)
    normalize(config_of(str(town / "raw")), str(tmp_path / "out"), num_workers=1, num_cpus=1.0)
    assert digests(str(tmp_path / "out")) == undisturbed


def test_a_full_disk_loses_nothing(town: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        output = str(disk / "out")
        with pytest.raises(PlacerayError, match=r"No space left on device.*[Rr]un the same job again"):
            run_again(town, output)
        assert_nothing_is_half_readable(output)
        assert not storage.has_manifest(output)
        assert not [path for path in storage.file_sizes(output) if ".tmp-" in path]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run_again(town, output)
        assert digests(output) == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
