"""The commands of the README: `ray start --head`, then `ray job submit` of the training job, with the real command."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

RAY = str(Path(sys.executable).with_name("ray"))
TINY = [
    "train.epochs=1", "train.places_per_batch=4", "train.validation.sets=[]", "train.precision=fp32",
    "tracking.enabled=false", "register_as=null",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data below a folder of its own; the job finds it through PLACERAY_ROOT."""
    return os.environ | {
        "PLACERAY_ROOT": str(tmp_path_factory.mktemp("root")),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as an activated environment has it
    }


@pytest.fixture(scope="module")
def head(environment: dict[str, str], repository: Path) -> Iterator[str]:
    """A head node with the job server; ended by its process, never by name."""
    dashboard = free_port()
    command = [
        RAY, "start", "--head", "--block", "--num-cpus", "4", "--port", str(free_port()),
        "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(free_port()),
        "--object-store-memory", str(256 * 1024**2),
    ]  # fmt: skip
    server = subprocess.Popen(
        command, env=environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{dashboard}"
    for _ in range(240):
        assert server.poll() is None, "ray start ended at once"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
            break
        time.sleep(0.5)
    else:
        raise AssertionError(f"no job server at {address}")
    yield address
    everything = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    server.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(everything, timeout=20)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait(10)


def submit_when_ready(arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    """The job server answers a little before the agent that starts jobs is there; it says so, then try again."""
    for _ in range(20):
        done = subprocess.run(
            arguments, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        if "No available agent" not in done.stderr:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run(arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_training_is_submitted_as_the_readme_says(
    head: str, environment: dict[str, str], repository: Path
) -> None:
    python = sys.executable
    tiny_city = ["--config", "jobs/configs/draw_city/tiny.yaml", "--set", "output=runs/toy/city"]
    run([python, "jobs/draw_city.py", *tiny_city], environment, repository)
    run([python, "jobs/normalize.py", "--config", "jobs/configs/normalize/toy.yaml"], environment, repository)

    settings = {
        "PYTHONPATH": "platform",
        "PLACERAY_ROOT": environment["PLACERAY_ROOT"],
        "RAY_AUTH_MODE": "disabled",
    }
    submit = [
        RAY, "job", "submit", "--address", head, "--working-dir", ".",
        "--runtime-env-json", json.dumps({"env_vars": settings, "excludes": ["tests", "docs"]}),
        "--", "python", "jobs/train.py", "--config", "jobs/configs/train/toy.yaml",
    ]  # fmt: skip
    printed = submit_when_ready(
        [*submit, *(part for value in TINY for part in ("--set", value))], environment, repository
    )

    assert "succeeded" in printed
    card = Path(environment["PLACERAY_ROOT"]) / "runs/toy/checkpoints/float/card.json"
    assert json.loads(card.read_text())["recipe"]["name"] == "float"
