"""What all tests share: quiet Ray settings, a real local Ray, and where the real photos are."""

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

# Before anything imports ray. A short health interval keeps a `report` in training from costing two seconds.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    OMP_NUM_THREADS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
)
os.environ.pop("RAY_ADDRESS", None)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds `platform/`, `jobs/` and `schemas/`."""
    return REPOSITORY


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A real local Ray of four logical CPUs, started once for the whole run."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY / "platform")}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photo sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("PLACERAY_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real photos at {folder}; set PLACERAY_REAL_DATA to the folder that holds gardens_point/"
        )
    return folder


class RunJob(Protocol):
    """Run `jobs/<name>.py --config jobs/configs/<name>/<config>.yaml --set ...` and return what it printed."""

    def __call__(self, name: str, config: str, *values: str) -> str: ...


@pytest.fixture
def run_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> RunJob:
    """Job scripts in this process, on the Ray of the session; their relative paths count from a new folder."""
    request.getfixturevalue("ray_session")
    monkeypatch.setenv("PLACERAY_ROOT", str(tmp_path))

    def run(name: str, config: str, *values: str) -> str:
        arguments = ["--config", str(REPOSITORY / "jobs" / "configs" / name / f"{config}.yaml")]
        arguments += [part for value in values for part in ("--set", value)]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / "jobs" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run
