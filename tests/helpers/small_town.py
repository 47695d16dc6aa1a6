"""A small raw set with every kind of part, and what the tests of interrupted jobs share."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image

from placeray import storage
from placeray.datasets.planning import NormalizeConfig

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "@{east:010.2f}@{north:010.2f}@17@T@@@p{number}@00@{heading}@@@@2016@@.jpg"


def draw_town(root: Path, places: int = 16, photos: int = 5) -> None:
    """Places 45 m apart for training, two of them with a broken photo, and a test set of three places."""
    for number in range(places * photos):
        name = NAME.format(east=585_000 + 45 * (number // photos), north=4_477_000, number=number, heading=10)
        data = b"not an image" if number in (7, 23) else _jpeg(number)
        _write(root / "images/train" / ("queries" if number % photos == 0 else "database") / name, data)
    for number in range(12):
        name = NAME.format(east=586_000 + 45 * (number // 4), north=4_478_000, number=number, heading=10)
        _write(
            root / "images/test" / ("queries" if number % 4 == 0 else "database") / name, _jpeg(1000 + number)
        )


def config_values(root: str) -> dict[str, Any]:
    """A dozen parts."""
    source = {"kind": "at_layout", "name": "town", "root": root}
    return {
        "sources": [{**source, "split": "train"}, {**source, "split": "test"}],
        "photos_per_file": 10,
        "max_reject_share": 0.5,
    }


def config_of(root: str) -> NormalizeConfig:
    return NormalizeConfig.model_validate(config_values(root))


def start_job(
    folder: Path, root: str, output: str, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """`jobs/normalize.py` in a process of its own, with a Ray of its own."""
    file = folder / f"{output.rsplit('/', 1)[-1]}.yaml"
    job = {"output": output, "normalize": config_values(root), "num_workers": 2, "cpus_per_worker": 0.5}
    file.write_text(yaml.safe_dump(job))
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs/normalize.py"), "--config", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "platform"), **(environment or {})},
    )  # fmt: skip


def kill_after(job: "subprocess.Popen[str]", output: str, num_files: int) -> bool:
    """SIGKILL a job, then what is left of its Ray, once it has written so many files; False when it ended before."""
    while len(storage.file_sizes(output)) < num_files:
        if job.poll() is not None:
            return False
        time.sleep(0.003)
    children = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.communicate()
    _, alive = psutil.wait_procs(children, timeout=3)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive)
    return True


def digests(output: str) -> dict[str, str]:
    """Hashes of everything below an output."""
    return {
        path: hashlib.sha256(storage.read_bytes(storage.join(output, path))).hexdigest()
        for path in storage.file_sizes(output)
    }


def assert_nothing_is_half_readable(output: str) -> None:
    """Every manifest that is there names only files that are there, whole."""
    for path, size in storage.file_sizes(output).items():
        if path.endswith("manifest.json") and size:
            folder = storage.join(output, path.removesuffix("manifest.json"))
            for file in json.loads(storage.read_bytes(storage.join(output, path))).get("files", []):
                data = storage.read_bytes(storage.join(folder, file["path"]))
                assert hashlib.sha256(data).hexdigest() == file["sha256"]
    if storage.has_manifest(output):
        assert {f"{name}/manifest.json" for name in ("images", "places", "rejects")} <= storage.file_sizes(
            output
        ).keys()


def _jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
