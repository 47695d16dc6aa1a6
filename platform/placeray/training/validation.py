"""Judge a model that is being trained: recall on held-out sets, by plain numpy on their descriptors.

Shape letters: `Q` queries, `N` database photos, `S` shortlist, `D` descriptor.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import DataError
from placeray.metrics import POSITION_COLUMNS, Rows, parse_rule, positives, recall_at_k
from placeray.model.describe import Described, describe
from placeray.model.precision import Precision
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.model.selavpr import SelaVPR
from placeray.training.config import ValidationConfig, ValidationSetConfig
from placeray.training.gather import rank, world_size

KS = (1, 5, 10)
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ValidationSet:
    """A held-out set in memory: encoded photos and, for every query, the database rows that are right."""

    name: str
    database: list[bytes]
    queries: list[bytes]
    right: list[Rows]


def load_validation_set(normalized: str, config: ValidationSetConfig) -> ValidationSet:
    """Read the database and query photos of one set from a folder of normalized data.

    Raises:
        DataError: the set is missing, has no photos or no bytes, or no rule says which answers are right.
    """
    key = f"{config.dataset}/{config.split}"
    rules = storage.read_manifest(normalized).get("positive_rules", {})
    if key not in rules:
        raise DataError(f"validation set {config.name}: {normalized} has no {key}; it has {sorted(rules)}")
    database = _photos(normalized, config, "database")
    queries = _photos(normalized, config, "query").slice(0, config.max_queries)
    right = positives(parse_rule(rules[key]), database, queries)
    if not any(len(rows) for rows in right):
        raise DataError(f"validation set {config.name}: no query of {key} has a right answer in its database")
    return ValidationSet(
        config.name, database.column("image").to_pylist(), queries.column("image").to_pylist(), right
    )


def judge(
    model: SelaVPR,
    sets: Sequence[ValidationSet],
    config: ValidationConfig,
    preprocess: PreprocessConfig,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """Recall of every stage that the model has, as `<set>/<stage>/recall_at_<k>` in 0..1, on every rank.

    The photos are shared out over the ranks; mode and chosen branches of the model are as before afterwards.
    """
    metrics: dict[str, float] = {}
    chosen = model.branches
    model.set_branches(float=True, code=chosen.code)
    try:
        for item in sets:
            database = describe_photos(model, item.database, config.batch_size, preprocess, precision)
            queries = describe_photos(model, item.queries, config.batch_size, preprocess, precision)
            metrics.update(recalls(item, database, queries, config.shortlist))
    finally:
        model.set_branches(float=chosen.float, code=chosen.code)
    return metrics


def score(metrics: dict[str, float], config: ValidationConfig) -> float:
    """R@1 + R@5 that picks the best epoch: of two-stage retrieval where there is one, else of the only stage."""
    names = [config.best_by] if config.best_by else [item.name for item in config.sets]
    return float(np.mean([_score_of(metrics, name) for name in names]))


def code_score(metrics: dict[str, float], config: ValidationConfig) -> float:
    """R@1 + R@5 of the codes alone, which decides between epochs of equal `score`; 0 for a model without codes.

    On a small map the shortlist holds nearly everything: re-ranking then hides how good the codes are.
    """
    names = [config.best_by] if config.best_by else [item.name for item in config.sets]
    keys = [f"{name}/binary/recall_at_{k}" for name in names for k in (1, 5)]
    return sum(metrics.get(key, 0.0) for key in keys) / len(names)


def recalls(item: ValidationSet, database: Described, queries: Described, shortlist: int) -> dict[str, float]:
    """Recall of the stages that these descriptors allow: float (exhaustive), binary, two_stage."""
    ranked: dict[str, Rows] = {}
    depth = min(max(KS), len(item.database))
    if database.float is not None and queries.float is not None:
        ranked["float"] = _by_similarity(queries.float, database.float, depth)
    if database.codes is not None and queries.codes is not None:
        first = _by_hamming(queries.codes, database.codes, max(depth, min(shortlist, len(item.database))))
        ranked["binary"] = first[:, :depth]
        if database.float is not None and queries.float is not None:
            ranked["two_stage"] = _rerank(queries.float, first, database.float)[:, :depth]
    ks = [k for k in KS if k <= depth]
    return {
        f"{item.name}/{stage}/recall_at_{k}": value
        for stage, rows in ranked.items()
        for k, value in zip(ks, recall_at_k(rows, item.right, ks).all, strict=True)
    }


def describe_photos(
    model: SelaVPR,
    photos: Sequence[bytes],
    batch_size: int,
    preprocess: PreprocessConfig,
    precision: Precision,
) -> Described:
    """Describe encoded photos in order; each rank takes every W-th batch and all ranks get all rows."""
    starts = range(0, len(photos), batch_size)
    own = [photos[start : start + batch_size] for start in starts[rank() :: world_size()]]
    parts = [describe(model, batch, precision) for batch in _decoded(own, preprocess)]
    every = _collect(parts)
    # Batch b was described by rank b mod W as its (b div W)-th.
    ordered = [every[number % world_size()][number // world_size()] for number in range(len(starts))]
    return Described(_stack([part.float for part in ordered]), _stack([part.codes for part in ordered]))


def _decoded(batches: Sequence[Sequence[bytes]], preprocess: PreprocessConfig) -> Iterator[torch.Tensor]:
    """(B, 3, H, W) inputs; the next batch is decoded while this one is described."""

    def load(batch: Sequence[bytes]) -> torch.Tensor:
        return torch.stack([decode_to_input(data, preprocess) for data in batch])

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            current = waiting.pop()
            if number + 1 < len(batches):
                waiting.append(pool.submit(load, batches[number + 1]))
            yield current.result()


def _collect(parts: list[Described]) -> list[list[Described]]:
    if world_size() == 1:
        return [parts]
    every: list[list[Described]] = [[] for _ in range(world_size())]
    dist.all_gather_object(every, parts)
    return every


def _stack(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _by_similarity(queries: NDArray[np.float32], database: NDArray[np.float32], depth: int) -> Rows:
    return _ranked(len(queries), depth, lambda own: -(queries[own] @ database.T))


def _by_hamming(queries: NDArray[np.uint8], database: NDArray[np.uint8], depth: int) -> Rows:
    """Bits as +-1 turn Hamming distance into a product: q . d = bits - 2 * hamming; float32 holds it exactly."""
    signs = np.unpackbits(database, axis=1).astype(np.float32) * 2 - 1
    asked = np.unpackbits(queries, axis=1).astype(np.float32) * 2 - 1
    return _ranked(len(queries), depth, lambda own: -(asked[own] @ signs.T))


def _ranked(num_queries: int, depth: int, distance: Callable[[slice], NDArray[np.float32]]) -> Rows:
    """(Q, depth) rows by ascending distance; equal distances keep row order."""
    blocks = [slice(start, start + _QUERIES_AT_ONCE) for start in range(0, num_queries, _QUERIES_AT_ONCE)]
    ranked = [np.argsort(distance(own), axis=1, kind="stable")[:, :depth] for own in blocks]
    return np.concatenate(ranked).astype(np.int64)


def _rerank(queries: NDArray[np.float32], shortlist: Rows, database: NDArray[np.float32]) -> Rows:
    """(Q, S) the shortlist by descending similarity; equal similarities keep their stage-1 order."""
    similarity = np.stack([database[rows] @ query for query, rows in zip(queries, shortlist, strict=True)])
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.take_along_axis(shortlist, order, axis=1)


def _score_of(metrics: dict[str, float], name: str) -> float:
    stage = next(s for s in ("two_stage", "float", "binary") if f"{name}/{s}/recall_at_1" in metrics)
    at_1 = metrics[f"{name}/{stage}/recall_at_1"]
    return at_1 + metrics.get(f"{name}/{stage}/recall_at_5", at_1)


def _photos(normalized: str, config: ValidationSetConfig, role: str) -> pa.Table:
    folder = storage.join(normalized, "images", config.dataset, f"{config.split}-{role}")
    where = f"validation set {config.name}: {folder}"
    if not storage.exists(folder):
        raise DataError(f"{where} is not there: normalize did not write this set")
    columns = [*POSITION_COLUMNS, "image_id", "image"]
    tables = [storage.read_table(file, columns) for file in storage.list_files(folder, ".parquet")]
    table = pa.concat_tables(tables) if tables else None
    if table is None or table.num_rows == 0:
        raise DataError(f"{where} holds no photo")
    if table.column("image").null_count:
        raise DataError(f"{where} names photos without their bytes: normalize this set with the bytes inside")
    return table
