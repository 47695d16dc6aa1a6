"""A store, tiny checkpoints and photos for the tests of the model registry."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.card import bare_card
from placeray.model.checkpoint import save_checkpoint
from placeray.model.describe import Described, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.tracking.store import open_store

pytest.importorskip("mlflow")

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
    """(**changes of the model, card={...}) -> folder of a tiny checkpoint, and its model."""

    def make(card: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
        folder = str(tmp_path_factory.mktemp("checkpoint") / "tiny")
        model = build_model(ModelConfig.model_validate({**TINY, **changes})).eval()
        save_checkpoint(folder, model, {**bare_card(PREPROCESS.id), **(card or {})})
        return folder, model

    return make


@pytest.fixture
def same_path() -> Iterator[None]:
    """MLflow puts the code of a loaded model on `sys.path`, which workers of a later test must not inherit."""
    before = list(sys.path)
    yield
    sys.path[:] = before


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
