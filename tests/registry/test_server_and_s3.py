"""The registry behind a real MLflow server, with files on a real S3 server over HTTP; and on S3 without a server."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from tests.registry.conftest import Checkpoint, described_here, free_port, photo, serving

from placeray import storage
from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.checkpoint import load_checkpoint
from placeray.tracking import registry
from placeray.tracking.registering import register_checkpoint
from placeray.tracking.registry import alias_holder, locate_checkpoint, set_alias
from placeray.tracking.runs import tracked_run
from placeray.tracking.store import TrackingError, open_store

pytest.importorskip("s3fs")
pytest.importorskip("moto")
PHOTOS = [photo(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A new bucket on a server of its own; its address and keys are in the environment."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "log"
    with pytest.MonkeyPatch.context() as patch, serving(command, dict(os.environ), endpoint, log):
        for name, value in environment.items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/models", method="PUT"), timeout=10)
        yield "s3://models"


@pytest.fixture(scope="module")
def behind_server(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingConfig]:
    """A tracking server whose artifacts lie on S3; the client knows its address only."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", f"{bucket}/artifacts", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with serving(command, environment, f"{url}/health", folder / "log"):
        yield TrackingConfig(uri=url, artifacts=None, models=str(folder / "models"), experiment="served")


@pytest.fixture(scope="module")
def straight_to_s3(bucket: str, store: TrackingConfig) -> TrackingConfig:
    """A sqlite store whose files lie on S3, as do the copies that workers read."""
    places = {"artifacts": f"{bucket}/direct", "models": f"{bucket}/unpacked", "experiment": "direct"}
    return store.model_copy(update=places)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint()


@pytest.mark.usefixtures("same_path")
@pytest.mark.parametrize("kind", ["behind_server", "straight_to_s3"])
def test_register_find_and_load(
    kind: str,
    request: pytest.FixtureRequest,
    bucket: str,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracking: TrackingConfig = request.getfixturevalue(kind)
    folder, model = checkpoint
    with tracked_run("train", {}, tracking) as run:
        assert run.register_model(folder, "on-s3") == "1"
    assert any(name.endswith("/artifacts/checkpoint/model.pt") for name in storage.list_files(bucket))

    located = locate_checkpoint("models:/on-s3@challenger", tracking)
    assert str(located.version) == "on-s3 version 1"
    assert located.uri.startswith(f"{tracking.models}/on-s3/1-")
    assert load_checkpoint(located.uri).model_id == load_checkpoint(folder).model_id

    client = open_store(tracking.uri)
    assert alias_holder(client, "on-s3", "champion") is None
    assert located.version is not None
    set_alias(client, located.version, "champion")
    assert alias_holder(client, "on-s3", "champion") == located.version

    answer = mlflow.pyfunc.load_model("models:/on-s3@champion").predict(pd.DataFrame({"image": PHOTOS}))
    expected = described_here(model, PHOTOS)
    np.testing.assert_allclose(np.stack(answer["descriptor"]), expected.float, rtol=0, atol=1e-6)

    def no_more(*arguments: Any) -> None:
        raise AssertionError("it was fetched once already")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_copy_from_store", no_more)
        assert locate_checkpoint("models:/on-s3/1", tracking).uri == located.uri


def test_a_checkpoint_on_s3_is_registered(bucket: str, store: TrackingConfig, checkpoint: Checkpoint) -> None:
    for name in ("model.pt", "card.json"):
        storage.write_bytes(f"{bucket}/trained/{name}", (Path(checkpoint[0]) / name).read_bytes())
    with tracked_run("register", {}, store) as run:
        version = register_checkpoint(open_store(store.uri), f"{bucket}/trained", "from-s3", str(run.id))
    assert version.model_id == load_checkpoint(checkpoint[0]).model_id


def test_files_that_cannot_be_fetched_are_one_sentence(
    bucket: str, straight_to_s3: TrackingConfig, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    with tracked_run("train", {}, straight_to_s3) as run:
        assert run.register_model(make_checkpoint(seed=3)[0], "lost") == "1"
    for name in storage.list_files(f"{bucket}/direct"):
        storage.remove(name)
    with pytest.raises(
        TrackingError, match=r"cannot fetch the checkpoint of lost version 1 from s3://models/direct"
    ):
        locate_checkpoint("models:/lost/1", straight_to_s3)


@pytest.mark.slow
def test_jobs_find_models_on_a_server(
    behind_server: TrackingConfig, checkpoint: Checkpoint, repository: Path, tmp_path: Path
) -> None:
    """The real commands: register a checkpoint, describe a photo with it by name."""
    (tmp_path / "photo.png").write_bytes(PHOTOS[0])
    environment = {**os.environ, "PYTHONPATH": str(repository / "platform"), "PLACERAY_ROOT": str(tmp_path)}
    where = [f"tracking.uri={behind_server.uri}"]
    for job, values in (
        ("register", [f"checkpoint={checkpoint[0]}", "name=by-hand", "tracking.artifacts=null"]),
        ("describe", ["checkpoint=models:/by-hand@challenger", "inputs=photo.png", "output=out.npz"]),
    ):
        command = [sys.executable, str(repository / "jobs" / f"{job}.py")]
        command += [part for value in [*values, *where] for part in ("--set", value)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "models" / "by-hand").is_dir()
    expected = described_here(checkpoint[1], PHOTOS[:1])
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["float"], expected.float, atol=1e-6)
