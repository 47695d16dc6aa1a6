"""Which shard holds a row of the map: shards keep their row numbers where others between them are left out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placeray.errors import MapError

Rows = NDArray[np.int64]


class RowRanges:
    """The global rows of some shards, ascending; there may be gaps between them."""

    def __init__(self, first_rows: Sequence[int], num_rows: Sequence[int]) -> None:
        self.first_rows: Rows = np.asarray(first_rows, dtype=np.int64)  # (shards,)
        self._num_rows: Rows = np.asarray(num_rows, dtype=np.int64)
        self.end = int(self.first_rows[-1] + self._num_rows[-1]) if len(self.first_rows) else 0
        self.has_gaps = int(self._num_rows.sum()) != self.end

    def locate(self, rows: Rows) -> tuple[Rows, Rows]:
        """The shard of each of rows (n,) and its row within that.

        Raises:
            MapError: no shard holds one of them.
        """
        shard_of, local = self._nearest(rows)
        if len(rows):
            held = self._held(shard_of, local)
            if not held.all():
                raise MapError(
                    f"row {rows[~held][0]} is in no shard that is open: its shard is damaged and was left out, "
                    "restore its files or build the map again"
                )
        return shard_of, local

    def held(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of rows (n,) some shard holds."""
        return self._held(*self._nearest(rows))

    def numbers(self) -> Rows:
        """All rows (n,) that are held, ascending."""
        pieces = [
            np.arange(first, first + count)
            for first, count in zip(self.first_rows, self._num_rows, strict=True)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def _nearest(self, rows: Rows) -> tuple[Rows, Rows]:
        if not len(self.first_rows):
            return np.full(len(rows), -1, dtype=np.int64), rows
        shard_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        return shard_of, rows - self.first_rows[np.maximum(shard_of, 0)]

    def _held(self, shard_of: Rows, local: Rows) -> NDArray[np.bool_]:
        if not len(self.first_rows):
            return np.zeros(len(shard_of), dtype=np.bool_)
        held: NDArray[np.bool_] = (shard_of >= 0) & (local < self._num_rows[shard_of])
        return held
