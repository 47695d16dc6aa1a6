"""One benchmark: a map, queries with known positions, and every way to search that the model allows.

Three ways are compared: the binary codes alone, the two stages (codes find a shortlist, float descriptors
order it), and the float descriptors against every photo of the map, which is what the two stages approximate.

Shape letters: `Q` queries, `K` answers kept, `D` descriptor size.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from placeray.config import Config
from placeray.errors import DataError
from placeray.evaluation.confidence import ConfidenceConfig, Matches, calibrate
from placeray.evaluation.latency import Latency, measure
from placeray.evaluation.report import EvalReport, MapFacts, Method, MethodResult, Ranking
from placeray.geo import distance_m
from placeray.metrics import (
    POSITION_COLUMNS,
    ExactRule,
    FramesRule,
    RadiusRule,
    column,
    first_hits,
    is_right,
    positives,
    recall_at_k,
    wilson_interval,
)
from placeray.retrieval.answers import SearchResult
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.queries import codes_in, descriptors_in

Rows = NDArray[np.int64]


class EvaluationConfig(Config):
    """What is measured. Defaults are those of the published evaluation (spec: method, section 11)."""

    ks: tuple[int, ...] = Field(
        default=(1, 5, 10, 100), min_length=1, description="recall is stated at these k"
    )
    shortlist: int = Field(default=100, ge=1, description="candidates stage 1 hands to stage 2")
    batch_size: int = Field(
        default=256, ge=1, description="queries per search call, also of the timed batches"
    )
    timed_singles: int = Field(default=50, ge=1, description="searches of one query that are timed")
    timed_batches: int = Field(default=5, ge=1, description="batches of queries that are timed")
    confidence: ConfidenceConfig = Field(
        default_factory=ConfidenceConfig, description="how confidence is calibrated"
    )

    @model_validator(mode="after")
    def _confidence_sees_its_depth(self) -> Self:
        if self.confidence.depth > max(self.ks):
            raise ValueError(
                f"confidence.depth={self.confidence.depth} is beyond the largest of ks={list(self.ks)}"
            )
        return self

    @model_validator(mode="after")
    def _shortlist_covers_ks(self) -> Self:
        if min(self.ks) < 1 or max(self.ks) > self.shortlist:
            raise ValueError(
                f"ks={list(self.ks)} must lie between 1 and shortlist={self.shortlist}: "
                "stage 2 can only return what stage 1 found"
            )
        return self


@dataclass(frozen=True)
class Queries:
    """Q described photos: packed codes (Q, bits/8) uint8, unit descriptors (Q, D) float32, and their rows."""

    codes: NDArray[np.uint8] | None
    descriptors: NDArray[np.float32] | None
    table: pa.Table

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """From descriptors/v1; a column that is null throughout is absent. Raises DataError for a mixture."""
        if table.num_rows == 0:
            raise DataError("there is nothing to evaluate: the query descriptors hold no rows")
        return cls(codes_in(table), descriptors_in(table), table)


def evaluate_map(
    place_map: PlaceMap,
    queries: pa.Table,
    rule: RadiusRule | FramesRule | ExactRule,
    config: EvaluationConfig,
    *,
    name: str,
    label: str = "",
    map_uri: str = "",
    inputs: Mapping[str, Any] | None = None,
) -> EvalReport:
    """Search a map with every query in every way and compare with the known positions.

    Args:
        place_map: the map; it must come from the model that described the queries (`check_model`).
        queries: descriptors/v1 rows with positions or frames.
        rule: what counts as right.
        name: data set and query list, such as `msls-val/official-740`.
        label: what is being compared, such as `trained`.
        map_uri, inputs: where the map came from and fingerprints, carried into the report.

    Raises:
        DataError: no queries, or neither codes nor descriptors in them; a map that was opened without some shards.
    """
    if len(place_map.row_numbers()) < len(place_map):
        raise DataError(
            f"a damaged map cannot be evaluated, its answers would be missing: {place_map.damaged[0]}"
        )
    asked = Queries.of(queries)
    database = place_map.rows(list(POSITION_COLUMNS))
    right = positives(rule, database, queries)
    live = place_map.live
    if live is not None:  # a removed photo is never returned, so it is no answer that could be missed
        right = [rows[live[rows]] for rows in right]
    methods: dict[Method, MethodResult] = {}
    rankings: dict[Method, Ranking] = {}
    for method in usable_methods(asked):
        found = _search_all(place_map, asked, method, config)
        rankings[method] = _rank(found, right, database, queries)
        latency = _time(place_map, asked, method, config)
        methods[method] = _summarise(rankings[method], right, config, latency)
    best = rankings[next(way for way in ("two_stage", "exhaustive", "binary") if way in rankings)]
    calibration, note = calibrate(
        matches_of(best.rows, best.similarity, database),
        best.right[:, 0],
        column(queries, "lat"),
        column(queries, "lon"),
        column(queries, "frame"),
        config.confidence,
    )
    return EvalReport(
        name=name,
        label=label,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=model_facts(place_map),
        map=map_facts(place_map, map_uri),
        positive_rule=rule.model_dump(mode="json"),
        num_queries=queries.num_rows,
        num_with_positive=sum(len(rows) > 0 for rows in right),
        shortlist=config.shortlist,
        methods=methods,
        confidence=calibration,
        confidence_note=note,
        config=config.model_dump(mode="json"),
        inputs=dict(inputs or {}),
        rankings=rankings,
    )


def usable_methods(queries: Queries) -> list[Method]:
    """The ways to search that the branches of the model allow; raises DataError when there is none."""
    methods: list[Method] = []
    if queries.codes is not None:
        methods.append("binary")
        if queries.descriptors is not None:
            methods.append("two_stage")
    if queries.descriptors is not None:
        methods.append("exhaustive")
    if not methods:
        raise DataError(
            "the queries hold neither codes nor descriptors; describe them with a trained model first"
        )
    return methods


def model_facts(place_map: PlaceMap) -> dict[str, Any]:
    """The model of a map, as the report names it."""
    model = place_map.manifest["model"]
    return {
        "id": model["model_id"],
        "preprocessing": model["preprocessing"],
        "code_bits": place_map.code_bits,
        "descriptor_dim": place_map.descriptor_dim,
    }


def map_facts(place_map: PlaceMap, uri: str) -> MapFacts:
    """Bytes of the codes, all read by stage 1, and of the floats, of which stage 2 reads a shortlist."""
    files = [item for entry in place_map.manifest["shards"] for item in entry["shard"]["files"].items()]
    return MapFacts(
        uri=uri or place_map.root,
        photos=place_map.num_live,
        code_bytes=sum(file["bytes"] for name, file in files if name.startswith("codes.")),
        descriptor_bytes=sum(file["bytes"] for name, file in files if name.startswith("desc")),
    )


def matches_of(rows: Rows, similarity: NDArray[np.floating[Any]], database: pa.Table) -> Matches:
    """The ranked answers with their positions, as the confidence sees them; NaN where a list is padded."""
    padded = rows < 0
    # An empty map has no row 0 to stand in for the padding.
    lat, lon, frame = (
        np.where(padded, np.nan, np.append(column(database, name), np.nan)[rows])
        for name in ("lat", "lon", "frame")
    )
    return Matches(np.where(padded, np.nan, similarity.astype(np.float64)), lat, lon, frame)


def _search(
    place_map: PlaceMap, queries: Queries, method: Method, config: EvaluationConfig, part: slice
) -> SearchResult:
    codes = queries.codes[part] if queries.codes is not None and method != "exhaustive" else None
    descriptors = (
        queries.descriptors[part] if queries.descriptors is not None and method != "binary" else None
    )
    found = place_map.search(
        codes,
        descriptors,
        top_k=max(config.ks),
        shortlist=config.shortlist,
        exhaustive=method == "exhaustive",
    )
    if method != "binary":
        return found
    # Without floats a map states bits only; as a cosine of the +-1 codes they read like the other methods.
    return found._replace(similarity=(1 - 2 * found.hamming / place_map.code_bits).astype(np.float32))


def _search_all(
    place_map: PlaceMap, queries: Queries, method: Method, config: EvaluationConfig
) -> list[SearchResult]:
    starts = range(0, queries.table.num_rows, config.batch_size)
    return [_search(place_map, queries, method, config, slice(s, s + config.batch_size)) for s in starts]


def _time(place_map: PlaceMap, queries: Queries, method: Method, config: EvaluationConfig) -> Latency:
    return measure(
        lambda part: _search(place_map, queries, method, config, part).timings,
        queries.table.num_rows,
        singles=config.timed_singles,
        batches=config.timed_batches,
        batch_size=config.batch_size,
    )


def _rank(found: list[SearchResult], right: list[Rows], database: pa.Table, queries: pa.Table) -> Ranking:
    rows = np.concatenate([part.rows for part in found]).astype(np.int64)
    similarity = np.concatenate([part.similarity for part in found])
    places = matches_of(rows, similarity, database)
    lat, lon = column(queries, "lat")[:, None], column(queries, "lon")[:, None]
    return Ranking(
        rows=rows,
        similarity=similarity,
        hamming=np.concatenate([part.hamming for part in found]),
        right=is_right(rows, right),
        distance_m=distance_m(lat, lon, places.lat, places.lon),
        first_hit=first_hits(rows, right),
        num_positives=np.asarray([len(answers) for answers in right], np.int64),
    )


def _summarise(
    ranking: Ranking, right: list[Rows], config: EvaluationConfig, latency: Latency
) -> MethodResult:
    recall = recall_at_k(ranking.rows, right, config.ks)
    num_queries, depth = ranking.rows.shape
    curve = np.bincount(ranking.first_hit, minlength=depth + 1)[:depth].cumsum() / num_queries
    errors = ranking.distance_m[:, 0]
    known = errors[~np.isnan(errors)]
    return MethodResult(
        recall=recall,
        curve=tuple(float(share) for share in curve),
        interval=wilson_interval(float(curve[0]), num_queries),
        median_error_m=float(np.median(known)) if len(known) else None,
        latency=latency,
    )
