"""Asynchronous successive halving (Li et al. 2018): trials that are behind at a rung stop there.

Rungs lie at `grace_epochs`, then at every `reduction` times that. The rule at a rung is Ray Tune's: a trial stops
when its score is below the (1 - 1 / reduction) quantile of the others that have reached the rung. Differs from Ray
Tune: the comparison is made again after every later epoch, because of trials that ride together the first to
report would otherwise always pass.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from pydantic import Field

from placeray.config import Config

Scores = Mapping[int, float]  # epoch (from 1) -> best score so far, larger is better


class AshaConfig(Config):
    """When a trial is given up."""

    grace_epochs: int = Field(default=1, ge=1, description="no trial stops before so many epochs")
    reduction: float = Field(default=2.0, gt=1, description="one in so many trials goes on at a rung")


def falls_behind(own: Scores, others: Iterable[Scores], config: AshaConfig, epochs: int) -> bool:
    """Whether a trial should stop now.

    Args:
        own:    its scores so far.
        others: scores of the other trials, ended or not.
        epochs: length of a whole trial; the last epoch is no rung.
    """
    reached = max(own, default=0)
    passed = [rung for rung in rungs(config, epochs) if rung <= reached]
    if not passed:
        return False
    at = passed[-1]
    there = [score for score in (best_until(scores, at) for scores in others) if score is not None]
    mine = best_until(own, at, must_reach=False)
    if not there or mine is None:
        return False
    return mine < float(np.percentile(there, (1 - 1 / config.reduction) * 100))


def rungs(config: AshaConfig, epochs: int) -> list[int]:
    """Ascending epochs at which trials are compared."""
    found, rung = [], float(config.grace_epochs)
    while int(rung) < epochs:
        if int(rung) not in found:
            found.append(int(rung))
        rung *= config.reduction
    return found


def best_until(scores: Scores, epoch: int, must_reach: bool = True) -> float | None:
    """Best score up to an epoch; None where the trial has not come that far or was not judged by then."""
    if must_reach and max(scores, default=0) < epoch:
        return None
    return max((score for at, score in scores.items() if at <= epoch), default=None)
