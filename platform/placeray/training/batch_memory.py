"""Memory for batches that goes back to the system as soon as a batch is dropped.

A batch of 48 photos of 224 px takes 29 MB as float32. Once glibc has freed one block of that size it takes later ones
from its common heap instead of mapping each, and small allocations that decoding threads make between two batches keep
the heap from shrinking: over 160 batches it grew by 30 MB that nobody used (docs/results/feed.md). A mapping for each
array cannot be broken up like that.
"""

import contextlib
import math
import mmap
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def mapped_zeros(shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
    """An array of zeros in an anonymous mapping of its own, unmapped with the last reference to it."""
    count = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize), flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(
                mmap.MADV_HUGEPAGE
            )  # a fault for 2 MB, not for 4 KB: a third of the time to fill it
    return np.frombuffer(memory, dtype, count).reshape(shape)
