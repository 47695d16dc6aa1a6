"""A training run carries its configuration, the manifest of its data, curves and system metrics."""

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from placeray.jobspecs.tracking import TrackingConfig
from placeray.tracking.runs import tracked_run
from placeray.tracking.training_record import curves, record_training, system_metrics

mlflow = pytest.importorskip("mlflow")

HISTORY = [
    {"epoch": 1.0, "train/loss": 1.5, "train/lr": 4e-4, "train/pairs_per_step": 90.0, "train/photos_per_s": 50.0},
    {"epoch": 2.0, "train/loss": 1.1, "train/lr": 2e-4, "train/pairs_per_step": 70.0, "train/photos_per_s": 60.0,
     "msls-val/float/recall_at_1": 0.5, "msls-val/float/recall_at_5": 0.75},
]  # fmt: skip


def test_files_and_system_metrics_are_found_with_the_run(tmp_path: Path) -> None:
    store = TrackingConfig(
        uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=f"{tmp_path}/artifacts", experiment="record"
    )
    manifest: dict[str, Any] = {"contract": "places/v1", "fingerprint": "abc"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    config = {"train": {"epochs": 2}, "output": "here"}
    client = mlflow.MlflowClient(store.uri)
    with tracked_run("train", config, store) as run, system_metrics(run, sampling_interval_s=0.1):
        record_training(run, config, str(tmp_path / "manifest.json"), HISTORY)
        deadline = time.monotonic() + 60
        while not _system_metrics(client, run.id) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= _system_metrics(
        client, run.id
    )
    assert {file.path for file in client.list_artifacts(run.id)} == {
        "config.yaml", "data_manifest.json", "curves.png"
    }  # fmt: skip
    kept = Path(client.download_artifacts(run.id, "", str(tmp_path)))
    assert yaml.safe_load((kept / "config.yaml").read_text()) == config
    assert json.loads((kept / "data_manifest.json").read_text()) == manifest
    assert client.get_run(run.id).info.status == "FINISHED"


def _system_metrics(client: Any, run_id: str | None) -> set[str]:
    return {name for name in client.get_run(run_id).data.metrics if name.startswith("system/")}


def test_curves_show_what_the_history_holds() -> None:
    def drawn(history: list[dict[str, float]]) -> Any:
        return np.asarray(Image.open(io.BytesIO(curves(history))).convert("L"))

    full = drawn(HISTORY)
    two_sets = drawn([HISTORY[0], {**HISTORY[1], "pitts-val/float/recall_at_1": 0.4}])
    assert two_sets.size > full.size, "a row more for the recalls of the second set"
    lower = drawn([HISTORY[0], {**HISTORY[1], "train/loss": 1.4}])
    assert not np.array_equal(full, lower)


def test_without_tracking_nothing_is_kept() -> None:
    with tracked_run("train", {}, TrackingConfig(enabled=False)) as run, system_metrics(run):
        record_training(run, {}, "nowhere/manifest.json", HISTORY)
