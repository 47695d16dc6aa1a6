"""Confidence: the probability that the best match is right, learned from queries with known answers.

A similarity of 0.63 means nothing to a user: models, maps and streets differ. Isotonic regression (pooled
adjacent violators) turns a score into a probability and assumes only that a higher score is no worse. Two
scores compete: the similarity of the best match, and its margin over the best match taken somewhere else.

The map is fitted on one half of the queries and its reliability is stated on the other. The halves are split
by ground, not by photo: two photos of one street corner never stand on both sides.

Shape letters: `Q` queries, `K` ranked matches of a query, `H` queries of one half.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import isotonic_regression

from placeray.config import Config
from placeray.geo import distance_m

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Score = Literal["similarity", "margin"]

METRES_PER_DEGREE = 111_195.0


class ConfidenceConfig(Config):
    """How the calibration splits its queries and what it takes for another place."""

    depth: int = Field(default=10, ge=2, description="matches of a query the margin looks at")
    elsewhere_m: float = Field(
        default=50.0, gt=0, description="a match this far from the best one is another place"
    )
    elsewhere_frames: int = Field(default=10, ge=1, description="the same for photos with frame numbers only")
    block_m: float = Field(default=100.0, gt=0, description="queries of one square of this size share a half")
    block_frames: int = Field(default=10, ge=1, description="the same for photos with frame numbers only")
    min_queries: int = Field(
        default=20, ge=4, description="fewest queries in a half; below there is no calibration"
    )
    bins: int = Field(default=5, ge=2, description="equally full bins of the reliability table")


@dataclass(frozen=True)
class Matches:
    """What the score of a query is made of: its K best matches, best first; NaN where unknown or padded."""

    similarity: Floats  # (Q, K)
    lat: Floats  # (Q, K) degrees
    lon: Floats  # (Q, K) degrees
    frame: Floats  # (Q, K)

    def take(self, rows: NDArray[Any]) -> "Matches":
        """The same for some of the queries."""
        return Matches(self.similarity[rows], self.lat[rows], self.lon[rows], self.frame[rows])


@dataclass(frozen=True)
class Reliability:
    """How well stated confidence agrees with what happened, on queries the calibration never saw.

    Each bin is (mean confidence, share that was right, queries). `brier` is the mean squared error of the
    confidence, `brier_constant` that of always stating the share of right answers of the fitting half: a
    calibration that knows something is below it. `error` is the gap of the bins weighted by their queries.
    """

    queries: int
    bins: tuple[tuple[float, float, int], ...]
    brier: float
    brier_constant: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """A rising step function from a score to the probability that the best match is right."""

    score: Score
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    depth: int
    elsewhere_m: float
    elsewhere_frames: int
    fitted_on: int
    reliability: Reliability

    def probability(self, similarity: Floats, lat: Floats, lon: Floats, frame: Floats) -> Floats:
        """(Q,) probability that the best match is right, from (Q, K) matches as in `Matches`, K >= depth.

        NaN for a query without any match.
        """
        matches = Matches(similarity, lat, lon, frame)
        score = score_matches(self.score, matches, self.depth, self.elsewhere_m, self.elsewhere_frames)
        return _look_up(score, np.asarray(self.scores), np.asarray(self.probabilities))

    def to_document(self) -> dict[str, Any]:
        """The `confidence` part of eval_report/v1."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Back from `to_document`, also after a round through JSON."""
        table = document["reliability"]
        reliability = Reliability(
            **{**table, "bins": tuple((float(c), float(s), int(n)) for c, s, n in table["bins"])}
        )
        values = {
            **document,
            "scores": tuple(document["scores"]),
            "probabilities": tuple(document["probabilities"]),
        }
        return cls(**{**values, "reliability": reliability})


def calibrate(
    matches: Matches, right: Bools, lat: Floats, lon: Floats, frame: Floats, config: ConfidenceConfig
) -> tuple[Calibration | None, str]:
    """Fit a calibration on one half of the queries and test it on the other.

    Args:
        matches: the K best matches of Q queries.
        right: (Q,) whether the best match is right. A query the map cannot answer counts as wrong.
        lat, lon, frame: (Q,) true position or frame of the queries, which decide the halves; NaN if unknown.

    Returns:
        the calibration and one sentence about it; None with the reason when there are too few queries.
    """
    fitting = first_half(lat, lon, frame, config)
    count, held = int(fitting.sum()), int((~fitting).sum())
    if min(count, held) < config.min_queries:
        return None, (
            f"no calibration: {count} queries to fit and {held} to test, at least {config.min_queries} of "
            "each are needed; confidence is unknown"
        )
    candidates = [_fit(score, matches.take(fitting), right[fitting], config) for score in get_args(Score)]
    (kind, scores, probabilities), fit_error = min(candidates, key=lambda candidate: candidate[1])
    asked = score_matches(
        kind, matches.take(~fitting), config.depth, config.elsewhere_m, config.elsewhere_frames
    )
    stated = _look_up(asked, scores, probabilities)
    reliability = _reliability(stated, right[~fitting], float(right[fitting].mean()), config.bins)
    calibration = Calibration(
        score=kind,
        scores=tuple(scores.tolist()),
        probabilities=tuple(probabilities.tolist()),
        depth=config.depth,
        elsewhere_m=config.elsewhere_m,
        elsewhere_frames=config.elsewhere_frames,
        fitted_on=count,
        reliability=reliability,
    )
    return calibration, (
        f"fitted on {count} queries by the {kind} of the best match (error on them {fit_error:.3f}), "
        f"tested on {held} queries of other ground: stated and observed differ by "
        f"{reliability.error * 100:.1f} points on average"
    )


