"""The Hilbert order visits every cell once, steps only to neighbours, and nests."""

import numpy as np
import pytest

from placeray.retrieval.cells import LEVEL, NO_POSITION, hilbert_cells


def grid(level: int) -> tuple[np.ndarray, np.ndarray]:
    side = 1 << level
    lon, lat = np.meshgrid(
        (np.arange(side) + 0.5) / side * 360 - 180, (np.arange(side) + 0.5) / side * 180 - 90
    )
    return lat.ravel(), lon.ravel()


@pytest.mark.parametrize("level", [1, 2, 5])
def test_the_curve_is_continuous_and_complete(level: int) -> None:
    lat, lon = grid(level)
    side = 1 << level
    cells = hilbert_cells(lat, lon, level)
    order = np.argsort(cells)
    assert cells[order].tolist() == list(range(side * side))
    steps = np.abs(np.diff(order % side)) + np.abs(np.diff(order // side))
    assert (steps == 1).all()


def test_a_coarse_cell_is_a_prefix_of_its_fine_ones() -> None:
    lat, lon = grid(5)
    assert (hilbert_cells(lat, lon, LEVEL) >> np.uint64(2 * (LEVEL - 5)) == hilbert_cells(lat, lon, 5)).all()


def test_edges_of_the_world_and_photos_without_position() -> None:
    lat = np.array([-90.0, 90.0, 90.0, np.nan, 10.0, np.nan])
    lon = np.array([-180.0, 180.0, -180.0, 5.0, np.nan, np.nan])
    cells = hilbert_cells(lat, lon)
    assert (cells[:3] < np.uint64(4**LEVEL)).all()
    assert (cells[3:] == NO_POSITION).all()
    assert len(set(cells[:3].tolist())) == 3
