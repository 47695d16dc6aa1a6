"""Two checkpoints on one evaluation set: both describe its photos, each gets a map, one evaluation compares them.

    <output>/<dataset>-<split>/<model id>/{database,queries,map}   kept, so that a champion is described once
    <output>/<dataset>-<split>/reports/<key>/                      report.json, baseline.json, page.html

Every step is that of the embed, index and evaluate jobs: finished ones are not done again, broken ones go on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from placeray import storage
from placeray.cluster.embedding import Workers, embed
from placeray.cluster.indexing import build_index
from placeray.evaluation.benchmark import EvaluationConfig
from placeray.evaluation.run import BenchmarkConfig, Outcome, PageConfig, SystemConfig, run_evaluation
from placeray.jobspecs.embed import PhotoSelection
from placeray.jobspecs.promote import EvaluationSetConfig
from placeray.model.describe import EmbedConfig
from placeray.retrieval.plan import IndexConfig


class Contestant(NamedTuple):
    """One model of a comparison."""

    label: str
    checkpoint: str
    model_id: str
    preprocessing: str
    registered: Mapping[str, str] | None = None


def compare(
    contestants: Sequence[Contestant],
    evaluated: EvaluationSetConfig,
    output: str,
    *,
    embed_config: EmbedConfig = EmbedConfig(),  # noqa: B008  (frozen)
    measure: EvaluationConfig = EvaluationConfig(),  # noqa: B008  (frozen)
    workers: Workers = Workers(),  # noqa: B008  (immutable)
) -> Outcome:
    """Evaluate the last of one or two contestants, compared with the first.

    Args:
        evaluated: photos with a database, queries and a rule in a normalized data set.
        output:    local folder of maps and reports.

    Raises:
        StorageError: the data set or a checkpoint is not finished.
        DataError: the set has no photos of a role.
        ConfigError: the set states no positive rule.
    """
    root = storage.join(storage.resolve(output), f"{evaluated.dataset}-{evaluated.split}".replace("/", "-"))
    systems = [_system(item, evaluated, root, embed_config, workers) for item in contestants]
    benchmark = BenchmarkConfig(name=f"{evaluated.dataset}/{evaluated.split}", measure=measure)
    key = hashlib.sha256("\n".join(system.map for system in systems).encode()).hexdigest()[:16]
    title = " against ".join(item.label for item in contestants[::-1])
    page = PageConfig(title=title, images=(storage.join(evaluated.normalized, "images"),))
    return run_evaluation(benchmark, systems, page, storage.join(root, "reports", key))


def _system(
    contestant: Contestant,
    evaluated: EvaluationSetConfig,
    root: str,
    config: EmbedConfig,
    workers: Workers,
) -> SystemConfig:
    folder = storage.join(root, f"{contestant.model_id[:16]}-{contestant.preprocessing}-{config.precision}")
    for role, name in (("database", "database"), ("query", "queries")):
        select = PhotoSelection(dataset=evaluated.dataset, split=evaluated.split, role=role)
        described = embed(
            config,
            evaluated.normalized,
            contestant.checkpoint,
            storage.join(folder, name),
            select=select,
            workers=workers,
            registered=contestant.registered,
        )
        print(described.line())
    built = build_index(
        IndexConfig(),
        storage.join(folder, "database"),
        storage.join(folder, "map"),
        num_workers=workers.num_workers,
        num_cpus=workers.cpus,
    )
    print(built.line())
    return SystemConfig(
        label=contestant.label, map=storage.join(folder, "map"), queries=storage.join(folder, "queries")
    )
