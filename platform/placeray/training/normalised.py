"""Pixels of a batch to normalised planes in one pass over memory, for the thread that waits for the batch.

As separate torch operations (convert, transpose, divide, subtract, divide) this costs 2.4 ms a photo of 224 px, a
third of decoding and augmenting it; as one compiled loop over a table of the 3 x 256 possible values 0.1 ms, with the
same bits.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placeray.model.preprocess import normalise
from placeray.training.batch_memory import mapped_zeros


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, bit for bit what `preprocess.normalise` gives."""
    planes = mapped_zeros((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    _kernel()(pixels, _table(), planes)
    return torch.from_numpy(planes)


@functools.cache
def _table() -> NDArray[np.float32]:
    """(3, 256) the normalised value of every level of every channel."""
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    return np.ascontiguousarray(normalise(levels)[:, :, 0].numpy())


@functools.cache
def _kernel() -> Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]], None]:
    import numba

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
    def look_up(pixels, table, planes):  # type: ignore[no-untyped-def] # pragma: no cover
        batch, height, width, channels = pixels.shape
        for b in range(batch):
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        planes[b, c, y, x] = table[c, pixels[b, y, x, c]]

    return look_up  # type: ignore[no-any-return, unused-ignore]
