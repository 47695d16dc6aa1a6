"""The published code's expected outputs, and the checkpoints they were made with, made once per machine."""

import functools
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

from placeray.model.checkpoint import LoadedModel, load_checkpoint

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
def checkpoint_file(detgen: ModuleType) -> Callable[[str], str]:
    """variant -> a checkpoint of 0.4 GB as the published training writes it, kept in the temporary folder."""
    folder = Path(
        os.environ.get("PLACERAY_TEST_CACHE", Path(tempfile.gettempdir()) / f"placeray-{os.getuid()}")
    )

    def make(variant: str) -> str:
        file = folder / f"detgen_{variant}.pth"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f"{file.name}.{os.getpid()}"
            detgen.write_checkpoint(str(unfinished), variant, extras="numpy_old")
            unfinished.replace(file)
        return str(file)

    return make


@pytest.fixture(scope="session")
def load_variant(checkpoint_file: Callable[[str], str]) -> Callable[[str], LoadedModel]:
    """variant -> the loaded model; the last one is kept, so order tests by variant."""
    return functools.lru_cache(maxsize=1)(lambda variant: load_checkpoint(checkpoint_file(variant)))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The expectations were made with one thread; two differ by 3e-8."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
