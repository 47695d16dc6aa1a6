"""evaluate_map against a slow twin, on maps with both branches, codes only and floats only."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from placeray.contracts import validate_document
from placeray.errors import DataError
from placeray.evaluation.benchmark import EvaluationConfig, Queries, evaluate_map
from placeray.evaluation.report import EvalReport
from placeray.evaluation.run import read_queries
from placeray.metrics import FramesRule, RadiusRule
from placeray.retrieval.place_map import PlaceMap

CONFIG = EvaluationConfig(ks=(1, 5, 10), shortlist=20, batch_size=37, timed_singles=3, timed_batches=2)


def evaluate(files, rule=None, config=CONFIG) -> EvalReport:
    table, _ = read_queries(files.queries)
    with PlaceMap.open(files.map) as place_map:
        return evaluate_map(
            place_map, table, rule or RadiusRule(), config, name="street/all", label="made up"
        )


def test_recall_of_every_method_equals_the_loop(make_system, world):
    """All pairs, sorted in plain Python, by the codes and floats the queries hold and the map stores."""
    files = make_system("both", noise=1.4)
    report = evaluate(files)
    queries = Queries.of(read_queries(files.queries)[0])
    with PlaceMap.open(files.map) as place_map:
        order = place_map.rows(["image_id"])["image_id"].to_pylist()
        everything = place_map.search(queries.codes, queries.descriptors, top_k=180, shortlist=180)
        cosine = place_map.search(None, queries.descriptors, top_k=180, exhaustive=True)
    row_east = np.asarray([world.map_east[int(name[1:])] for name in order])
    assert set(report.methods) == {"binary", "two_stage", "exhaustive"}
    for k in CONFIG.ks:
        hits = {"binary": 0, "two_stage": 0, "exhaustive": 0}
        for q, east in enumerate(world.query_east):
            bits = {
                int(row): int(d) for row, d in zip(everything.rows[q], everything.hamming[q], strict=True)
            }
            near = {int(row): float(s) for row, s in zip(cosine.rows[q], cosine.similarity[q], strict=True)}
            by_bits = sorted(bits, key=lambda row: (bits[row], row))
            short = by_bits[: CONFIG.shortlist]
            ranked = {
                "binary": by_bits,
                "two_stage": sorted(short, key=lambda row: -near[row]),
                "exhaustive": sorted(near, key=lambda row: -near[row]),
            }
            for method, rows in ranked.items():
                hits[method] += any(abs(row_east[row] - east) <= 25 for row in rows[:k])
        for method, count in hits.items():
            assert report.methods[method].recall.at(k) == pytest.approx(count / len(world.query_east)), (
                method,
                k,
            )
    assert 0.2 < report.methods["two_stage"].recall.at(1) < 1.0  # the task is neither trivial nor hopeless
    assert report.methods["binary"].recall.at(1) < report.methods["two_stage"].recall.at(1)


def test_report_states_counts_memory_latency_and_distance(make_system, world):
    report = evaluate(make_system("both", noise=0.3))
    assert (report.num_queries, report.num_with_positive, report.map.photos) == (120, 120, 180)
    assert report.map.code_bytes == 180 * 16
    assert report.map.descriptor_bytes >= 180 * (32 + 4)  # int8 and a float32 scale
    result = report.methods["two_stage"]
    assert result.recall.all == (1.0, 1.0, 1.0)
    assert result.curve[0] == result.recall.at(1)
    assert len(result.curve) == max(CONFIG.ks)
    assert 0 < result.median_error_m < 10.1  # both sides lie at most 5 m from the middle of the place
    assert {"first_stage", "gather", "rerank", "total"} <= set(result.latency.single)
    assert set(report.methods["exhaustive"].latency.batch) == {"exhaustive", "total"}
    assert result.latency.batch_size == 37
    for spent in (*result.latency.single.values(), *result.latency.batch.values()):
        assert 0 <= spent.median_ms <= spent.p95_ms
    assert report.metrics()["two_stage/recall_at_5"] == 1.0


def test_document_fits_its_contract_and_comes_back_equal(make_system):
    report = evaluate(make_system("both", noise=1.0))
    document = json.loads(json.dumps(report.to_document(), allow_nan=False))
    validate_document(document, "eval_report/v1")
    assert EvalReport.from_document(document) == report


def test_queries_outside_the_map_count_as_wrong_and_are_stated(make_system, world):
    files = make_system("both", noise=0.3)
    table, _ = read_queries(files.queries)
    shifted = table.set_column(
        table.column_names.index("utm_east"),
        "utm_east",
        [[*(east + 150.0 for east in world.query_east[:30]), *world.query_east[30:]]],
    )
    with PlaceMap.open(files.map) as place_map:
        report = evaluate_map(place_map, shifted, RadiusRule(), CONFIG, name="street/some-outside")
    recall = report.methods["two_stage"].recall
    assert (report.num_queries, report.num_with_positive) == (120, 90)
    assert (recall.at(1), recall.with_positive[0]) == (0.75, 1.0)


@pytest.mark.parametrize(
    ("branches", "methods"), [({"floats": False}, ["binary"]), ({"codes": False}, ["exhaustive"])]
)
def test_a_model_with_one_branch_is_evaluated_by_it(make_system, branches, methods):
    report = evaluate(make_system("one", noise=0.8, **branches))
    assert list(report.methods) == methods
    assert report.best_method == methods[0]
    ranking = report.rankings[methods[0]]
    assert np.isfinite(ranking.similarity).all()
    assert np.abs(ranking.similarity).max() <= 1.001  # int8 descriptors are unit length up to rounding
    assert (np.diff(ranking.similarity, axis=1) <= 1e-6).all()
    EvalReport.from_document(report.to_document())


def test_codes_alone_have_the_cosine_of_their_signs(make_system):
    files = make_system("codes", noise=0.8, floats=False)
    ranking = evaluate(files).rankings["binary"]
    asked = np.unpackbits(Queries.of(read_queries(files.queries)[0]).codes, axis=1)[:9] * 2.0 - 1
    with PlaceMap.open(files.map) as place_map:
        names = place_map.rows(["image_id"])["image_id"].to_pylist()
    stored, _ = read_queries(str(Path(files.queries).with_name("m")))
    signs = np.unpackbits(Queries.of(stored).codes, axis=1) * 2.0 - 1
    for q in range(9):
        for k in range(10):
            photo = signs[int(names[ranking.rows[q, k]][1:])]
            cosine = asked[q] @ photo / np.linalg.norm(asked[q]) / np.linalg.norm(photo)
            assert ranking.similarity[q, k] == pytest.approx(cosine, abs=1e-6)


def test_frames_stand_in_for_positions(make_system):
    report = evaluate(make_system("framed", noise=0.3, frames=True), FramesRule(window=0))
    assert report.methods["two_stage"].recall.at(1) == 1.0
    assert report.methods["two_stage"].median_error_m is None
    assert report.confidence is not None


def test_a_map_smaller_than_k_pads(make_system):
    config = EvaluationConfig(ks=(1, 500), shortlist=500, timed_singles=1, timed_batches=1)
    report = evaluate(make_system("small", noise=0.8), config=config)
    assert report.methods["two_stage"].recall.at(500) == 1.0
    assert (report.rankings["two_stage"].rows[:, 180:] == -1).all()


def test_what_cannot_be_evaluated_is_refused(make_system):
    table, _ = read_queries(make_system("both", noise=1.0).queries)
    with pytest.raises(DataError, match="no rows"):
        Queries.of(table.slice(0, 0))
    with pytest.raises(ValidationError, match="stage 2 can only return what stage 1 found"):
        EvaluationConfig(ks=(1, 200), shortlist=100)
