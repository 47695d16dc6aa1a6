"""The same jobs on real photos: frame numbers (Gardens Point) and positions (campus phones), down to answers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunJob

pytest.importorskip("ray")

pytestmark = pytest.mark.real

ONE = "num_workers=1"
CHECKPOINT = "checkpoint=runs/toy/checkpoints/untrained"


# The floors are above chance (2.5 % and below 1 %) and below what random frozen weights reach, which see the layout
# of a scene; phones look anywhere, so that set is hard. A wrong ground truth or a broken search falls through.
@pytest.mark.parametrize(
    ("name", "queries", "photos", "floor"), [("gardens_point", 200, 200, 0.3), ("cmu_campus", 189, 279, 0.02)]
)
def test_from_photos_to_recall_and_matches(
    name: str,
    queries: int,
    photos: int,
    floor: float,
    real_data: Path,
    run_job: "RunJob",
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PLACERAY_REAL_DATA", str(real_data))
    assert "rejected 0" in run_job("normalize", name, ONE)
    run_job("untrained", "toy")
    run_job("embed", f"{name}_database", CHECKPOINT, ONE)
    run_job("embed", f"{name}_queries", CHECKPOINT, ONE)
    run_job("index", name)
    printed = run_job("evaluate", name, "tracking.enabled=false")

    assert "R@1" in printed
    report = json.loads((tmp_path / "runs" / name / "report" / "report.json").read_text())
    assert report["queries"]["count"] == queries
    assert report["map"]["photos"] == photos
    recall = {method: found["recall"]["all"] for method, found in report["methods"].items()}
    assert set(recall) == {"binary", "two_stage", "exhaustive"}
    for values in recall.values():
        assert values == sorted(values), "recall@k cannot fall with k"
    assert recall["exhaustive"][0] > floor

    answers = json.loads(run_job("localize", name, CHECKPOINT, "max_photos=2", "format=json"))
    assert [len(answer["matches"]) for answer in answers] == [5, 5]
