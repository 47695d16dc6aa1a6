"""Where a photo was taken, as its matches on a map say. Shape letter: `K` matches, best first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from placeray.config import Config
from placeray.geo import distance_m

Floats = NDArray[np.float64]


class PositionConfig(Config):
    """How a position is read from matches."""

    cluster_m: float = Field(
        default=50.0,
        gt=0,
        description="matches this near to the best one take part in the position, in metres",
    )
    sharpness: float = Field(
        default=20.0,
        ge=0,
        description="how fast a less similar match loses weight: exp(-sharpness x difference)",
    )


@dataclass(frozen=True)
class Position:
    """Where the photo was taken, as the matches that agree with the best one say."""

    lat: float
    lon: float
    spread_m: float | None  # weighted mean distance of those matches from it; None for a single match
    matches: int  # how many took part


def estimate_position(
    lat: Floats, lon: Floats, similarity: Floats, config: PositionConfig
) -> Position | None:
    """The weighted mean of the matches near the best one.

    A true match is seldom alone: neighbouring map photos show the same facades. Averaging those that lie
    within `cluster_m` of the best match, each weighted by exp(-sharpness * (best - similarity)), is nearer
    the truth than the best match alone when the map is dense, and the same where it is sparse.

    Args:
        lat, lon, similarity: (K,) best first; NaN where unknown or padded.

    Returns:
        None when the best match has no position.
    """
    if len(lat) == 0 or np.isnan(lat[0]) or np.isnan(lon[0]):
        return None
    # A comparison with NaN is False: matches without a position drop out.
    near = (distance_m(lat[0], lon[0], lat, lon) <= config.cluster_m) & ~np.isnan(similarity)
    weight = np.exp(-config.sharpness * (similarity[0] - similarity[near]))
    weight /= weight.sum()
    turn = (lon[near] - lon[0] + 180.0) % 360.0 - 180.0  # the mean of 179.99 and -179.99 is not 0
    middle_lat = float(lat[0] + weight @ (lat[near] - lat[0]))
    middle_lon = float((lon[0] + weight @ turn + 180.0) % 360.0 - 180.0)
    spread = float(weight @ distance_m(middle_lat, middle_lon, lat[near], lon[near]))
    # One match cannot disagree with itself: its spread of 0 m would read like certainty.
    count = int(near.sum())
    return Position(middle_lat, middle_lon, spread if count > 1 else None, count)
