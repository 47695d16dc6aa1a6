"""Tracking against a real sqlite store: runs, metrics, and what happens when it fails."""

import threading
from pathlib import Path
from typing import Any

import pytest

from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.backbone import BackboneConfig
from placeray.model.checkpoint import save_checkpoint
from placeray.model.gem import GemConfig
from placeray.model.preprocess import PreprocessConfig
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.tracking import registering
from placeray.tracking import runs as tracking_module
from placeray.tracking.runs import Run, TrackingError, flat, tracked_run

mlflow = pytest.importorskip("mlflow")

PREPROCESS = PreprocessConfig(size_px=28)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One sqlite file for the module: making its schema takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return TrackingConfig(
        uri=f"sqlite:///{folder}/runs/mlflow.db", artifacts=f"{folder}/artifacts", experiment="tests"
    )


@pytest.fixture(scope="module")
def client(store: TrackingConfig) -> Any:
    with tracked_run("first", {}, store):
        pass
    return mlflow.MlflowClient(store.uri)


@pytest.fixture(scope="module")
def model() -> SelaVPR:
    backbone = BackboneConfig(name="toy", embed_dim=64, num_heads=1, depth=1)
    return build_model(ModelConfig(backbone=backbone, float_head=GemConfig(dim=16), hash_bits=24)).eval()


@pytest.fixture(scope="module")
def checkpoint(model: SelaVPR, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    card = {
        "preprocessing": PREPROCESS.id,
        "recipe": None,
        "data_fingerprint": None,
        "metrics": {},
        "created_at": "now",
    }
    save_checkpoint(folder, model, card)
    return folder


def test_a_run_keeps_flat_parameters_metrics_by_step_and_files(
    store: TrackingConfig, client: Any, tmp_path: Path
) -> None:
    (tmp_path / "card.json").write_text("{}")
    with tracked_run("train-float", {"train": {"lr": 0.1, "sets": [{"name": "a"}]}, "n": None}, store) as run:
        run.log({"val/a/float/recall_at_1": 0.5}, step=3)
        run.log({"val/a/float/recall_at_1": 0.75}, step=6)
        run.log_file(str(tmp_path / "card.json"))
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.runName"] == "train-float"
    assert found.data.params == {"train.lr": "0.1", "train.sets.0.name": "a", "n": "None"}
    history = client.get_metric_history(run.id, "val/a/float/recall_at_1")
    assert [(entry.step, entry.value) for entry in history] == [(3, 0.5), (6, 0.75)]
    assert [file.path for file in client.list_artifacts(run.id)] == ["card.json"]


def test_another_thread_may_log(store: TrackingConfig, client: Any) -> None:
    with tracked_run("threads", {}, store) as run:
        thread = threading.Thread(target=lambda: run.log({"loss": 1.5}, step=1))
        thread.start()
        thread.join()
    assert client.get_run(run.id).data.metrics == {"loss": 1.5}


def test_an_error_marks_the_run_as_failed_and_the_next_one_continues_it(
    store: TrackingConfig, client: Any
) -> None:
    def interrupted() -> str | None:
        with tracked_run("train", {"a": 1}, store, resume_key="float-1") as run:
            run.log({"loss": 2.0}, step=1)
            raise KeyboardInterrupt
        return run.id

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with tracked_run("train", {"a": 1}, store, resume_key="float-1") as second:
        failed = client.get_run(second.id)
        assert failed.data.metrics == {"loss": 2.0}, "the run of the interrupted job is continued"
    with tracked_run("train", {"a": 1}, store, resume_key="float-1") as third:
        assert third.id != second.id, "a finished run is not opened again"
    assert client.get_run(second.id).info.status == "FINISHED"


def test_a_run_registers_its_checkpoint_as_challenger(
    store: TrackingConfig, client: Any, checkpoint: str
) -> None:
    with tracked_run("register", {}, store) as run:
        assert run.register_model(checkpoint, "toy") == "1"
    version = client.get_model_version_by_alias("toy", "challenger")
    assert (str(version.version), version.run_id) == ("1", run.id)
    assert client.get_run(run.id).info.status == "FINISHED"


def test_what_fails_later_is_said_once_and_costs_nothing(
    store: TrackingConfig,
    client: Any,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def down(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the server is gone")

    def use(run: Run) -> str | None:
        run.log({"loss": 1.0})
        run.log({"loss": 2.0})
        return run.register_model(checkpoint, "toy")

    with tracked_run("fragile", {}, store) as run:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", down)
        monkeypatch.setattr(registering, "register_checkpoint", down)
        assert use(run) is None
    said = capsys.readouterr().err
    assert said.count("the server is gone; the job goes on") == 1


def test_tracking_that_is_off_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str
) -> None:
    monkeypatch.setenv("PLACERAY_ROOT", str(tmp_path))
    with tracked_run("off", {"a": 1}, TrackingConfig(enabled=False)) as run:
        run.log({"loss": 1.0}, step=1)
        run.log_file("/nowhere")
        assert run.id is None
        assert run.register_model(checkpoint, "toy") is None
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_opened_is_said_before_any_work() -> None:
    with (
        pytest.raises(
            TrackingError,
            match=r"cannot open the store sqlite:////proc/nowhere/x\.db.*tracking\.enabled=false",
        ),
        tracked_run("x", {}, TrackingConfig(uri="sqlite:////proc/nowhere/x.db")),
    ):
        pytest.fail("the job must not start")


def test_a_relative_store_lies_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACERAY_ROOT", str(tmp_path))
    assert tracking_module.resolved_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_module.resolved_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_nested_configuration_becomes_dotted_names() -> None:
    assert flat({"a": {"b": [1, {"c": None}]}, "d": True}) == {"a.b.0": "1", "a.b.1.c": "None", "d": "True"}
