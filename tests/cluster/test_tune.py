"""Sweeps through jobs/tune.py on a real Ray with a real MLflow store; killed and resumed in the slow test."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")

from placeray.cluster.tuning import finished_sweep, located
from placeray.config import load_config
from placeray.jobspecs.tune import TuneJob
from placeray.model.checkpoint import load_checkpoint
from placeray.sweep.ledger import Ledger

mlflow = pytest.importorskip("mlflow")


def write_data(root: Path) -> None:
    file = Path(__file__).parents[1] / "unit" / "training" / "tiny_normalized.py"
    spec = importlib.util.spec_from_file_location("tiny_normalized", file)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tiny.write_normalized(str(root / "normalized"), {"north": [4, 5, 4, 6], "south": [4, 4, 5, 4]})


def job(root: Path, **changes: Any) -> dict[str, Any]:
    """Four trials in packs of two; one of them cannot work."""
    heads = [
        {"kind": "gem", "dim": 16},
        {"kind": "salad", "clusters": 64, "cluster_dim": 8, "token_dim": 8, "hidden": 16},
        {"kind": "gem", "dim": 8},
        {"kind": "gem", "dim": 32},
    ]
    return {
        "normalized": str(root / "normalized"),
        "output": str(root / "sweep"),
        "model": {"backbone": {"name": "toy", "embed_dim": 64, "num_heads": 1, "depth": 1}, "conv_start": "random"},
        "train": {
            "epochs": 3, "places_per_batch": 4, "log_every_s": 0, "preprocess": {"size_px": 28}, "seed": 3,
            "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}]},
        },
        "space": {
            "model.float_head": {"kind": "grid", "values": heads},
            "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
        },
        "trials": 4, "pack": 2, "workers": {"at_once": 2, "cpus": 0.5, "torch_threads": 1},
        "tracking": {"uri": f"sqlite:///{root}/mlflow.db", "artifacts": f"{root}/artifacts", "experiment": "sweeps"},
    } | changes  # fmt: skip


def children_and_parents(root: Path) -> tuple[Any, list[Any], list[Any]]:
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("sweeps")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return client, children, [run for run in runs if run not in children]


def test_a_sweep_names_its_best_and_its_broken_trial(tmp_path: Path, run_job: Any, repository: Path) -> None:
    write_data(tmp_path)
    arguments = ("tune", "toy", f"space={json.dumps(job(tmp_path)['space'])}")
    values = [f"{key}={json.dumps(value)}" for key, value in job(tmp_path).items() if key != "space"]
    said = run_job(*arguments, *values).strip().splitlines()[-1]
    assert said.startswith("tune: 4 trials (")
    assert "1 failed); best is trial " in said
    config = repository / "jobs" / "configs" / "tune" / "toy.yaml"
    sweep = located(load_config(TuneJob, config, [arguments[2], *values]).sweep)
    trials = Ledger(sweep.output).read_all()
    assert "SALAD has 64 clusters" in trials[1].why
    report = finished_sweep(sweep)
    assert report is not None
    assert f"best is trial {report.best.number}," in said
    assert load_checkpoint(report.best.checkpoint).model_id == report.best.model_id
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert f"Trial {report.best.number} is the best of 4" in page
    client, children, parents = children_and_parents(tmp_path)
    assert len(parents) == 1
    assert {file.path for file in client.list_artifacts(parents[0].info.run_id)} >= {
        "report.html",
        "curves.png",
    }
    assert sorted(child.info.status for child in children) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    for child in children:
        epochs = len(trials[int(child.data.tags["placeray.trial"])].epochs)
        assert len(client.get_metric_history(child.info.run_id, "train/loss")) == epochs
    again = run_job(*arguments, *values).strip().splitlines()[-1]
    assert again.startswith("tune: already finished: 4 trials")


def start(root: Path, repository: Path) -> subprocess.Popen[bytes]:
    file = root / "job.yaml"
    environment = {**os.environ, "PYTHONPATH": str(repository / "platform")}
    return subprocess.Popen(
        [sys.executable, str(repository / "jobs" / "tune.py"), "--config", str(file)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def eight_trials(root: Path) -> dict[str, Any]:
    write_data(root)
    space = {
        "model.float_head": {
            "kind": "choice",
            "values": [{"kind": "gem", "dim": dim} for dim in (8, 16, 32)],
        },
        "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
    }
    made = job(root, space=space, trials=8, pack=3, early_stopping=None)
    made["train"]["epochs"], made["workers"]["at_once"] = 8, 1
    (root / "job.yaml").write_text(yaml.safe_dump(made))
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_killed_half_way_goes_on_to_the_same_result(tmp_path: Path, repository: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        eight_trials(root)
    ledger = Ledger(str(killed / "sweep"))
    process = start(killed, repository)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        time.sleep(0.05)
        trials = ledger.read_all()
        running = [trial for trial in trials if trial.state == "running" and trial.epochs]
        if sum(trial.ended for trial in trials) >= 3 and running:
            break
    assert process.poll() is None, "the sweep ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)  # Ray's processes end with their driver
    before = {trial.number: trial for trial in ledger.read_all() if trial.ended}
    assert 3 <= len(before) < 8
    stamps = {n: os.stat(f"{ledger.folder(n)}/trial.json").st_mtime_ns for n in before}

    said, _ = start(killed, repository).communicate(timeout=600)
    start(whole, repository).communicate(timeout=600)
    assert b"tune: 8 trials (8 finished); best is trial " in said
    after, undisturbed = ledger.read_all(), Ledger(str(whole / "sweep")).read_all()
    assert {n: os.stat(f"{ledger.folder(n)}/trial.json").st_mtime_ns for n in before} == stamps
    assert [trial.model_id for trial in after] == [trial.model_id for trial in undisturbed]
    assert [trial.scores for trial in after] == [trial.scores for trial in undisturbed]
    client, children, parents = children_and_parents(killed)
    assert (len(parents), len(children)) == (1, 8)
    for child in children:
        assert child.info.status == "FINISHED"
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "train/step_loss")]
        assert sorted(steps) == list(range(1, 17)), "every step once"
