"""Whether a map finds its own photos, and how fast: its settings against exhaustive search, on this machine.

A query is a photo of the map with noise, itself left out of the answers, as when lists are calibrated. That needs no
labelled queries, so it runs on every map; photos of another year are harder, `evaluate` measures those.

Shape letters: `Q` queries, `S` shortlist, `D` descriptor.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from placeray.config import Config
from placeray.retrieval.answers import SearchResult
from placeray.retrieval.inspect_map import index_facts
from placeray.retrieval.map_lists import NOISE, Queries, queries_of_map, right_answers, without_own
from placeray.retrieval.place_map import Mode, PlaceMap, default_shortlist

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class CheckConfig(Config):
    """How thorough the self-check is."""

    check_queries: int = Field(
        default=200, ge=0, description="photos of the map that are asked for; 0 leaves the check out"
    )
    exhaustive_rows: int = Field(
        default=1_000_000,
        ge=0,
        description="maps of more photos are not compared with an exhaustive search of the floats (it reads all)",
    )
    timed_singles: int = Field(default=50, ge=1, description="single queries that are timed")
    timed_batches: int = Field(default=5, ge=1, description="batches that are timed")
    batch_size: int = Field(default=64, ge=1, description="queries of a timed batch")


def check_map(place_map: PlaceMap, config: CheckConfig) -> dict[str, Any] | None:
    """Hit rate, overlap, agreement and latency, JSON-able; None when there is nothing to compare.

    That is an empty map, one of a model without codes (every search is exhaustive), or check_queries=0.
    """
    if not config.check_queries or not place_map.code_bits or not place_map.num_live:
        return None
    asked = queries_of_map(place_map, config.check_queries)
    floats = noisy_descriptors(place_map, asked.own_rows) if place_map.descriptor_dim else None
    return {
        "queries": len(asked.codes),
        "made_of": f"{len(asked.codes)} photos of the map, {NOISE:.0%} of their bits flipped, themselves left out",
        "shortlists": compare_shortlists(place_map, asked),
        "top1": _top1(place_map, asked, floats, config),
        "latency": {
            mode: time_mode(place_map, asked.codes, floats, mode, config) for mode in ("auto", "exact")
        },
    }


def noisy_descriptors(place_map: PlaceMap, rows: Rows, seed: int = 0) -> Floats:
    """The stored descriptors (n, D) of rows, turned by the angle at which NOISE of the bits would flip."""
    floats = place_map.descriptors_of(rows)
    noise = np.random.default_rng(seed).standard_normal(floats.shape).astype(np.float32)
    noise -= (noise * floats).sum(axis=1, keepdims=True) * floats
    noise *= math.tan(math.pi * NOISE) / np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    turned = floats + noise
    unit: Floats = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
    return unit


def compare_shortlists(place_map: PlaceMap, asked: Queries) -> dict[str, Any]:
    """Stage 1 as the map is set against every code compared.

    `hit_exact` and `hit_auto` are shares of all queries; `hit_rate` is that of the queries which the exact shortlist
    answers, as in the calibration; `overlap` the mean share of the exact shortlist that auto has too.
    """
    size = default_shortlist(len(place_map))
    exact, auto = (
        without_own(place_map.search(asked.codes, None, top_k=size + 1, mode=mode).rows, asked.own_rows, size)
        for mode in _MODES
    )
    right, rule = right_answers(place_map, asked, exact)
    shared = np.stack([np.isin(row, found) for row, found in zip(exact, auto, strict=True)]) & (exact >= 0)
    hit_exact, hit_auto = right.any(axis=1), (right & shared).any(axis=1)
    counts = (exact >= 0).sum(axis=1)
    filled = counts > 0
    return {
        "size": size,
        "rule": rule,
        "hit_exact": float(hit_exact.mean()),
        "hit_auto": float(hit_auto.mean()),
        "hit_rate": float(hit_auto.sum() / hit_exact.sum()) if hit_exact.any() else None,
        "overlap": float((shared.sum(axis=1)[filled] / counts[filled]).mean()) if filled.any() else None,
    }


_MODES: tuple[Mode, Mode] = ("exact", "auto")


def _top1(place_map: PlaceMap, asked: Queries, floats: Floats | None, config: CheckConfig) -> dict[str, Any]:
    """How often two stages give the best photo that comparing all float descriptors gives."""
    if floats is None:
        return {"agreement": None, "note": "the map has no float descriptors"}
    if len(place_map) > config.exhaustive_rows:
        return {
            "agreement": None,
            "note": f"more than exhaustive_rows={config.exhaustive_rows} photos, not compared",
        }
    staged = place_map.search(asked.codes, floats, top_k=2)
    full = place_map.search(None, floats, top_k=2, exhaustive=True)
    best = [without_own(found.rows, asked.own_rows, 1)[:, 0] for found in (staged, full)]
    return {"agreement": float((best[0] == best[1]).mean()), "note": "two-stage against exhaustive floats"}


def time_mode(
    place_map: PlaceMap, codes: NDArray[np.uint8], floats: Floats | None, mode: Mode, config: CheckConfig
) -> dict[str, Any]:
    """Median milliseconds of single queries and of a batch, and what stage 1 reads for them.

    The caller's thread count and machine; a first search that pages the map in is not counted. `scan_gb_per_s` is the
    bytes of the codes that one query compares, times the queries, over the time of stage 1.
    """

    def search(rows: Rows) -> SearchResult:
        return place_map.search(
            codes[rows], None if floats is None else floats[rows], top_k=10, mode=mode,
            shortlist=max(10, default_shortlist(len(place_map))),
        )  # fmt: skip

    number, size = len(codes), config.batch_size
    search(np.arange(min(number, size)))
    singles = [_timed(search, np.array([i % number])) for i in range(config.timed_singles)]
    batches = [_timed(search, (np.arange(size) + i * size) % number) for i in range(config.timed_batches)]
    scanned = codes_scanned(place_map, mode)
    bytes_each = scanned * place_map.code_bits // 8
    timed = {"single": (singles, 1), "batch": (batches, size)}
    result: dict[str, Any] = {"codes_scanned": scanned, "code_bytes_scanned": bytes_each, "batch_size": size}
    for name, (calls, asked) in timed.items():
        total, stage1 = (float(np.median([call[i] for call in calls])) for i in (0, 1))
        result[name] = {
            "median_ms": total,
            "first_stage_ms": stage1,
            "queries_per_s": asked / total * 1e3,
            "scan_gb_per_s": bytes_each * asked / (stage1 * 1e-3) / 1e9 if stage1 else None,
        }
    return result


def codes_scanned(place_map: PlaceMap, mode: Mode) -> int:
    """Codes that one query compares: all, or with lists those of `nprobe` lists of mean length."""
    facts = index_facts(place_map.root, place_map.manifest)
    if mode == "exact" or facts["type"] != "ivf":
        return len(place_map)
    return round(len(place_map) * min(facts["nprobe"] / facts["lists"], 1.0))


def _timed(search: Callable[[Rows], SearchResult], rows: Rows) -> tuple[float, float]:
    """Milliseconds of the whole call and of stage 1."""
    began = time.perf_counter()
    result = search(rows)
    return (time.perf_counter() - began) * 1e3, result.timings["first_stage"]
