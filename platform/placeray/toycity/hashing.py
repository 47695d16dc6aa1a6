"""Hash noise: numbers in [0, 1) that depend on integer coordinates and on nothing else.

A window, a brick or a leaf gets its random value from where it is in the world, so that two photos of one
place agree on every detail, whoever draws them and in whatever order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]

_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def hash_cells(*coordinates: Any) -> NDArray[np.uint32]:
    """Mix up to four integer coordinates (broadcast against each other) into well-spread 32-bit numbers."""
    mixed: Any = np.atleast_1d(_spread(coordinates[0], _FACTORS[0]))
    for coordinate, factor in zip(coordinates[1:], _FACTORS[1:]):
        mixed = mixed ^ _spread(coordinate, factor)
    mixed = mixed ^ (mixed >> np.uint32(15))
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    mixed *= np.uint32(0x297A2D39)
    mixed ^= mixed >> np.uint32(15)
    return mixed


def unit(hashed: NDArray[np.uint32]) -> Floats:
    """32-bit hashes as float32 in [0, 1), from their upper 24 bits."""
    return (hashed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def second_unit(hashed: NDArray[np.uint32]) -> Floats:
    """Another number in [0, 1) from the same hash: its lower 12 bits, which `unit` hardly sees."""
    return (hashed & np.uint32(0xFFF)).astype(np.float32) * np.float32(2.0**-12)


def smooth_noise(x: Floats, y: Floats, key: int) -> Floats:
    """Value noise in [0, 1): hashes at whole coordinates, blended smoothly between them."""
    column, row = np.floor(x), np.floor(y)
    across, down = x - column, y - row
    across, down = across * across * (3 - 2 * across), down * down * (3 - 2 * down)
    i, j = column.astype(np.int32), row.astype(np.int32)
    top = unit(hash_cells(i, j, key)) * (1 - across) + unit(hash_cells(i + 1, j, key)) * across
    low = unit(hash_cells(i, j + 1, key)) * (1 - across) + unit(hash_cells(i + 1, j + 1, key)) * across
    return np.asarray(top * (1 - down) + low * down, dtype=np.float32)


def _spread(coordinate: Any, factor: int) -> Any:
    """A coordinate times a large odd number, modulo 2**32."""
    if isinstance(coordinate, np.ndarray):
        return coordinate.astype(np.int32, copy=False).view(np.uint32) * np.uint32(factor)
    return np.uint32(int(coordinate) * factor & 0xFFFFFFFF)
