"""One 64-bit key per candidate, so that taking the best ones never depends on shards, threads or batch size.

A key is `score << 32 | row`: smaller is better, and candidates of equal score are ordered by their global
row. As all keys differ, any selection algorithm returns the same candidates in the same order. Rows end at
4,294,967,294.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placeray.errors import MapError

Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]

NOBODY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
MAX_ROWS = 0xFFFF_FFFF
_ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64(0xFFFF_FFFF)


def check_num_rows(num_rows: int) -> None:
    """Raises MapError when a map has more rows than a key can name."""
    if num_rows > MAX_ROWS:
        raise MapError(
            f"a map of {num_rows} rows is too large: one map holds at most {MAX_ROWS}, split it by region"
        )


def distance_keys(distances: NDArray[np.integer], rows: Rows) -> Keys:
    """Keys of Hamming distances; a row of -1 is nobody. Both (Q, S)."""
    keys = (distances.astype(np.uint64) << _ROW_BITS) | (rows.astype(np.uint64) & _ROW_MASK)
    return np.where(rows < 0, NOBODY, keys)


def similarity_keys(similarities: NDArray[np.float32], rows: Rows) -> Keys:
    """Keys of similarities (Q, S), the largest first; equal ones (0.0 and -0.0 too) are ordered by row."""
    bits = (np.float32(0) - similarities.astype(np.float32)).view(np.uint32)
    # IEEE floats sort like integers once negative ones are inverted and positive ones get the top bit.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x8000_0000))
    return distance_keys(ordered, rows)


def best(keys: Sequence[Keys], size: int) -> Keys:
    """The `size` smallest of candidate lists (Q, S1), (Q, S2), ...: (Q, size), ascending, NOBODY last."""
    together = np.concatenate(keys, axis=1) if len(keys) != 1 else keys[0]
    if together.shape[1] > size:
        together = np.partition(together, size - 1, axis=1)[:, :size]
    together = np.sort(together, axis=1)
    missing = size - together.shape[1]
    return np.pad(together, ((0, 0), (0, missing)), constant_values=NOBODY) if missing else together


def rows_of(keys: Keys) -> Rows:
    """Global rows (Q, S) int64, -1 for nobody."""
    return np.where(keys == NOBODY, np.int64(-1), (keys & _ROW_MASK).astype(np.int64))


def distances_of(keys: Keys) -> NDArray[np.int32]:
    """Hamming distances (Q, S) int32, -1 for nobody."""
    return np.where(keys == NOBODY, np.int32(-1), (keys >> _ROW_BITS).astype(np.int32))
