"""A whole evaluation from folders to report and page: the comparison, re-runs, and what is refused."""

import json
import re

import pytest

from placeray import storage
from placeray.contracts import validate_document
from placeray.errors import ConfigError, DataError, MapError, StorageError
from placeray.evaluation.benchmark import EvaluationConfig
from placeray.evaluation.console import print_recall
from placeray.evaluation.gallery import GalleryConfig
from placeray.evaluation.history import training_curves
from placeray.evaluation.run import (
    BenchmarkConfig,
    PageConfig,
    SystemConfig,
    load_calibration,
    run_evaluation,
)
from placeray.metrics import RadiusRule

MEASURE = EvaluationConfig(ks=(1, 5, 10), shortlist=30, timed_singles=2, timed_batches=1)
BENCHMARK = BenchmarkConfig(name="street/all", measure=MEASURE)


def system(label, files) -> SystemConfig:
    return SystemConfig(label=label, map=files.map, queries=files.queries)


def test_two_systems_become_two_reports_and_one_page(make_system, images, tmp_path, capsys):
    systems = [
        system("untrained", make_system("a", noise=3.0)),
        system("trained", make_system("b", noise=0.8)),
    ]
    page = PageConfig(title="A <street>", notes=("made up & small",), images=(images,))
    output, said = str(tmp_path / "report"), []
    outcome = run_evaluation(BENCHMARK, systems, page, output, said.append)
    assert not outcome.already_finished
    assert [report.label for report in outcome.reports] == ["untrained", "trained"]
    assert said == [
        "untrained: 120 queries against 180 photos",
        "trained: 120 queries against 180 photos",
        "writing the page",
    ]
    for name in ("report.json", "baseline.json"):
        validate_document(storage.read_json(f"{output}/{name}"), "eval_report/v1")
    html = storage.read_text(outcome.page)
    assert "A &lt;street&gt;" in html
    assert "made up &amp; small" in html
    # The commonest reader looks for these: a photo for every figure, except the query whose file is gone.
    assert html.count("data:image/jpeg;base64,") + html.count('class="missing"') == html.count(
        'class="photo '
    )

    again = run_evaluation(BENCHMARK, systems, page, output, said.append)
    assert again.already_finished
    assert again.reports == outcome.reports
    assert len(said) == 3
    other = run_evaluation(BENCHMARK, systems, page.model_copy(update={"title": "B"}), output, said.append)
    assert not other.already_finished

    print_recall(outcome.reports)
    printed = capsys.readouterr().out
    best = outcome.reports[-1].methods["two_stage"].recall.at(1)
    assert re.search(rf"Two-stage\s.*{best * 100:.1f}", printed)


def test_every_planned_example_is_there_failures_included(make_system, images, tmp_path):
    systems = [
        system("untrained", make_system("a", noise=3.0)),
        system("trained", make_system("b", noise=1.3)),
    ]
    gallery = GalleryConfig(examples=6, failures=2, answers=3, thumbnail_px=40)
    outcome = run_evaluation(
        BENCHMARK, systems, PageConfig(images=(images,), gallery=gallery), str(tmp_path / "r")
    )
    html = storage.read_text(outcome.page)
    assert html.count('<article class="card">') == 6
    assert html.count('<span class="badge wrong">not found</span>') == 2
    assert html.count('<span class="badge right">found</span>') == 4
    assert html.count('<figure class="photo right"') + html.count('<figure class="photo wrong"') == 6 * 2 * 3


def test_a_query_list_may_stand_alone_without_photos(make_system, tmp_path):
    outcome = run_evaluation(
        BENCHMARK, [system("only", make_system("a", noise=0.5))], PageConfig(), str(tmp_path / "r")
    )
    assert "photo not available" in storage.read_text(outcome.page)
    assert storage.read_manifest(str(tmp_path / "r"))["reports"] == ["report.json"]


def test_calibration_is_found_again_for_its_own_model_only(make_system, tmp_path):
    files = make_system("a", noise=1.2)
    output = str(tmp_path / "report")
    with pytest.raises(StorageError, match=r"no manifest.json"):
        load_calibration(output, "m")
    report = run_evaluation(BENCHMARK, [system("only", files)], PageConfig(), output).reports[-1]
    calibration, note = load_calibration(output, report.model["id"])
    assert calibration == report.confidence
    assert "tested on" in note
    with pytest.raises(DataError, match="evaluate the map of this model"):
        load_calibration(output, "0" * 64)


def test_queries_of_another_model_are_refused(make_system, tmp_path):
    one, two = make_system("a", noise=0.5), make_system("b", noise=0.6)
    mixed = SystemConfig(label="mixed", map=one.map, queries=two.queries)
    with pytest.raises(MapError, match="model_id"):
        run_evaluation(BENCHMARK, [mixed], PageConfig(), str(tmp_path / "r"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_asked(make_system, tmp_path):
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    with pytest.raises(StorageError, match=r"cannot write .*/file/r/page\.html: .*/file: Not a directory"):
        run_evaluation(
            BENCHMARK,
            [system("only", make_system("a", noise=0.5))],
            PageConfig(),
            str(tmp_path / "file" / "r"),
            said.append,
        )
    assert said == []


def test_a_rule_must_be_known_and_labels_must_differ(make_system, tmp_path):
    files = make_system("a", noise=0.5)
    manifest = storage.read_manifest(files.queries)
    storage.commit_manifest(
        files.queries, {**manifest, "properties": {**manifest["properties"], "positive_rule": None}}
    )
    with pytest.raises(ConfigError, match=r"state benchmark.rule"):
        run_evaluation(BENCHMARK, [system("only", files)], PageConfig(), str(tmp_path / "r"))
    stated = BenchmarkConfig(name="street/all", measure=MEASURE, rule=RadiusRule())
    run_evaluation(stated, [system("only", files)], PageConfig(), str(tmp_path / "r"))
    with pytest.raises(ConfigError, match="different labels"):
        run_evaluation(BENCHMARK, [system("x", files), system("x", files)], PageConfig(), str(tmp_path / "r"))


def test_training_curves_come_from_the_cards(tmp_path):
    card = {
        "contract": "checkpoint_card/v1",
        "model_id": "a" * 64,
        "model": {},
        "preprocessing": "platform-56",
        "recipe": None,
        "data_fingerprint": None,
        "metrics": {},
        "created_at": "2026-01-01T00:00:00+00:00",
        "history": [
            {"epoch": 1.0, "train/loss": 2.0},
            {"epoch": 2.0, "train/loss": 1.5, "msls-val/two_stage/recall_at_1": 0.5, "seconds": 3.0},
        ],
    }
    folders = {"float": str(tmp_path / "float"), "untrained": str(tmp_path / "untrained")}
    storage.write_text(f"{folders['float']}/card.json", json.dumps(card))
    storage.write_text(f"{folders['untrained']}/card.json", json.dumps({**card, "history": []}))
    loss, recall = training_curves(folders)
    assert (loss.title, loss.lines) == ("Training loss", (("float", [1.0, 2.0], [2.0, 1.5]),))
    assert (recall.title, recall.lines) == (
        "Validation recall@1, msls-val two-stage",
        (("float", [2.0], [0.5]),),
    )
