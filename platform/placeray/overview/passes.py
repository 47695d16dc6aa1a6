"""The two passes over the columns of all inputs: the first counts, the second compares sets.

Image bytes are not read. The second pass exists because the positions of all evaluation photos must be known
before the first training photo can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from placeray import storage
from placeray.overview import answers, counting, leakage, placing
from placeray.overview.answers import AnswerFinder, QuerySampler
from placeray.overview.blocks import read_blocks
from placeray.overview.config import LookConfig
from placeray.overview.counting import PhotoCounter
from placeray.overview.figures import SourceFigures
from placeray.overview.leakage import EvaluationPhotos, Leaks
from placeray.overview.placing import PlaceCounter


@dataclass
class Source:
    """One source while it is being read."""

    name: str
    dataset: str
    split: str
    root: str
    counts: dict[str, Any]
    rule: dict[str, Any] | None
    photos: PhotoCounter
    places: PlaceCounter
    queries: QuerySampler
    positions: EvaluationPhotos = field(default_factory=EvaluationPhotos)

    @property
    def is_training(self) -> bool:
        """Whether its photos are trained on."""
        return self.split == "train"

    def figures(self) -> SourceFigures:
        """All that was counted."""
        names = ("read", "kept", "rejected", "places", "places_dropped_small", "photos_without_place")
        return SourceFigures(
            name=self.name,
            dataset=self.dataset,
            split=self.split,
            input=self.root,
            positive_rule=self.rule,
            **{name: self.counts[name] for name in names},
            **self.photos.figures(),
            **self.places.figures(),
        )


def open_sources(config: LookConfig, roots: list[str]) -> list[Source]:
    """All sources of all inputs, those of training first; a name that an earlier input uses too gets the number
    of its input behind it.
    """
    sources: list[Source] = []
    for number, root in enumerate(roots, start=1):
        manifest = storage.read_manifest(root)
        taken = {source.name for source in sources}
        for key, counts in manifest["counts"].items():
            dataset, _, split = key.rpartition("/")
            sources.append(
                Source(
                    name=f"{key} [{number}]" if key in taken else key,
                    dataset=dataset,
                    split=split,
                    root=root,
                    counts=counts,
                    rule=manifest["positive_rules"].get(key),
                    photos=PhotoCounter(config.dots_per_city),
                    places=PlaceCounter(config.places_per_source),
                    queries=QuerySampler(config.places_per_source),
                )
            )
    return sorted(sources, key=lambda source: not source.is_training)


def count_sources(config: LookConfig, roots: list[str], sources: list[Source]) -> None:
    """First pass: every column of every photo and place, once."""
    columns = list(dict.fromkeys(counting.COLUMNS + answers.COLUMNS))
    for root in roots:
        for block in read_blocks(storage.join(root, "images"), columns, config.rows_per_block):
            for source, rows in _by_source(block, root, sources):
                source.photos.add(rows)
                if not source.is_training:
                    source.positions.add(rows)
                    source.queries.add(rows)
        for block in read_blocks(storage.join(root, "places"), placing.COLUMNS, config.rows_per_block):
            training = block.append_column("split", pa.array(["train"] * block.num_rows, pa.string()))
            for source, rows in _by_source(training, root, sources):
                source.places.add(rows)


def compare_sources(
    config: LookConfig, roots: list[str], sources: list[Source]
) -> tuple[dict[tuple[str, str], Leaks], dict[str, list[AnswerFinder]]]:
    """Second pass: training positions against evaluation positions, and the answers to the sample queries."""
    leaks = {
        (training.name, other.name): Leaks(other.positions, config.leakage_radius_m)
        for training in sources
        for other in sources
        if training.is_training and not other.is_training and other.positions.tree is not None
    }
    finders = {
        source.name: [
            AnswerFinder(query, source.rule, config.photos_per_place - 1) for query in source.queries.samples
        ]
        for source in sources
    }
    if not leaks and not any(finders.values()):
        return leaks, finders
    columns = list(dict.fromkeys(leakage.COLUMNS + answers.COLUMNS))
    for root in roots:
        for block in read_blocks(storage.join(root, "images"), columns, config.rows_per_block):
            for source, rows in _by_source(block, root, sources):
                for finder in finders[source.name]:
                    finder.add(rows)
                for (training, _), leak in leaks.items():
                    if training == source.name:
                        leak.add(rows)
    return leaks, finders


def _by_source(block: pa.Table, root: str, sources: list[Source]) -> Iterator[tuple[Source, pa.Table]]:
    """The rows of each source of an input in a block."""
    there = {
        (row["dataset"], row["split"])
        for row in block.group_by(["dataset", "split"]).aggregate([]).to_pylist()
    }
    for source in sources:
        if source.root == root and (source.dataset, source.split) in there:
            of_source = pc.and_(
                pc.equal(block["dataset"], source.dataset), pc.equal(block["split"], source.split)
            )
            yield source, block.filter(of_source)
