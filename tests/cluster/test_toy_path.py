"""The demo's path on a tiny city, every job in turn: drawn, normalized, trained twice, described, indexed, answered."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunJob

pytest.importorskip("ray")

QUICK = ["train.epochs=1", "train.places_per_batch=4", "train.validation.sets=[]", "train.precision=fp32"]
CITY = [
    "output=runs/toy/city", "city.evaluation={places: 30, database_photos: 2, queries: 1, distractor_places: 10}",
]  # fmt: skip
ONE = "num_workers=1"  # a worker's start, which imports torch, costs more than the work of a tiny city
OF_UNTRAINED = "checkpoint=runs/toy/checkpoints/untrained"
BEFORE = "runs/toy/untrained"


def steps() -> list[tuple[str, ...]]:
    """The steps of jobs/demo.py with their small settings."""
    return [
        ("draw_city", "tiny", *CITY),
        ("normalize", "toy", ONE),
        ("untrained", "toy"),
        ("train", "toy", *QUICK),
        ("train", "toy_hash", *QUICK),
        ("embed", "toy_database", ONE),
        ("embed", "toy_queries", ONE),
        ("embed", "toy_database", ONE, OF_UNTRAINED, f"output={BEFORE}/descriptors/database"),
        ("embed", "toy_queries", ONE, OF_UNTRAINED, f"output={BEFORE}/descriptors/queries"),
        ("index", "toy", ONE),
        ("index", "toy", ONE, f"descriptors={BEFORE}/descriptors/database", f"output={BEFORE}/map"),
        ("evaluate", "toy"),
    ]


def test_from_raw_data_to_an_answer(run_job: "RunJob", tmp_path: Path) -> None:
    printed = {step: run_job(*step) for step in steps()}
    runs = tmp_path / "runs" / "toy"

    counts = json.loads((runs / "normalized" / "manifest.json").read_text())["counts"]
    for source, count in counts.items():
        assert count["read"] == count["kept"] + sum(count["rejected"].values()), source
    assert "placeray-toy version 1" in printed["train", "toy_hash", *QUICK]
    report = json.loads((runs / "report" / "report.json").read_text())
    assert report["queries"]["count"] == 30
    assert list(report["methods"]) == ["binary", "exhaustive", "two_stage"]
    assert "<img" in (runs / "report" / "page.html").read_text()
    found = json.loads(run_job("localize", "toy", "max_photos=1", "format=json"))
    assert found[0]["matches"][0]["lat"] == pytest.approx(35.7, abs=0.5)

    for step in steps():
        assert "already finished" in run_job(*step), f"{step} was done again"
