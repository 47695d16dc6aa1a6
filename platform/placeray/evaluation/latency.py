"""Latency: what a search costs, stage by stage, one query at a time and in batches.

Wall time on the machine that evaluates, after one search that is not counted: it pages the map in. Compare
figures of one run with each other, not with those of another machine.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Runs one search and returns the milliseconds of its stages.
Search = Callable[[slice], Mapping[str, float]]


@dataclass(frozen=True)
class StageTime:
    """Milliseconds per query: the middle and the slow end of the searches that were timed."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Latency:
    """Stage name -> time; `total` is the whole call. `single` asks one query a time, `batch` many at once."""

    single: Mapping[str, StageTime]
    batch: Mapping[str, StageTime]
    batch_size: int


def measure(search: Search, num_queries: int, *, singles: int, batches: int, batch_size: int) -> Latency:
    """Time `singles` searches of one query each and `batches` of `batch_size` queries, over a query set.

    Args:
        search: runs the queries of a slice, returns milliseconds per stage of that call.
        num_queries: size of the query set; the timed queries are spread evenly over it.
    """
    size = min(batch_size, num_queries)
    search(slice(0, size))
    firsts = np.linspace(0, num_queries - 1, singles).astype(int)
    starts = np.linspace(0, num_queries - size, batches).astype(int)
    return Latency(
        single=_summary([_timed(search, slice(int(first), int(first) + 1)) for first in firsts]),
        batch=_summary([_timed(search, slice(int(start), int(start) + size)) for start in starts]),
        batch_size=size,
    )


def _timed(search: Search, queries: slice) -> dict[str, float]:
    """Milliseconds per query of one call."""
    begun = time.perf_counter()
    stages = dict(search(queries))
    stages["total"] = (time.perf_counter() - begun) * 1000
    return {stage: spent / (queries.stop - queries.start) for stage, spent in stages.items()}


def _summary(calls: Sequence[Mapping[str, float]]) -> dict[str, StageTime]:
    stages = list(dict.fromkeys(stage for call in calls for stage in call))
    times = {stage: np.asarray([call.get(stage, 0.0) for call in calls]) for stage in stages}
    return {s: StageTime(float(np.median(t)), float(np.quantile(t, 0.95))) for s, t in times.items()}