def score_matches(
    kind: Score, matches: Matches, depth: int, elsewhere_m: float, elsewhere_frames: int
) -> Floats:
    """(Q,) score of each query's best match; NaN where a query has no match.

    The margin is the similarity of the best match minus that of the best one taken elsewhere; when all of the
    first `depth` matches show one place, minus that of the last of them, which is then the least it can be.
    """
    similarity = matches.similarity[:, :depth]
    best = similarity[:, 0]
    if kind == "similarity":
        return best
    elsewhere = _is_elsewhere(matches, depth, elsewhere_m, elsewhere_frames)
    rivals = np.where(elsewhere & ~np.isnan(similarity), similarity, -np.inf).max(axis=1)
    last = np.where(np.isnan(similarity), np.inf, similarity).min(axis=1)
    margin: Floats = best - np.where(np.isfinite(rivals), rivals, last)
    return margin


def pooled_steps(score: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Isotonic regression of right (0 or 1) on score, as the corners of a step function.

    Returns:
        scores and probabilities, both rising: two corners a pooled block, its lowest and highest score.
        Probabilities keep 1 / (H + 2) away from 0 and 1 (rule of succession): H queries cannot prove more.
    """
    # Queries of equal score must get one probability: pool them first, with their number as weight.
    values, where = np.unique(score, return_inverse=True)
    weights = np.bincount(where, minlength=len(values)).astype(np.float64)
    shares = np.bincount(where, weights=right.astype(np.float64), minlength=len(values)) / weights
    fitted = isotonic_regression(shares, weights=weights)
    edge = 1.0 / (len(score) + 2)
    corners = sorted({int(row) for start, end in zip(fitted.blocks[:-1], fitted.blocks[1:], strict=True)
                      for row in (start, end - 1)})  # fmt: skip
    return values[corners], np.clip(fitted.x[corners], edge, 1.0 - edge)


def _fit(
    kind: Score, matches: Matches, right: Bools, config: ConfidenceConfig
) -> tuple[tuple[Score, Floats, Floats], float]:
    """One candidate score: its step function over the whole half, and its honest error inside the half.

    The error is that of two steps fitted on every other query each and asked about the rest, so that choosing
    the score does not look at the half on which reliability is stated.
    """
    score = score_matches(kind, matches, config.depth, config.elsewhere_m, config.elsewhere_frames)
    known = ~np.isnan(score)
    score, right = score[known], right[known]
    even = np.arange(len(score)) % 2 == 0
    squares = [
        (_look_up(score[~part], *pooled_steps(score[part], right[part])) - right[~part]) ** 2
        for part in (even, ~even)
    ]
    return (kind, *pooled_steps(score, right)), float(np.concatenate(squares).mean())


def _look_up(score: Floats, scores: Floats, probabilities: Floats) -> Floats:
    """Straight lines between the corners, constant beyond them; NaN stays NaN."""
    found: Floats = np.interp(score, scores, probabilities)
    return np.where(np.isnan(score), np.nan, found)


def _reliability(stated: Floats, right: Bools, constant: float, bins: int) -> Reliability:
    known = ~np.isnan(stated)
    stated, truth = stated[known], right[known].astype(np.float64)
    parts = [part for part in np.array_split(np.argsort(stated, kind="stable"), bins) if len(part)]
    table = tuple((float(stated[part].mean()), float(truth[part].mean()), len(part)) for part in parts)
    gaps = sum(count * abs(confidence - share) for confidence, share, count in table)
    return Reliability(
        queries=len(stated),
        bins=table,
        brier=float(((stated - truth) ** 2).mean()),
        brier_constant=float(((constant - truth) ** 2).mean()),
        error=gaps / len(stated),
    )


def first_half(lat: Floats, lon: Floats, frame: Floats, config: ConfidenceConfig) -> Bools:
    """(Q,) whether a query is in the fitting half: whole blocks of ground, in the order of a hash of their
    name, until they hold about half of the queries. The order of the queries plays no part."""
    north = np.floor(lat * METRES_PER_DEGREE / config.block_m)
    # One longitude scale for the whole row of blocks, or the blocks of one row would not line up.
    middle_deg = (north + 0.5) * config.block_m / METRES_PER_DEGREE
    east = np.floor(lon * METRES_PER_DEGREE * np.cos(np.radians(middle_deg)) / config.block_m)
    walk = np.floor(frame / config.block_frames)
    placed = ~np.isnan(lat) & ~np.isnan(lon)
    names = [
        f"{n:.0f},{e:.0f}" if known else f"frame {w:.0f}"
        for known, n, e, w in zip(placed, north, east, walk, strict=True)
    ]
    blocks, where, sizes = np.unique(names, return_inverse=True, return_counts=True)
    order = sorted(range(len(blocks)), key=lambda block: hashlib.sha256(str(blocks[block]).encode()).digest())
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    first = np.zeros(len(blocks), bool)
    first[np.asarray(order)[middles < len(names) / 2]] = True
    return first[where.reshape(-1)]


def _is_elsewhere(matches: Matches, depth: int, elsewhere_m: float, elsewhere_frames: int) -> Bools:
    """(Q, depth) which matches were not taken where the best one was: by position, else by frame."""
    lat, lon, frame = matches.lat[:, :depth], matches.lon[:, :depth], matches.frame[:, :depth]
    gap_m = distance_m(lat[:, :1], lon[:, :1], lat, lon)
    # A comparison with NaN is False: an unknown position is not taken for another place.
    far: Bools = np.where(
        np.isnan(gap_m), np.abs(frame - frame[:, :1]) >= elsewhere_frames, gap_m >= elsewhere_m
    )
    return far
