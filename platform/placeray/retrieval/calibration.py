"""How many lists a map must probe: measured on queries, against an exhaustive search of the same codes.

Probing fewer lists searches a subset of the rows, so a photo of the exhaustive shortlist is in the shortlist of the
lists exactly when its own list is probed. One exhaustive search of the queries therefore gives the hit rate for every
number of lists at once.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]

# Points of the curve that a manifest keeps.
_CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Calibration(NamedTuple):
    """The number of lists that reaches a hit rate, and how it was found."""

    nprobe: int
    target: (
        float  # of the queries that the exhaustive shortlist answers, the share that must still be answered
    )
    hit_rate: float  # reached on these queries
    num_queries: int  # that the exhaustive shortlist answers
    num_unanswered: int  # left out: not even the exhaustive shortlist holds a right photo
    shortlist: int
    queries: str  # where the queries came from and what counts as right
    curve: dict[str, float]  # lists -> hit rate

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return self._asdict()


def lists_needed(list_ranks: Ranks, right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Lists (Q,) that must be probed before the first right photo of each query turns up; inf for never.

    Args:
        list_ranks: (Q, S) for every photo of the exhaustive shortlist how many lists are nearer than its own.
        right:      (Q, S) whether it answers the query.
    """
    needed: NDArray[np.float64] = np.where(right, list_ranks + 1.0, np.inf).min(axis=1, initial=np.inf)
    return needed


def choose(
    needed: NDArray[np.float64], target: float, *, num_lists: int, shortlist: int, queries: str
) -> Calibration:
    """The smallest number of lists that answers `target` of the queries that can be answered.

    Args:
        needed: `lists_needed` (Q,).
    """
    answered = np.sort(needed[np.isfinite(needed)])
    if not len(answered):
        nprobe = num_lists
    else:
        nprobe = int(answered[max(math.ceil(target * len(answered)) - 1, 0)])
    return Calibration(
        nprobe,
        target,
        _share(answered, nprobe),
        len(answered),
        len(needed) - len(answered),
        shortlist,
        queries,
        {str(lists): round(_share(answered, lists), 4) for lists in _CURVE if lists <= num_lists},
    )


def _share(needed: NDArray[np.float64], lists: int) -> float:
    return float((needed <= lists).mean()) if len(needed) else 1.0
