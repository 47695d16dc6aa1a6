"""What is known about the photos that a search found, laid out like its rows.

Shape letters: `Q` queries, `K` matches of each.
"""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from placeray.retrieval.answers import SearchResult
from placeray.retrieval.place_map import PlaceMap

Floats = NDArray[np.float64]

# The position is estimated from this many matches, however few are shown.
MATCHES_READ = 10


class Confidence(Protocol):
    """What turns matches into a probability, such as evaluation.confidence.Calibration."""

    @property
    def depth(self) -> int:
        """Matches it wants to see."""
        ...

    def probability(self, similarity: Floats, lat: Floats, lon: Floats, frame: Floats) -> Floats:
        """(Q,) probability that the best match is right, from (Q, K) values; NaN where unknown."""
        ...


def cosines(result: SearchResult, place_map: PlaceMap) -> Floats:
    """(Q, K) cosine; where a map has codes only, of the +-1 codes; NaN for padding."""
    cosine = result.similarity.astype(np.float64)
    if place_map.descriptor_dim == 0:
        cosine = 1.0 - 2.0 * result.hamming / place_map.code_bits
    return np.where(result.rows < 0, np.nan, cosine)


def values_at(records: pa.Table, name: str, rows: NDArray[np.int64]) -> Floats:
    """(Q, K) numbers of a column of the records of all real rows in reading order; NaN for null and padding."""
    values = np.full(rows.shape, np.nan)
    values[rows >= 0] = records.column(name).cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def texts_at(records: pa.Table, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """(Q, K) texts likewise; None for null, empty for padding."""
    texts = np.full(rows.shape, "", dtype=object)
    texts[rows >= 0] = records.column(name).to_pylist()
    return texts


def known(value: float) -> float | None:
    """None for NaN."""
    return None if np.isnan(value) else float(value)
