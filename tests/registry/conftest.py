"""A store, tiny checkpoints and photos for the tests of the model registry."""

import contextlib
import hashlib
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.card import bare_card
from placeray.model.checkpoint import save_checkpoint
from placeray.model.describe import Described, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.tracking.store import open_store

PLACES = 12
PREPROCESS = PreprocessConfig(size_px=28)
TINY: dict[str, Any] = {
    "backbone": {"name": "toy", "embed_dim": 48, "depth": 2, "num_heads": 2, "position_px": 28},
    "float_head": {"kind": "gem", "dim": 32},
    "hash_bits": 64,
    "conv_start": "random",
}
TRAINED = {
    "recipe": {"name": "hash", "loss": {}},
    "training": {"epochs": 5, "seed": 3, "validation": {}},
    "data_fingerprint": "f" * 64,
    "data_sets": {"gsv-cities": 190, "sf-xl": 1200},
    "history": [{}] * 4,
    "metrics": {
        "val/msls-val/two_stage/recall_at_1": 0.731,
        "val/msls-val/two_stage/recall_at_5": 0.9,
        "val/msls-val/binary/recall_at_1": 0.5,
        "train/loss": 0.2,
    },
}
Checkpoint = tuple[str, SelaVPR]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One sqlite file for all: making its schema takes seconds. Every module uses model names of its own."""
    folder = tmp_path_factory.mktemp("store")
    return TrackingConfig(
        uri=f"sqlite:///{folder}/mlflow.db",
        artifacts=f"{folder}/artifacts",
        models=f"{folder}/models",
        experiment="registry",
    )


@pytest.fixture(scope="session")
def client(store: TrackingConfig) -> Any:
    return open_store(store.uri)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """(card={...}, spoilt=..., **changes of the model) -> folder of a tiny checkpoint, and its model."""

    def make(card: dict[str, Any] | None = None, spoilt: bool = False, **changes: Any) -> Checkpoint:
        folder = str(tmp_path_factory.mktemp("checkpoint") / "tiny")
        model = build_model(ModelConfig.model_validate({**TINY, **changes})).eval()
        if spoilt:
            spoil(model)
        save_checkpoint(folder, model, {**bare_card(PREPROCESS.id), **(card or {})})
        return folder, model

    return make


@torch.no_grad()
def spoil(model: SelaVPR) -> None:
    """Let every photo have the same descriptor and code: recall is that of chance."""
    for branch in (model.float_branch, model.code_branch):
        branch.head.reduce.weight.zero_()
        branch.head.reduce.bias.fill_(1.0)


@pytest.fixture
def same_path() -> Iterator[None]:
    """MLflow puts the code of a loaded model on `sys.path`, which workers of a later test must not inherit."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An evaluation set `drawn/test` of 12 places with one map photo and one query each, 100 m apart."""
    root, rows = str(tmp_path_factory.mktemp("normalized")), []
    for place in range(PLACES):
        for role, quality in (("database", 95), ("query", 60)):
            where = {"lat": 37.7 + place * 0.0009, "lon": -122.4, "utm_zone": "10S"}
            metres = {"utm_east": 5e5, "utm_north": 4e6 + 100 * place}
            names = {"dataset": "drawn", "split": "test", "role": role, "city": "nowhere"}
            name = f"{role}-{place}.jpg"
            data = {"image_id": f"{place:04d}{role}", "source_uri": name, "image": street(place, quality)}
            rows.append({**names, **where, **metres, **data})
    schema = table_schema("images/v1")
    columns = [pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names]
    uri = storage.join(root, "images", "drawn", "0.parquet")
    storage.write_table(uri, pa.table(columns, schema=schema))
    data = storage.read_bytes(uri)
    digest = hashlib.sha256(data).hexdigest()
    files = [{"path": "drawn/0.parquet", "rows": len(rows), "bytes": len(data), "sha256": digest}]
    storage.commit_manifest(f"{root}/images", table_manifest("images/v1", files, made_by={}))
    rule = {"kind": "radius", "radius_m": 25.0}
    storage.commit_manifest(root, {"contract": "normalized/v1", "positive_rules": {"drawn/test": rule}})
    return root


def street(place: int, quality: int) -> bytes:
    """A pattern of large patches that belongs to the place."""
    patches = np.random.default_rng(place).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(patches).resize((80, 60), Image.Resampling.NEAREST).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


class RunHere(Protocol):
    """(job, *values) -> exit status, what was printed. The parts of the job run in this process, without Ray."""

    def __call__(self, name: str, *values: str) -> tuple[int, str]: ...


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repository: Path,
    store: TrackingConfig,
) -> RunHere:
    """Job scripts as their command lines run them, on the store of the tests."""

    def run_parts(parts: Any, worker_cls: Any, worker_kwargs: Any, *, done: Any, **options: Any) -> list[Any]:
        pending = [part for part in parts if done(part) is None]
        worker = worker_cls(**worker_kwargs) if pending else None
        return [worker(part) if part in pending else done(part) for part in parts]

    monkeypatch.setattr("placeray.cluster.embedding.run_parts", run_parts)
    monkeypatch.setattr("placeray.cluster.indexing.run_parts", run_parts)

    def run(name: str, *values: str) -> tuple[int, str]:
        every = [f"tracking.uri={store.uri}", f"tracking.models={store.models}", *values]
        job = str(repository / "jobs" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [job, *(part for value in every for part in ("--set", value))])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(job, run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def photo(seed: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def described_here(model: SelaVPR, photos: Sequence[bytes]) -> Described:
    """What the training process says about the photos."""
    return describe(model, torch.stack([decode_to_input(data, PREPROCESS) for data in photos]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: Sequence[str], environment: dict[str, str], url: str, log: Path) -> Iterator[None]:
    """A server process with all its children, ended by its group when the block ends."""
    with open(log, "wb") as sink:
        server = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, cwd=log.parent, start_new_session=True
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(url, timeout=2)
                break
            time.sleep(0.3)
        else:
            raise AssertionError(f"nothing answers at {url}: {log.read_text()[-3000:]}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(15)
