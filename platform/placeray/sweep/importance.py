"""How much of the scores' spread goes with each searched value: a hint where to search on, no proof of a cause."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.sweep.ledger import Trial
from placeray.sweep.search import Space
from placeray.sweep.space import Choice, Grid

MIN_TRIALS = 4


def importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """By path, the share 0..1 of the variance of scores that the value explains, largest first.

    Numbers with bounds: squared rank correlation. Listed values: variance between the values over all variance, less
    what as many groups would explain by chance (epsilon squared), never below 0. Paths with a single value and trials
    without a score are left out; fewer than four trials say nothing.
    """
    judged = [trial for trial in trials if trial.score is not None]
    if len(judged) < MIN_TRIALS:
        return {}
    scores = np.array([trial.score for trial in judged], np.float64)
    if np.ptp(scores) == 0:
        return {}
    found = {}
    for path, item in space.items():
        values = [trial.values[path] for trial in judged]
        listed = isinstance(item, Choice | Grid)
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
            found[path] = _between_groups(values, scores) if listed else _by_rank(values, scores)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _by_rank(values: Sequence[float], scores: NDArray[np.float64]) -> float:
    correlation = np.corrcoef(_ranks(np.array(values, np.float64)), _ranks(scores))[0, 1]
    return float(correlation**2)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _between_groups(values: Sequence[Any], scores: NDArray[np.float64]) -> float:
    written = [json.dumps(value, sort_keys=True) for value in values]
    groups = [scores[[other == name for other in written]] for name in sorted(set(written))]
    total = float(((scores - scores.mean()) ** 2).sum())
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups))
    freedom = len(scores) - len(groups)
    if freedom <= 0:
        return 0.0
    return max(0.0, (total - within - (len(groups) - 1) * within / freedom) / total)
