"""EvalReport: everything one evaluation found, in memory and as the document eval_report/v1."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from placeray.contracts import validate_document
from placeray.evaluation.confidence import Calibration
from placeray.evaluation.latency import Latency, StageTime
from placeray.metrics import Recall

Method = Literal["binary", "two_stage", "exhaustive"]
METHOD_TITLES: dict[Method, str] = {
    "binary": "Binary only",
    "two_stage": "Two-stage",
    "exhaustive": "Exhaustive float",
}
CONTRACT = "eval_report/v1"


@dataclass(frozen=True)
class Ranking:
    """The answers of one method to all Q queries, K each, best first. Kept in memory, not in the document."""

    rows: NDArray[np.int64]  # (Q, K) rows of the map; -1 pads
    similarity: NDArray[np.float32]  # (Q, K) cosine, or 1 - 2 * hamming / bits for binary only
    hamming: NDArray[np.int32]  # (Q, K) differing bits; -1 where the method has no codes
    right: NDArray[np.bool_]  # (Q, K) within the positive rule
    distance_m: NDArray[np.float64]  # (Q, K) to the true position; NaN where a position is unknown
    first_hit: NDArray[np.int64]  # (Q,) rank of the first right answer, K if none
    num_positives: NDArray[np.int64]  # (Q,) right answers there are in the map


@dataclass(frozen=True)
class MethodResult:
    """One way to search: how often right, how far off, how long it takes."""

    recall: Recall
    curve: tuple[float, ...]  # recall over all queries at k = 1, 2, ... depth
    interval: tuple[float, float]  # 95 % Wilson interval of recall@1
    median_error_m: float | None  # distance of the best match to the truth; None without positions
    latency: Latency


@dataclass(frozen=True)
class MapFacts:
    """What was searched and what it occupies."""

    uri: str
    photos: int
    code_bytes: int
    descriptor_bytes: int

    @property
    def bytes_per_photo(self) -> float:
        """Codes and descriptors together."""
        return (self.code_bytes + self.descriptor_bytes) / max(self.photos, 1)


@dataclass(frozen=True)
class EvalReport:
    """One model on one map with one list of queries."""

    name: str
    label: str
    created_at: str
    model: Mapping[str, Any]  # id, preprocessing, code_bits, descriptor_dim
    map: MapFacts
    positive_rule: Mapping[str, Any]
    num_queries: int
    num_with_positive: int
    shortlist: int
    methods: Mapping[Method, MethodResult]
    confidence: Calibration | None
    confidence_note: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    rankings: Mapping[Method, Ranking] = field(default_factory=dict, compare=False, repr=False)

    @property
    def best_method(self) -> Method:
        """What a user of the map would run: two-stage where both branches are there."""
        return next(method for method in ("two_stage", "exhaustive", "binary") if method in self.methods)

    def metrics(self) -> dict[str, float]:
        """Flat figures for a tracker, such as `two_stage/recall_at_1`."""
        figures: dict[str, float] = {}
        for method, result in self.methods.items():
            for k, share in zip(result.recall.ks, result.recall.all, strict=True):
                figures[f"{method}/recall_at_{k}"] = share
            figures[f"{method}/single_median_ms"] = result.latency.single["total"].median_ms
            figures[f"{method}/batch_median_ms"] = result.latency.batch["total"].median_ms
        figures["map/bytes_per_photo"] = self.map.bytes_per_photo
        return figures

    def to_document(self) -> dict[str, Any]:
        """The JSON document, checked against eval_report/v1; rankings are left out."""
        document: dict[str, Any] = {
            "contract": CONTRACT,
            "name": self.name,
            "label": self.label,
            "created_at": self.created_at,
            "model": dict(self.model),
            "map": {**asdict(self.map), "bytes_per_photo": self.map.bytes_per_photo},
            "positive_rule": dict(self.positive_rule),
            "queries": {"count": self.num_queries, "with_positive": self.num_with_positive},
            "shortlist": self.shortlist,
            "methods": {method: _method_document(result) for method, result in self.methods.items()},
            "confidence": self.confidence.to_document() if self.confidence else None,
            "confidence_note": self.confidence_note,
            "config": dict(self.config),
            "inputs": dict(self.inputs),
        }
        document = _plain(document)
        validate_document(document, CONTRACT)
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Back from the document; raises ContractError when it is not an eval_report/v1."""
        validate_document(document, CONTRACT)
        facts = {key: value for key, value in document["map"].items() if key != "bytes_per_photo"}
        confidence = document["confidence"]
        return cls(
            name=document["name"],
            label=document["label"],
            created_at=document["created_at"],
            model=document["model"],
            map=MapFacts(**facts),
            positive_rule=document["positive_rule"],
            num_queries=document["queries"]["count"],
            num_with_positive=document["queries"]["with_positive"],
            shortlist=document["shortlist"],
            methods={
                method: _method_from(document["methods"][method], document["queries"])
                for method in METHOD_TITLES  # the order of the document is that of its keys
                if method in document["methods"]
            },
            confidence=Calibration.from_document(confidence) if confidence else None,
            confidence_note=document["confidence_note"],
            config=document["config"],
            inputs=document["inputs"],
        )


def _method_document(result: MethodResult) -> dict[str, Any]:
    return {
        "recall": {
            "ks": result.recall.ks,
            "all": result.recall.all,
            "with_positive": result.recall.with_positive,
        },
        "curve": result.curve,
        "interval": result.interval,
        "median_error_m": result.median_error_m,
        "latency": asdict(result.latency),
    }


def _method_from(part: Mapping[str, Any], queries: Mapping[str, int]) -> MethodResult:
    recall = part["recall"]
    timing = part["latency"]
    return MethodResult(
        recall=Recall(
            ks=tuple(recall["ks"]),
            all=tuple(recall["all"]),
            with_positive=tuple(
                float("nan") if share is None else share for share in recall["with_positive"]
            ),
            num_queries=queries["count"],
            num_with_positive=queries["with_positive"],
        ),
        curve=tuple(part["curve"]),
        interval=(part["interval"][0], part["interval"][1]),
        median_error_m=part["median_error_m"],
        latency=Latency(
            single={stage: StageTime(**spent) for stage, spent in timing["single"].items()},
            batch={stage: StageTime(**spent) for stage, spent in timing["batch"].items()},
            batch_size=timing["batch_size"],
        ),
    )


def _plain(value: Any) -> Any:
    """JSON has no tuples and no NaN: lists and null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
