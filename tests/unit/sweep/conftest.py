"""A small folder of normalized data and a sweep over it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module that draws normalized data."""
    spec = importlib.util.spec_from_file_location(
        "tiny_normalized", Path(__file__).parents[1] / "training" / "tiny_normalized.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def normalized(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two domains of 7 and 5 places; one place has too few photos."""
    root = str(tmp_path_factory.mktemp("normalized"))
    return str(tiny.write_normalized(root, {"north": [4, 5, 4, 6, 4, 4, 3], "south": [4, 4, 5, 4, 4]}))
