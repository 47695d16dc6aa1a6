"""A whole evaluation: open maps and queries, evaluate one system or two, write reports and page, once.

<output>/report.json     [eval_report/v1] of the system
<output>/baseline.json   [eval_report/v1] of what it is compared with, when there is one
<output>/page.html       the self-contained page
<output>/manifest.json   written last: the key of what was evaluated; the same key again is nothing to do
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from placeray import __version__, storage
from placeray.config import Config
from placeray.contracts import validate_table
from placeray.errors import ConfigError, DataError
from placeray.evaluation.benchmark import EvaluationConfig, evaluate_map
from placeray.evaluation.confidence import Calibration
from placeray.evaluation.gallery import (
    GalleryConfig,
    System,
    build_examples,
    build_ground,
    choose_queries,
    wanted_ids,
)
from placeray.evaluation.history import training_curves
from placeray.evaluation.page import render_page
from placeray.evaluation.page_data import Page
from placeray.evaluation.photos import load_photos, thumbnails
from placeray.evaluation.report import CONTRACT, EvalReport
from placeray.metrics import ExactRule, FramesRule, PositiveRule, RadiusRule, parse_rule
from placeray.retrieval.place_map import PlaceMap

REPORT_FILE, BASELINE_FILE, PAGE_FILE = "report.json", "baseline.json", "page.html"
Rule = RadiusRule | FramesRule | ExactRule
Say = Callable[[str], None]


class SystemConfig(Config):
    """One model with the map and the queries it described."""

    label: str = Field(min_length=1, description="how the page calls it, such as trained")
    map: str = Field(min_length=1, description="map that the index job wrote, local or s3://")
    queries: str = Field(min_length=1, description="descriptors folder of the queries, from the same model")


class BenchmarkConfig(Config):
    """What is asked, and which answers are right."""

    name: str = Field(min_length=1, description="data set and query list, such as msls-val/official-740")
    rule: PositiveRule | None = Field(
        default=None, description="which answers are right; null: what the queries' manifest says"
    )
    measure: EvaluationConfig = Field(
        default=EvaluationConfig(), description="recall, shortlist, timing, confidence"
    )


class PageConfig(Config):
    """The HTML page."""

    title: str = Field(default="Place recognition", min_length=1, description="line above the headline")
    notes: tuple[str, ...] = Field(
        default=(), description="what a reader must know before believing a figure"
    )
    images: tuple[str, ...] = Field(
        default=(), description="images/v1 folders with the photos of map and queries"
    )
    gallery: GalleryConfig = Field(default=GalleryConfig(), description="which examples are shown")
    training: Mapping[str, str] = Field(
        default={}, description="label -> checkpoint folder whose training history is drawn"
    )


@dataclass(frozen=True)
class Outcome:
    """Reports from baseline to system, and where the page is."""

    reports: tuple[EvalReport, ...]
    page: str
    already_finished: bool

    @property
    def files(self) -> tuple[str, ...]:
        """The page and the documents of the reports."""
        folder = self.page.removesuffix(PAGE_FILE)
        return (self.page, *(folder + name for name in [BASELINE_FILE, REPORT_FILE][-len(self.reports) :]))


def run_evaluation(
    benchmark: BenchmarkConfig,
    systems: Sequence[SystemConfig],
    page: PageConfig,
    output: str,
    say: Say = print,
) -> Outcome:
    """Evaluate the last of `systems`, compared with the first when there are two, and write `output`.

    Raises:
        StorageError: a map or descriptors folder is not finished, or `output` cannot be written.
        MapError: queries and map come from different models.
        ConfigError: neither the config nor the queries say which answers are right, or a label is used twice.
    """
    if not 1 <= len(systems) <= 2 or len({system.label for system in systems}) < len(systems):
        raise ConfigError("an evaluation has one system, or two with different labels")
    key = _key(benchmark, systems, page)
    finished = finished_evaluation(output, key)
    if finished is not None:
        return finished
    storage.check_can_write(storage.join(output, PAGE_FILE))
    evaluated = [_evaluate(system, benchmark, say) for system in systems]
    queries = evaluated[-1][1]
    if any(table.column("image_id") != queries.column("image_id") for _, table in evaluated):
        raise DataError(
            f"{systems[0].queries} and {systems[-1].queries} are not descriptors of the same query photos"
        )
    reports = [system.report for system, _ in evaluated]
    say("writing the page")
    html = render_page(_fill_page([system for system, _ in evaluated], queries, page))
    names = [BASELINE_FILE, REPORT_FILE][-len(reports) :]
    for name, report in zip(names, reports, strict=True):
        storage.write_json(storage.join(output, name), report.to_document())
    storage.write_text(storage.join(output, PAGE_FILE), html)
    storage.commit_manifest(output, {"contract": CONTRACT, "key": key, "reports": names, "page": PAGE_FILE})
    return Outcome(tuple(reports), storage.resolve(storage.join(output, PAGE_FILE)), already_finished=False)


def finished_evaluation(output: str, key: str) -> Outcome | None:
    """What an earlier run with the same key wrote, or None."""
    if not storage.has_manifest(output):
        return None
    manifest = storage.read_manifest(output)
    if manifest.get("key") != key:
        return None
    reports = [
        EvalReport.from_document(storage.read_json(storage.join(output, name)))
        for name in manifest["reports"]
    ]
    return Outcome(
        tuple(reports), storage.resolve(storage.join(output, manifest["page"])), already_finished=True
    )


def load_calibration(folder: str, model_id: str) -> tuple[Calibration | None, str]:
    """The calibration an evaluation of this model stored, and its note.

    Raises:
        StorageError: the evaluation has not finished.
        DataError: it belongs to another model, whose similarities mean something else.
    """
    storage.read_manifest(folder)
    report = EvalReport.from_document(storage.read_json(storage.join(folder, REPORT_FILE)))
    if report.model["id"] != model_id:
        raise DataError(
            f"the evaluation {storage.resolve(folder)} is of model {report.model['id'][:12]}, the queries "
            f"are of {model_id[:12]}: evaluate the map of this model, or leave the calibration out"
        )
    return report.confidence, report.confidence_note


def read_queries(folder: str) -> tuple[pa.Table, Mapping[str, Any]]:
    """All rows of a finished descriptors folder and its manifest."""
    manifest = storage.read_manifest(folder)
    parts = [
        storage.read_table(storage.join(folder, entry["path"]))
        for entry in manifest["files"]
        if entry["rows"]
    ]
    if not parts:
        raise DataError(f"{storage.resolve(folder)} holds no descriptors")
    for part in parts:
        validate_table(part, "descriptors/v1")
    return pa.concat_tables(parts), manifest


def _evaluate(system: SystemConfig, benchmark: BenchmarkConfig, say: Say) -> tuple[System, pa.Table]:
    queries, manifest = read_queries(system.queries)
    properties = manifest["properties"]
    rule = benchmark.rule or _rule_of(properties, system.queries)
    with PlaceMap.open(system.map) as place_map:
        model = (properties[name] for name in ("model_id", "code_bits", "descriptor_dim", "preprocessing"))
        place_map.check_model(*model)
        say(f"{system.label}: {queries.num_rows} queries against {place_map.num_live} photos")
        report = evaluate_map(
            place_map,
            queries,
            rule,
            benchmark.measure,
            name=benchmark.name,
            label=system.label,
            map_uri=system.map,
            inputs={
                "map_version": place_map.version,
                "map_build_key": place_map.manifest["build_key"],
                "queries": system.queries,
                "queries_fingerprint": manifest["fingerprint"],
            },
        )
        return System(report, place_map.rows(["image_id", "lat", "lon", "frame"])), queries


def _rule_of(properties: Mapping[str, Any], queries: str) -> Rule:
    if not properties.get("positive_rule"):
        raise ConfigError(
            f"the manifest of {storage.resolve(queries)} names no positive rule; state benchmark.rule, "
            "such as {kind: radius, radius_m: 25}"
        )
    return parse_rule(properties["positive_rule"])


def _fill_page(systems: Sequence[System], queries: pa.Table, page: PageConfig) -> Page:
    chosen = choose_queries(systems, page.gallery)
    photos = load_photos(page.images, wanted_ids(systems, queries, chosen, page.gallery))
    small = thumbnails(photos, width_px=page.gallery.thumbnail_px)
    return Page(
        title=page.title,
        reports=tuple(system.report for system in systems),
        examples=build_examples(systems, queries, chosen, small, page.gallery),
        ground=build_ground(systems[-1], queries),
        notes=page.notes,
        training=training_curves(page.training),
    )


def _key(benchmark: BenchmarkConfig, systems: Sequence[SystemConfig], page: PageConfig) -> str:
    """Changes with the configuration, with what maps and queries hold, and with the code's version."""
    contents = []
    for system in systems:
        with PlaceMap.open(system.map) as place_map:
            contents.append([place_map.version, place_map.manifest["build_key"]])
        contents.append([storage.read_manifest(system.queries)["fingerprint"]])
    contents.extend([storage.read_manifest(folder)["fingerprint"]] for folder in page.images)
    configs = [part.model_dump(mode="json") for part in (benchmark, *systems, page)]
    text = json.dumps([__version__, configs, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
