"""Training on a real local Ray: the same weights as without Ray, although a worker is killed on the way."""

import contextlib
import importlib.util
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("ray")

from placeray import storage
from placeray.cluster.training import TrainReport, finished_report, identified, train
from placeray.errors import ConfigError, StorageError, TrainingError
from placeray.jobspecs.train import WorkersConfig
from placeray.model.backbone import BackboneConfig
from placeray.model.checkpoint import load_checkpoint
from placeray.model.gem import GemConfig
from placeray.model.selavpr import ModelConfig
from placeray.training.config import TrainConfig
from placeray.training.loop import Silent
from placeray.training.run import RunSpec, train_once

EPOCHS = 15
ONE_THREAD = WorkersConfig(cpus_per_worker=0.5, torch_threads=1)


class Recorder:
    """Stands for a tracked run: keeps the metrics it is given."""

    id = None

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []

    def log(self, metrics: Any, step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_file(self, path: str) -> None: ...

    def register_model(self, checkpoint: str, name: str) -> str | None: ...


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    file = Path(__file__).parents[1] / "unit" / "training" / "tiny_normalized.py"
    spec = importlib.util.spec_from_file_location("tiny_normalized", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("train"))
    tiny.write_normalized(f"{root}/normalized", {"north": [4, 5, 4, 6], "south": [4, 4, 5, 4]})
    return root


def _spec(folder: str, output: str, **changes: Any) -> RunSpec:
    backbone = BackboneConfig(name="toy", embed_dim=64, num_heads=1, depth=1)
    recipe = {
        "epochs": EPOCHS, "places_per_batch": 4, "seed": 3, "log_every_s": 0, "preprocess": {"size_px": 28},
        "optimizer": {"lr": 0.003},
        "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}], "every_epochs": 5},
    }  # fmt: skip
    return RunSpec(
        normalized=f"{folder}/normalized",
        output=f"{folder}/{output}",
        model=ModelConfig(backbone=backbone, float_head=GemConfig(dim=16), conv_start="random"),
        train=TrainConfig.model_validate(recipe | changes),
    )


def _kill_worker_after_first_checkpoint(state_root: str, killed: list[int]) -> None:
    """`kill -9` of the training worker as soon as a snapshot of an epoch is on disk."""
    deadline = time.monotonic() + 240  # a busy machine takes its time to start workers
    while time.monotonic() < deadline and not killed:
        time.sleep(0.05)
        if not (storage.exists(state_root) and storage.list_files(state_root, "state.pt")):
            continue
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("RayTrainWorker" in part for part in process.cmdline()[:1]):
                    process.kill()
                    killed.append(process.pid)


@pytest.fixture(scope="module")
def survived(ray_session: Any, folder: str) -> tuple[TrainReport, Recorder, list[int]]:
    spec, run, killed = _spec(folder, "survived"), Recorder(), []
    killer = threading.Thread(
        target=_kill_worker_after_first_checkpoint, args=(f"{spec.output}/training", killed), daemon=True
    )
    killer.start()
    report = train(spec, ONE_THREAD, run)
    killer.join()
    return report, run, killed


def test_a_killed_worker_costs_no_more_than_the_time_since_the_last_checkpoint(
    survived: tuple[TrainReport, Recorder, list[int]], folder: str
) -> None:
    report, run, killed = survived
    assert len(killed) == 1
    assert report.epochs == EPOCHS
    torch.set_num_threads(1)
    undisturbed = train_once(_spec(folder, "undisturbed"), Silent())
    assert report.model_id == undisturbed.model_id, (
        "same weights, bit by bit, as without Ray and without a kill"
    )
    assert report.metrics == undisturbed.metrics
    epochs = [step for step, metrics in run.metrics if "train/loss" in metrics]
    assert sorted(set(epochs)) == [2 * (epoch + 1) for epoch in range(EPOCHS)]
    assert len(epochs) <= EPOCHS + 2, "at most the epochs since the last checkpoint are seen twice"


def test_the_checkpoint_is_complete_and_the_state_is_cleared(
    survived: tuple[TrainReport, Recorder, list[int]],
) -> None:
    report, _, _ = survived
    loaded = load_checkpoint(report.checkpoint)
    assert loaded.model_id == report.model_id
    assert loaded.card is not None
    assert loaded.card["recipe"]["name"] == "float"
    assert loaded.card["metrics"] == report.metrics
    assert len(loaded.card["history"]) == EPOCHS
    assert [file.rsplit("/", 1)[1] for file in storage.list_files(report.checkpoint)] == [
        "card.json",
        "model.pt",
    ]


def test_a_finished_run_is_not_repeated_and_another_one_refused(
    survived: tuple[TrainReport, Recorder, list[int]], folder: str
) -> None:
    report, _, _ = survived
    again = train(_spec(folder, "survived"), ONE_THREAD, Recorder())
    assert again.already_finished
    assert again.model_id == report.model_id
    with pytest.raises(ConfigError, match="holds the checkpoint of another run"):
        finished_report(identified(_spec(folder, "survived", seed=4)))


def test_the_hash_recipe_starts_from_the_float_checkpoint_and_leaves_it_alone(
    survived: tuple[TrainReport, Recorder, list[int]], folder: str
) -> None:
    report, _, _ = survived
    base = _spec(folder, "hash", recipe="float", epochs=2)
    spec = RunSpec.model_validate(
        base.model_dump()
        | {
            "start_from": report.checkpoint,
            "model": base.model.model_copy(update={"hash_bits": 16}),
            "train": base.train.model_copy(update={"recipe": "hash"}),
        }
    )
    result = train_once(spec, Silent())
    before, after = (
        load_checkpoint(folder).model.state_dict() for folder in (report.checkpoint, spec.output)
    )
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == [], "the float branch, its statistics included, must stay as it was trained"
    assert {key.split("/")[2] for key in result.metrics if "recall" in key} == {
        "float",
        "binary",
        "two_stage",
    }


def test_what_a_worker_says_arrives_as_one_sentence(ray_session: Any, folder: str) -> None:
    validation = {"sets": [{"name": "nowhere", "dataset": "nowhere"}]}
    with pytest.raises(
        TrainingError, match=r"^validation set nowhere: .* has no nowhere/val; it has \['toy/val'\]$"
    ):
        train(_spec(folder, "wrong", validation=validation), ONE_THREAD, Recorder())


def test_workers_that_never_fit_are_refused_at_once(ray_session: Any, folder: str) -> None:
    with pytest.raises(TrainingError, match="100 CPUs wanted, 4 there"):
        train(_spec(folder, "wide"), WorkersConfig(num_workers=50, cpus_per_worker=2), Recorder())


def test_an_output_that_cannot_be_written_is_refused_before_a_worker_starts(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("placeray.cluster.training.ensure_ray")
    (tmp_path / "file").write_text("no folder")
    spec = _spec(folder, "x").model_copy(update={"output": str(tmp_path / "file" / "x")})
    with pytest.raises(StorageError, match=r"cannot write .*/file/x/card\.json: .*/file: Not a directory"):
        train(spec, ONE_THREAD, Recorder())


def test_the_hash_recipe_needs_a_start(folder: str) -> None:
    with pytest.raises(ValueError, match="needs start_from"):
        _spec(folder, "x", recipe="hash")


def test_data_that_is_not_finished_is_said(tmp_path: Path, folder: str) -> None:
    with pytest.raises(StorageError, match=r"manifest\.json"):
        identified(_spec(str(tmp_path), "x"))


@pytest.mark.slow
def test_what_one_of_two_workers_says_ends_the_run_instead_of_being_repeated(
    ray_session: Any, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A restart frees the other worker from the collective it waits in; it must not train again."""
    two = WorkersConfig(num_workers=2, cpus_per_worker=0.5, torch_threads=1, max_failures=3)
    validation = {"sets": [{"name": "nowhere", "dataset": "nowhere"}]}
    with pytest.raises(TrainingError, match=r"^validation set nowhere: .* has no nowhere/val"):
        train(_spec(folder, "wrong-pair", validation=validation), two, Recorder())
    said = [line for line in capfd.readouterr().err.splitlines() if "validation set nowhere" in line]
    assert len(said) <= 2, "each of the two workers may say it once"
