"""Position embeddings for another input size than the stored one, resampled the way DINOv2 was published.

timm resamples to a target size with antialiasing; DINOv2 hands `interpolate` a scale factor that is 0.1 patch
too large and no antialiasing, so its sampling step is 37 / (h + 0.1), not 37 / h. Tokens differ by up to 0.7.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from placeray.errors import ConfigError

# Name -> (offset in patches added to the target size, antialias); from the hub entries of DINOv2.
RESAMPLING: dict[str, tuple[float, bool]] = {"dinov2": (0.1, False), "dinov2_registers": (0.0, True)}
Resampling = Literal["dinov2", "dinov2_registers"]


def resample_positions(
    stored: Tensor, stored_grid: tuple[int, int], grid: tuple[int, int], how: Resampling
) -> Tensor:
    """Position embeddings of the patches for a grid of another size.

    Args:
        stored:      (1, P, C) for P = stored_grid[0] * stored_grid[1] patches, row major.
        stored_grid: rows and columns of patches that were stored.
        grid:        rows and columns wanted.
        how:         a key of RESAMPLING.

    Returns:
        (1, grid[0] * grid[1], C) in the dtype of `stored`; `stored` itself when the grids are equal.

    Source: DINOv2 `interpolate_pos_encoding`; spelled out because the scale factor decides the result.
    """
    if grid == stored_grid:
        return stored
    offset, antialias = RESAMPLING[how]
    image = stored.float().unflatten(1, stored_grid).permute(0, 3, 1, 2)  # (1, C, rows, columns)
    if offset:
        factor = tuple((wanted + offset) / have for wanted, have in zip(grid, stored_grid, strict=True))
        image = F.interpolate(image, scale_factor=factor, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=antialias)
    if tuple(image.shape[2:]) != grid:
        raise ConfigError(f"position embeddings came out as {tuple(image.shape[2:])} patches, wanted {grid}")
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(stored.dtype)


class PositionCache:
    """Remembers resampled positions per grid: they depend on nothing but the stored weights and the size."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, int], torch.device, torch.dtype], Tensor] = {}

    def get(
        self, stored: Tensor, stored_grid: tuple[int, int], grid: tuple[int, int], how: Resampling
    ) -> Tensor:
        """As `resample_positions`, computed once per grid, device and dtype."""
        key = (grid, stored.device, stored.dtype)
        if key not in self._known:
            self._known[key] = resample_positions(stored, stored_grid, grid, how)
        return self._known[key]

    def clear(self) -> None:
        """Forget everything; to be called whenever the stored weights change."""
        self._known.clear()
