"""Small descriptors folders and maps for the tests of retrieval."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from small_map import build_map, write_descriptors

from placeray.retrieval.first_stage import make_pool


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Hundreds of tiny maps are built here; whether they outlive a power cut is not the question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def make_descriptors(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`make_descriptors(codes, floats, lat=, lon=, num_files=) -> uri`, a new folder each time."""
    root, numbers = tmp_path_factory.mktemp("descriptors"), itertools.count()
    return lambda *args, **more: write_descriptors(str(root / str(next(numbers))), *args, **more)


@pytest.fixture(scope="session")
def make_map(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`make_map(descriptors, rows_per_shard=...) -> uri`, a new folder each time, built without Ray."""
    folder, numbers = tmp_path_factory.mktemp("maps"), itertools.count()

    def make(descriptors: str, root: str | None = None, **settings: Any) -> str:
        return build_map(descriptors, root or str(folder / str(next(numbers))), **settings)

    return make


@pytest.fixture(scope="session")
def draw_tied() -> Callable[..., tuple[Any, Any]]:
    """`draw_tied(rng, count, bits, dim) -> codes, unit floats`, many equal: every cut falls among ties."""

    def draw(rng: np.random.Generator, count: int, bits: int, dim: int) -> tuple[Any, Any]:
        styles = rng.integers(0, 256, (4, bits // 8), dtype=np.uint8)
        codes = styles[rng.integers(0, 4, count)]
        flipped = rng.random(count) < 0.3
        codes[flipped, 0] ^= np.uint8(1) << rng.integers(0, 8, int(flipped.sum())).astype(np.uint8)
        noise = 0.2 * rng.standard_normal((count, dim)) * (rng.random((count, 1)) < 0.5)
        floats = rng.standard_normal((6, dim))[rng.integers(0, 6, count)] + noise
        return codes, (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)

    return draw


@pytest.fixture(scope="session")
def draw_random() -> Callable[..., tuple[Any, Any]]:
    """`draw_random(rng, count, bits, dim) -> codes, unit floats`, all different."""

    def draw(rng: np.random.Generator, count: int, bits: int, dim: int) -> tuple[Any, Any]:
        floats = rng.standard_normal((count, dim))
        unit = (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)
        return rng.integers(0, 256, (count, bits // 8), dtype=np.uint8), unit

    return draw


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Three search threads."""
    with make_pool(3) as threads:
        yield threads
