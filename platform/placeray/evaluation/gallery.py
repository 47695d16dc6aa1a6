"""The gallery: which queries a page shows, and what each system answered to them.

An honest gallery is chosen by rule, before anybody looks: queries the training mended, queries right with and
without it, and queries that are still wrong, each spread evenly over the query list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from placeray.config import Config
from placeray.evaluation.benchmark import matches_of
from placeray.evaluation.page_data import Answer, AnswerRow, Example, Ground, Spot
from placeray.evaluation.report import EvalReport, Ranking
from placeray.geo import distance_m
from placeray.metrics import column

Floats = NDArray[np.float64]


class GalleryConfig(Config):
    """How many examples a page shows and how large."""

    examples: int = Field(default=9, ge=1, description="queries shown")
    failures: int = Field(
        default=3, ge=0, description="of these, queries whose first answer is wrong, if there are"
    )
    answers: int = Field(default=5, ge=1, description="retrieved photos shown for each query and system")
    thumbnail_px: int = Field(default=220, ge=32, description="longer side of an embedded photo, in pixels")


@dataclass(frozen=True)
class System:
    """One evaluated map with the ids and positions of its rows (columns image_id, lat, lon, frame)."""

    report: EvalReport
    database: pa.Table

    @property
    def ranking(self) -> Ranking:
        """Of the method a user would run."""
        return self.report.rankings[self.report.best_method]


def choose_queries(systems: Sequence[System], config: GalleryConfig) -> list[int]:
    """Query numbers to show: mended by the last system first, then right anyway, then still wrong."""
    last, first = systems[-1].ranking.right[:, 0], systems[0].ranking.right[:, 0]
    wanted = min(config.examples, len(last))
    # More failures than planned are shown when there are too few successes to fill the page.
    wrong = _spread(np.flatnonzero(~last), max(min(config.failures, wanted), wanted - int(last.sum())))
    left = wanted - len(wrong)
    mended, both = np.flatnonzero(last & ~first), np.flatnonzero(last & first)
    shown = _spread(mended, max(left - min(len(both), left // 3), 0))
    shown += _spread(both, left - len(shown))
    return [*shown, *wrong]


def wanted_ids(
    systems: Sequence[System], queries: pa.Table, chosen: Sequence[int], config: GalleryConfig
) -> set[str]:
    """image_ids of all photos the gallery shows."""
    ids = {str(queries.column("image_id")[query]) for query in chosen}
    for system in systems:
        rows = system.ranking.rows[list(chosen), : config.answers]
        ids |= set(system.database.column("image_id").take(pa.array(rows[rows >= 0])).to_pylist())
    return ids


def build_examples(
    systems: Sequence[System],
    queries: pa.Table,
    chosen: Sequence[int],
    images: Mapping[str, bytes],
    config: GalleryConfig,
) -> tuple[Example, ...]:
    """The chosen queries with the answers of every system, the last system first.

    Args:
        queries: descriptors/v1 or images/v1 rows, in the order that was evaluated.
        images: thumbnails by image_id; a missing one leaves a labelled gap.
    """
    middle = ground_middle(systems[-1].database)
    spots = spots_of(queries, middle)
    stated = [_confidences(system) for system in systems]
    examples = []
    for query in chosen:
        query_id = str(queries.column("image_id")[query])
        rows = [
            AnswerRow(
                system.report.label,
                _answers(system, queries, query, middle, images, config.answers),
                sure[query],
            )
            for system, sure in zip(systems, stated, strict=True)
        ]
        examples.append(
            Example(
                images.get(query_id),
                query_id,
                _spot(spots[query]),
                int(systems[-1].ranking.num_positives[query]),
                tuple(rows[::-1]),
            )
        )
    return tuple(examples)


def build_ground(system: System, queries: pa.Table) -> Ground | None:
    """The map of the page; None when neither positions nor frames are known."""
    middle = ground_middle(system.database)
    database = spots_of(system.database, middle)
    if np.isnan(database).all():
        return None
    best = system.ranking.rows[:, 0]
    padded = np.concatenate([database, [[np.nan, np.nan]]])
    return Ground(
        kind="metres" if middle else "frames",
        database=database[~np.isnan(database).any(axis=1)],
        queries=spots_of(queries, middle),
        found=padded[best],
        right=system.ranking.right[:, 0],
    )


def ground_middle(database: pa.Table) -> Spot | None:
    """(lat, lon) in the middle of a map; None when its photos have no positions."""
    lat, lon = column(database, "lat"), column(database, "lon")
    if np.isnan(lat).all():
        return None
    return float(np.nanmedian(lat)), float(np.nanmedian(lon))


def spots_of(table: pa.Table, middle: Spot | None) -> Floats:
    """(rows, 2) metres east and north of the middle (flat-earth, for drawing only), or (frame, 0)."""
    if middle is None:
        frame = column(table, "frame")
        return np.stack([frame, np.where(np.isnan(frame), np.nan, 0.0)], axis=1)
    lat, lon = column(table, "lat"), column(table, "lon")
    turn = (lon - middle[1] + 180) % 360 - 180
    return np.stack([turn * 111_320 * np.cos(np.radians(middle[0])), (lat - middle[0]) * 110_574], axis=1)


def _answers(
    system: System,
    queries: pa.Table,
    query: int,
    middle: Spot | None,
    images: Mapping[str, bytes],
    count: int,
) -> tuple[Answer, ...]:
    ranking = system.ranking
    rows = ranking.rows[query, :count]
    picked: Any = system.database.take(pa.array(rows[rows >= 0]))
    spots, frames, ids = (
        spots_of(picked, middle),
        column(picked, "frame"),
        picked.column("image_id").to_pylist(),
    )
    gaps_m = distance_m(column(queries, "lat")[query], column(queries, "lon")[query], column(picked, "lat"),
                        column(picked, "lon"))  # fmt: skip
    gaps = np.abs(frames - column(queries, "frame")[query])
    return tuple(
        Answer(
            image=images.get(ids[i]),
            image_id=ids[i],
            right=bool(ranking.right[query, i]),
            distance_m=None if np.isnan(gaps_m[i]) else float(gaps_m[i]),
            frame_gap=None if np.isnan(gaps[i]) else int(gaps[i]),
            similarity=float(ranking.similarity[query, i]),
            hamming=int(ranking.hamming[query, i]) if ranking.hamming[query, i] >= 0 else None,
            spot=_spot(spots[i]),
        )
        for i in range(len(ids))
    )


def _confidences(system: System) -> list[float | None]:
    calibration, ranking = system.report.confidence, system.ranking
    if calibration is None:
        return [None] * len(ranking.rows)
    matches = matches_of(ranking.rows, ranking.similarity, system.database)
    sure = calibration.probability(matches.similarity, matches.lat, matches.lon, matches.frame)
    return [None if np.isnan(value) else float(value) for value in sure]


def _spread(rows: NDArray[np.int64], count: int) -> list[int]:
    """Up to `count` of the rows, evenly spread."""
    if len(rows) == 0 or count <= 0:
        return []
    picks = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [int(row) for row in rows[picks]]


def _spot(spot: Floats) -> Spot | None:
    return None if np.isnan(spot).any() else (float(spot[0]), float(spot[1]))
