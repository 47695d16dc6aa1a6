"""Training loses a worker, its driver or a machine at a random moment and ends as if nothing had happened.

Moments are drawn by seed. What is compared is the hash of the weights, so every bit of them, and the metrics.
"""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("ray")

from placeray import storage
from placeray.training.loop import Silent
from placeray.training.run import train_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
WAIT_S = 400.0
ONE = {"cpus_per_worker": 0.5, "torch_threads": 1}
TWO = {**ONE, "num_workers": 2}


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("survival_driver", HERE / "survival_driver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(driver: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("survival"))
    driver.write_data(f"{root}/normalized")
    return root


class Job:
    """A driver in a process of its own."""

    def __init__(self, folder: str, name: str, workers: dict[str, Any], **more: Any) -> None:
        self.steps_file = Path(folder) / f"{name}.steps"
        given = {
            "normalized": f"{folder}/normalized", "output": f"{folder}/{name}", "workers": workers,
            "steps": str(self.steps_file), **more,
        }  # fmt: skip
        self._command = [sys.executable, str(HERE / "survival_driver.py"), json.dumps(given)]
        self._log = Path(folder) / f"{name}.log"

    def start(self) -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(HERE.parents[1] / "platform"), os.environ.get("PYTHONPATH", "")])
        with open(self._log, "a") as log:
            return subprocess.Popen(
                self._command, text=True, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip

    def finish(self, process: "subprocess.Popen[str] | None" = None) -> dict[str, Any]:
        process = process or self.start()
        output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, self.log[-3000:]
        return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def steps(self) -> list[int]:
        return [int(line) for line in self.steps_file.read_text().split()] if self.steps_file.exists() else []

    def wait_for_step(self, step: int, process: "subprocess.Popen[str]") -> None:
        deadline = time.monotonic() + WAIT_S
        while max(self.steps, default=0) < step:
            assert process.poll() is None, f"training ended before step {step}: {self.log[-3000:]}"
            assert time.monotonic() < deadline, f"step {step} was not reached: {self.log[-3000:]}"
            time.sleep(0.05)


def moment(seed: int, driver: ModuleType) -> int:
    """A step inside an epoch of the first two thirds of training."""
    last = driver.EPOCHS * driver.STEPS_PER_EPOCH
    steps = [s for s in range(8, 2 * last // 3) if s % driver.STEPS_PER_EPOCH]
    return random.Random(seed).choice(steps)


def check_went_on(job: Job, driver: ModuleType, every: int) -> None:
    """Where the steps do not follow each other, the log says from where training went on, and no more is repeated than
    the steps since the last checkpoint: twice `every`, as a snapshot that was being written does not count yet.

    Steps may be missing before such a point: workers outlive a killed driver for a moment and nobody hears of them.
    """
    resumed = [int(step) for step in re.findall(r"going on after step (\d+)", job.log)]
    assert resumed, "the log does not say that training went on"
    steps = job.steps
    assert steps[0] == 1
    assert steps[-1] == driver.EPOCHS * driver.STEPS_PER_EPOCH
    for before, after in pairwise(steps):
        if after != before + 1:
            assert after - 1 in resumed
            assert before - after + 1 <= 2 * every


@pytest.fixture(scope="module")
def alone(folder: str, driver: ModuleType) -> Any:
    """Undisturbed, without Ray."""
    torch.set_num_threads(1)
    return train_once(driver.make_spec(f"{folder}/normalized", f"{folder}/alone"), Silent())


@pytest.fixture(scope="module")
def pair(folder: str) -> dict[str, Any]:
    """Undisturbed, by two workers."""
    return Job(folder, "pair", TWO).finish()


def kill_a_worker(process: "subprocess.Popen[str]") -> int:
    """`kill -9` of one training worker of this driver."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("RayTrainWorker" in part for part in child.cmdline()[:1]):
                child.kill()
                return child.pid
    raise AssertionError("no training worker found")


@pytest.mark.parametrize("seed", [1, 2])
def test_one_worker_is_killed(folder: str, driver: ModuleType, alone: Any, seed: int) -> None:
    job = Job(folder, f"worker-{seed}", ONE)
    process = job.start()
    job.wait_for_step(moment(seed, driver), process)
    kill_a_worker(process)
    result = job.finish(process)
    assert result["model_id"] == alone.model_id
    assert result["metrics"] == alone.metrics
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)


@pytest.mark.parametrize("seed", [3, 4])
def test_one_of_two_workers_is_killed(
    folder: str, driver: ModuleType, pair: dict[str, Any], seed: int
) -> None:
    job = Job(folder, f"pair-{seed}", TWO)
    process = job.start()
    job.wait_for_step(moment(seed, driver), process)
    kill_a_worker(process)
    assert job.finish(process) == pair
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)


@pytest.mark.parametrize("seed", [5, 6])
def test_the_driver_is_killed_and_the_job_started_again(
    folder: str, driver: ModuleType, alone: Any, seed: int
) -> None:
    job = Job(folder, f"driver-{seed}", ONE)
    process = job.start()
    job.wait_for_step(moment(seed, driver), process)
    process.kill()
    process.wait()
    assert not storage.exists(f"{folder}/driver-{seed}/card.json")
    result = job.finish()
    assert result["model_id"] == alone.model_id
    assert result["metrics"] == alone.metrics
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)


def test_a_machine_is_lost_and_replaced(folder: str, driver: ModuleType, pair: dict[str, Any]) -> None:
    workers = {"num_workers": 2, "cpus_per_worker": 1, "torch_threads": 1, "max_failures": 8}
    job = Job(folder, "replaced", workers, cluster="replaced", at_step=moment(7, driver))
    assert job.finish() == pair
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)


def test_a_machine_is_lost_for_good(folder: str, driver: ModuleType, pair: dict[str, Any]) -> None:
    """One worker goes on alone: its sums round differently, so the figures are compared, not the bits."""
    workers = {
        "num_workers": 2, "min_workers": 1, "cpus_per_worker": 1, "torch_threads": 1, "max_failures": 8
    }  # fmt: skip
    job = Job(folder, "lost", workers, cluster="lost", at_step=moment(8, driver))
    result = job.finish()
    assert result["epochs"] == pair["epochs"]
    assert result["metrics"]["train/loss"] == pytest.approx(pair["metrics"]["train/loss"], rel=0.05)
    recalls = {key for key in pair["metrics"] if "/recall_at_" in key}
    assert recalls
    for key in recalls:
        assert result["metrics"][key] == pytest.approx(pair["metrics"][key], abs=0.13)  # one query of eight
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on an S3 server of its own, over HTTP."""
    pytest.importorskip("moto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(endpoint, timeout=2)
                break
            time.sleep(0.2)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/train", method="PUT"), timeout=30)
        yield "s3://train"
    server.terminate()
    server.wait(10)


def test_data_snapshots_and_checkpoint_in_an_object_store(
    tmp_path: Path, bucket: str, driver: ModuleType, alone: Any
) -> None:
    """A worker and then the driver are killed; what is left in the store is enough."""
    driver.write_data(f"{bucket}/normalized")
    job = Job(str(tmp_path), "s3", ONE, normalized=f"{bucket}/normalized", output=f"{bucket}/out")
    process = job.start()
    job.wait_for_step(moment(9, driver) // 2, process)
    kill_a_worker(process)
    job.wait_for_step(max(job.steps) + 5, process)
    process.kill()
    process.wait()
    result = job.finish()
    assert result["model_id"] == alone.model_id
    assert result["metrics"] == alone.metrics
    check_went_on(job, driver, driver.CHECKPOINT_EVERY)
    left = [file.removeprefix(f"{bucket}/out/") for file in storage.list_files(f"{bucket}/out")]
    assert left == ["card.json", "model.pt"], "the snapshots are cleared when training is done"
