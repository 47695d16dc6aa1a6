"""The published code's expected outputs, and the checkpoints they were made with, made once per machine."""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from placeray.model.checkpoint import load_weights
from placeray.model.published import recognise
from placeray.model.selavpr import SelaVPR
from placeray.model.weights import read_weights

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def detgen() -> ModuleType:
    """The module that makes weights and images from their names."""
    spec = importlib.util.spec_from_file_location("detgen", FIXTURES / "detgen.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_steps() -> dict[str, Any]:
    """What three training steps of the published code gave, per recipe and size."""
    steps: dict[str, Any] = json.loads((FIXTURES / "train_step.json").read_text())
    return steps


@pytest.fixture(scope="session")
def checkpoint_file(detgen: ModuleType) -> str:
    """The two-branch checkpoint of 0.4 GB as the published training writes it, kept in the temporary folder."""
    folder = Path(
        os.environ.get("PLACERAY_TEST_CACHE", Path(tempfile.gettempdir()) / f"placeray-{os.getuid()}")
    )
    file = folder / "detgen_base_rerank.pth"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{file.name}.{os.getpid()}"
        detgen.write_checkpoint(str(unfinished), "base_rerank", extras="numpy_old")
        unfinished.replace(file)
    return str(file)


@pytest.fixture(scope="session")
def published_weights(detgen: ModuleType, checkpoint_file: str) -> Callable[[str], dict[str, Tensor]]:
    """variant -> its weights. A weight follows from its name, so variants share most of them."""
    known = read_weights(checkpoint_file)

    def weights(variant: str) -> dict[str, Tensor]:
        for name, shape in detgen.keys(variant).items():
            if name not in known:
                known[name] = torch.from_numpy(detgen.tensor(name, shape, variant)).reshape(shape)
        return {name: known[name] for name in detgen.keys(variant)}

    return weights


@pytest.fixture(scope="session")
def load_variant(published_weights: Callable[[str], dict[str, Tensor]]) -> Callable[[str], SelaVPR]:
    """variant -> a model of its own, whose weights a test may change."""

    def load(variant: str) -> SelaVPR:
        weights = {name: value.clone() for name, value in published_weights(variant).items()}
        return load_weights(recognise(weights), weights)

    return load


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The expectations were made with one thread; two differ by 3e-8."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
