"""Parent and child runs of sweeps in a real sqlite store, also when two processes open and fill it at once."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from placeray.jobspecs.tracking import TrackingConfig
from placeray.sweep.ledger import Trial
from placeray.tracking.code_version import code_version
from placeray.tracking.sweeps import SweepRuns, sweep_runs

mlflow = pytest.importorskip("mlflow")

EPOCHS = 3


def store(folder: Path) -> TrackingConfig:
    return TrackingConfig(
        uri=f"sqlite:///{folder}/runs/mlflow.db", artifacts=f"{folder}/artifacts", experiment="sweeps"
    )


def trial(number: int, epochs: int, state: str = "running") -> tuple[Trial, list[dict[str, float]], Any]:
    """A trial after some epochs of 4 steps."""
    reports = [
        {"epoch": float(e), "step": 4.0 * e, "train/loss": 2.0 - e / 10, "score": e / 5}
        | {"toy/float/recall_at_1": e / 10}
        for e in range(1, epochs + 1)
    ]
    steps = [{"step": float(s), "train/step_loss": 2.0 - s / 40} for s in range(1, 4 * epochs + 1)]
    made = Trial(number, {"train.optimizer.lr": 0.1 * (number + 1)}, state, epochs=reports, map_bytes=20)  # type: ignore[arg-type]
    return made, steps, {"train": {"optimizer": {"lr": 0.1 * (number + 1)}}}


@pytest.fixture(scope="module")
def two_sweeps(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackingConfig, Any]:
    """Two processes begin at the same moment on a store that is not there yet."""
    folder = tmp_path_factory.mktemp("store")
    script = folder / "one_sweep.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import importlib.util, sys
            spec = importlib.util.spec_from_file_location("shared", {str(Path(__file__))!r})
            shared = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(shared)
            shared.write_a_sweep(shared.store(shared.Path({str(folder)!r})), sys.argv[1])
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    running = [
        subprocess.Popen([sys.executable, str(script), name], stderr=subprocess.PIPE, env=environment)
        for name in ("a", "b")
    ]
    for process in running:
        _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said.decode()
    tracking = store(folder)
    return tracking, mlflow.MlflowClient(tracking.uri)


def write_a_sweep(tracking: TrackingConfig, key: str) -> None:
    """Three trials that grow epoch by epoch, recorded after every one."""
    with sweep_runs("sweep", {"trials": 3}, tracking, key=key, data_fingerprint="f" * 8) as runs:
        for epochs in range(1, EPOCHS + 1):
            state = "finished" if epochs == EPOCHS else "running"
            runs.sync_all([trial(number, epochs, state) for number in range(3)])


def test_two_sweeps_that_write_at_once_lose_nothing(two_sweeps: tuple[TrackingConfig, Any]) -> None:
    _, client = two_sweeps
    (experiment,) = [found for found in client.search_experiments() if found.name == "sweeps"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.tags["placeray.resume_key"] for run in parents) == ["a", "b"]
    for parent in parents:
        assert parent.data.tags["placeray.code"] == code_version()
        assert parent.data.tags["placeray.data_fingerprint"] == "f" * 8
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(run.data.tags["placeray.trial"] for run in children) == ["0", "1", "2"]
        for child in children:
            assert child.info.status == "FINISHED"
            number = int(child.data.tags["placeray.trial"])
            assert child.data.params == {"train.optimizer.lr": f"{0.1 * (number + 1):.3g}"}
            assert curve(client, child, "train/step_loss") == [
                (s, 2.0 - s / 40) for s in range(1, 4 * EPOCHS + 1)
            ]
            assert curve(client, child, "val/toy/float/recall_at_1") == [(4, 0.1), (8, 0.2), (12, 0.3)]
            assert child.data.metrics["best/recall_at_1"] == 0.3
            file = client.download_artifacts(child.info.run_id, "config.json")
            assert json.loads(Path(file).read_text())["train"]["optimizer"]["lr"] == 0.1 * (number + 1)


def curve(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name))


def test_after_a_kill_curves_go_on_where_they_ended(two_sweeps: tuple[TrackingConfig, Any]) -> None:
    tracking, client = two_sweeps

    def killed() -> str | None:
        with sweep_runs("sweep", {}, tracking, key="killed", data_fingerprint="f") as runs:
            runs.sync(*trial(0, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with sweep_runs("sweep", {}, tracking, key="killed", data_fingerprint="f") as runs:
        assert runs.sync(*trial(0, 1)), "a record that was set back to its snapshot repeats what is there"
        assert runs.sync(*trial(0, 3, "failed"))
        parent = runs.parent.id
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    (child,) = children
    assert child.info.status == "FAILED"
    assert curve(client, child, "train/loss") == [(4, 1.9), (8, 1.8), (12, 1.7)]
    assert len(curve(client, child, "train/step_loss")) == 12


def test_a_store_that_is_away_is_tried_again(
    two_sweeps: tuple[TrackingConfig, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracking, client = two_sweeps
    with sweep_runs("sweep", {}, tracking, key="away", data_fingerprint="f") as runs:
        assert runs.sync(*trial(0, 1))
        real, calls = runs._log, []

        def away(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 1:
                raise OSError("database is locked")
            real(*arguments)

        monkeypatch.setattr(runs, "_log", away)
        assert not runs.sync(*trial(0, 2))
        assert "database is locked; will try again" in capsys.readouterr().err
        assert runs.sync_all([trial(0, 3, "finished")]) == []
        parent = runs.parent.id
    (child,) = client.search_runs(
        [client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    assert [step for step, _ in curve(client, child, "train/loss")] == [4, 8, 12]


def test_without_tracking_everything_is_taken_and_nothing_kept() -> None:
    with sweep_runs("sweep", {}, TrackingConfig(enabled=False), key="x", data_fingerprint="f") as runs:
        assert isinstance(runs, SweepRuns)
        assert runs.sync(*trial(0, 1))
        assert runs.parent.id is None
