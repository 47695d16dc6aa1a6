"""Position embeddings are resampled the way DINOv2 was published."""

import numpy as np
import pytest
import torch

from placeray.model.positions import RESAMPLING, PositionCache, resample_positions

STORED = torch.randn(1, 37 * 37, 3, generator=torch.Generator().manual_seed(0))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, as torch has it."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_axis(have: int, wanted: int, step: float) -> np.ndarray:
    """(wanted, have) matrix of one axis: sample at (i + 0.5) * step - 0.5, borders repeated."""
    matrix = np.zeros((wanted, have))
    for i in range(wanted):
        centre = (i + 0.5) * step - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(j, 0), have - 1)] += cubic(centre - j)
    return matrix


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (23, 23), (16, 23), (40, 10)])
def test_the_sampling_step_is_37_over_h_plus_a_tenth(grid: tuple[int, int]) -> None:
    found = resample_positions(STORED, (37, 37), grid, "dinov2")
    rows, columns = (slow_axis(37, size, 37 / (size + 0.1)) for size in grid)
    image = STORED.numpy().astype(np.float64).reshape(37, 37, 3)
    expected = np.einsum("ij,jkc,lk->ilc", rows, image, columns).reshape(1, -1, 3)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)  # float32 weights of float32 positions


@pytest.mark.parametrize("how", RESAMPLING)
def test_the_stored_grid_is_used_as_it_is(how: str) -> None:
    assert resample_positions(STORED, (37, 37), (37, 37), how) is STORED  # type: ignore[arg-type]


@pytest.mark.parametrize("how", RESAMPLING)
@pytest.mark.parametrize("size", range(1, 60, 7))
def test_any_size_gives_as_many_positions(how: str, size: int) -> None:
    assert resample_positions(STORED, (37, 37), (size, 5), how).shape == (1, 5 * size, 3)  # type: ignore[arg-type]


def test_the_cache_computes_once_and_forgets_when_told() -> None:
    cache = PositionCache()
    first = cache.get(STORED, (37, 37), (8, 8), "dinov2")
    assert cache.get(STORED, (37, 37), (8, 8), "dinov2") is first
    cache.clear()
    assert cache.get(STORED, (37, 37), (8, 8), "dinov2") is not first
