"""Promotion: a worse challenger is refused, a better one promoted, an interrupted promotion changes nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.registry.conftest import Checkpoint, RunHere

from placeray.errors import ConfigError
from placeray.evaluation.report import EvalReport
from placeray.evaluation.verdict import JudgeConfig, judge
from placeray.jobspecs.tracking import TrackingConfig
from placeray.storage import read_json
from placeray.tracking.promotion import PromotionError, open_contest
from placeray.tracking.registering import register_checkpoint
from placeray.tracking.registry import alias_holder
from placeray.tracking.runs import tracked_run

Register = Callable[[str, Checkpoint], str]


@pytest.fixture(scope="module")
def good(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="module")
def bad(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint(spoilt=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every promotion keeps descriptors and maps: a model is described once."""
    return tmp_path_factory.mktemp("promotion")


@pytest.fixture
def register(client: Any, store: TrackingConfig) -> Register:
    """(name, checkpoint) -> version, which is the challenger."""

    def make(name: str, checkpoint: Checkpoint) -> str:
        with tracked_run("register", {}, store) as run:
            return register_checkpoint(client, checkpoint[0], name, str(run.id)).version

    return make


@pytest.fixture
def values(normalized: str, work: Path) -> Callable[[str], list[str]]:
    """The settings of a promotion of one model."""

    def settings(name: str) -> list[str]:
        where = f"evaluate_on={{normalized: {normalized}, dataset: drawn, split: test}}"
        measure = "measure={ks: [1, 5, 10], shortlist: 12, timed_singles: 1, timed_batches: 1}"
        return [f"name={name}", where, measure, f"output={work}", "tracking.experiment=registry"]

    return settings


def champion(client: Any, name: str) -> str | None:
    holder = alias_holder(client, name, "champion")
    return holder.version if holder else None


def test_from_nobody_to_a_better_one_and_not_to_a_worse_one(
    run_here: RunHere, client: Any, register: Register, values: Callable[[str], list[str]], good: Checkpoint,
    bad: Checkpoint, work: Path,
) -> None:  # fmt: skip
    name = "contested"
    assert register(name, bad) == "1"
    status, said = run_here("promote", *values(name), "judge.at_least=0.5")
    assert (status, champion(client, name)) == (1, None)
    assert (
        "contested version 1 is not promoted: two-stage R@1 is 8.3 % of 12 queries, at least 50.0 %" in said
    )
    status, said = run_here("promote", *values(name))
    assert (status, champion(client, name)) == (0, "1"), said
    assert (
        "contested version 1 is now models:/contested@champion (nobody before): two-stage R@1 is 8.3 %"
        in said
    )
    assert (
        "already finished: contested version 1 is models:/contested@champion"
        in run_here("promote", *values(name))[1]
    )

    assert register(name, good) == "2"
    status, said = run_here("promote", *values(name))
    assert (status, champion(client, name)) == (0, "2"), said
    assert (
        "(version 1 before): two-stage R@1 is 100 % of 12 queries, the champion's 8.3 %; a gain of +91.7 pt"
        in said
    )

    status, said = run_here("promote", *values(name), "challenger=1")
    assert (status, champion(client, name)) == (1, "2")
    assert (
        "contested version 1 is not promoted: two-stage R@1 is 8.3 % of 12 queries, the champion's 100 %"
        in said
    )
    assert said.rstrip().endswith("page.html"), "the last line is the one sentence"
    check_evidence(client, name, work)


def check_evidence(client: Any, name: str, work: Path) -> None:
    tags = client.get_model_version(name, "2").tags
    judged = {
        key.removeprefix("placeray."): value
        for key, value in tags.items()
        if "judged" in key or "verdict" in key
    }
    run = judged.pop("judged_run")
    assert judged.pop("verdict_sentence").startswith("two-stage R@1 is 100 %")
    assert judged == {
        "judged_against": "1", "judged_by": "two_stage/recall_at_1", "judged_recall": "1.000000",
        "judged_queries": "12", "verdict": "passed",
    }  # fmt: skip
    assert client.get_model_version(name, "1").tags["placeray.verdict"] == "refused"
    metrics = client.get_run(run).data.metrics
    assert metrics == {"challenger/recall": 1.0, "champion/recall": pytest.approx(1 / 12), "passed": 1.0}
    kept = {item.path for item in client.list_artifacts(run)}
    assert kept == {"page.html", "report.json", "baseline.json"}
    page = next(work.glob("drawn-test/reports/*/page.html")).read_text()
    assert "challenger, version" in page
    assert "<img" in page
    maps = sorted(work.glob("drawn-test/*/map/v0001/manifest.json"))
    assert len(maps) == 2, "each model is described once, however often it is judged"
    assert all(read_json(str(path))["model"]["registered"]["name"] for path in maps)


def test_an_equal_one_passes_unless_a_gain_is_asked_for(
    run_here: RunHere, client: Any, register: Register, values: Callable[[str], list[str]],
    make_checkpoint: Callable[..., Checkpoint], good: Checkpoint,
) -> None:  # fmt: skip
    name = "equals"
    register(name, good)
    assert run_here("promote", *values(name))[0] == 0
    register(name, make_checkpoint(seed=9))
    status, said = run_here("promote", *values(name), "judge.margin=0.01")
    assert (status, champion(client, name)) == (1, "1")
    assert "a gain of +0.0 pt, asked for is +1.0 pt" in said
    assert run_here("promote", *values(name))[0] == 0
    assert champion(client, name) == "2"


KILLED = [
    ("mlflow:MlflowClient.set_registered_model_alias", True),
    ("mlflow:MlflowClient.set_model_version_tag", False),
    ("mlflow:MlflowClient.log_artifact", False),
    ("placeray.cluster.embedding._commit", False),
    ("placeray.cluster.comparing.run_evaluation", False),
]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(name, marks=() if fast else pytest.mark.slow, id=name.rpartition(".")[2])
        for name, fast in KILLED
    ],
)
def test_killed_at_any_moment_the_old_champion_stays(
    function: str, run_here: RunHere, client: Any, store: TrackingConfig, register: Register, good: Checkpoint,
    bad: Checkpoint, values: Callable[[str], list[str]], repository: Path, tmp_path: Path,
) -> None:  # fmt: skip
    name = f"killed-{function.rpartition('.')[2].strip('_')}"
    settings = [*values(name), f"output={tmp_path}", f"tracking.uri={store.uri}"]
    register(name, bad)
    client.set_registered_model_alias(name, "champion", "1")
    register(name, good)
    command = [sys.executable, str(Path(__file__).with_name("killed_promotion.py")), function]
    command += [
        str(repository / "jobs" / "promote.py"),
        *(part for value in settings for part in ("--set", value)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(repository / "platform")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert champion(client, name) == "1"
    open_runs = client.search_runs(
        [client.get_experiment_by_name("registry").experiment_id], "attributes.status = 'RUNNING'"
    )
    status, said = run_here("promote", *settings)
    assert (status, champion(client, name)) == (0, "2"), said
    for run in open_runs:
        assert client.get_run(run.info.run_id).info.status == "FINISHED", "the interrupted run is continued"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_ray_killed_whenever(
    client: Any, store: TrackingConfig, register: Register, good: Checkpoint, bad: Checkpoint,
    values: Callable[[str], list[str]], repository: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """The real command, killed after some seconds again and again, until it gets through."""
    name = "on-ray"
    settings = [*values(name), f"output={tmp_path}/work", f"tracking.uri={store.uri}", "num_workers=1"]
    register(name, bad)
    client.set_registered_model_alias(name, "champion", "1")
    register(name, good)
    command = [sys.executable, str(repository / "jobs" / "promote.py")]
    command += [part for value in settings for part in ("--set", value)]
    environment = {**os.environ, "PYTHONPATH": str(repository / "platform")}
    kills = 0
    for attempt in range(12):
        with open(tmp_path / "log", "wb") as log:
            job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert job.wait(8 + 8 * attempt) == 0, (tmp_path / "log").read_text()[-3000:]
            break
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
        kills += 1
        if champion(client, name) == "2":
            break  # the kill came between the last step and the end of the process
        assert champion(client, name) == "1"
        time.sleep(1)
    assert kills > 0
    assert champion(client, name) == "2"


def test_a_champion_that_changed_in_the_meantime_is_not_overwritten(
    client: Any, store: TrackingConfig, register: Register, good: Checkpoint, bad: Checkpoint,
    make_checkpoint: Callable[..., Checkpoint],
) -> None:  # fmt: skip
    name = "raced"
    for checkpoint in (bad, good, make_checkpoint(seed=21)):
        register(name, checkpoint)
    client.set_registered_model_alias(name, "champion", "1")
    contest = open_contest(name, "3", "champion", store)
    client.set_registered_model_alias(name, "champion", "2")
    with pytest.raises(
        PromotionError,
        match=r"raced version 3 was judged against raced version 1, but .*@champion is now raced version 2",
    ):
        contest.promote()
    assert champion(client, name) == "2"


def report(label: str, **recall_at_1: float) -> EvalReport:
    """An evaluation report of 10 queries with given recalls."""
    stage = {"total": {"median_ms": 1.0, "p95_ms": 1.0}}
    methods = {
        method: {
            "recall": {"ks": [1, 5], "all": [share, 1.0], "with_positive": [share, 1.0]}, "curve": [share, 1.0],
            "interval": [0.0, 1.0], "median_error_m": None,
            "latency": {"single": stage, "batch": stage, "batch_size": 1},
        }
        for method, share in recall_at_1.items()
    }  # fmt: skip
    return EvalReport.from_document(
        {
            "contract": "eval_report/v1", "name": "drawn", "label": label, "created_at": "now",
            "model": {"id": "a", "preprocessing": "platform-28", "code_bits": 64, "descriptor_dim": 32},
            "map": {"uri": "", "photos": 1, "code_bytes": 8, "descriptor_bytes": 8, "bytes_per_photo": 16.0},
            "positive_rule": {"kind": "exact"}, "queries": {"count": 10, "with_positive": 10}, "shortlist": 5,
            "methods": methods, "confidence": None, "confidence_note": "", "config": {}, "inputs": {},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("challenger", "champion", "config", "passed"),
    [
        (0.8, 0.7, {}, True),
        (0.7, 0.7, {}, True),
        (0.6, 0.7, {}, False),
        (0.6, 0.7, {"margin": -0.1}, True),
        (0.5, 0.7, {"margin": -0.1}, False),
        (0.8, 0.7, {"margin": 0.1}, True),
        (0.7, 0.7, {"margin": 0.1}, False),
        (0.9, 0.7, {"at_least": 0.95}, False),
        (0.3, None, {}, True),
        (0.3, None, {"at_least": 0.3}, True),
        (0.2, None, {"at_least": 0.3}, False),
    ],
)
def test_the_verdict(
    challenger: float, champion: float | None, config: dict[str, float], passed: bool
) -> None:
    other = None if champion is None else report("champion", binary=0.1, two_stage=champion, exhaustive=1.0)
    verdict = judge(report("challenger", two_stage=challenger, binary=0.0), other, JudgeConfig(**config))
    assert verdict.passed is passed
    assert verdict.metric == "two_stage/recall_at_1"


def test_the_verdict_reads_the_figure_that_is_asked_for() -> None:
    both, floats = report("a", binary=0.5, two_stage=0.9, exhaustive=0.8), report("b", exhaustive=0.85)
    best = judge(floats, both, JudgeConfig())
    assert (best.passed, best.metric, best.champion_recall) == (False, "exhaustive/recall_at_1", 0.9)
    assert "the champion's (two-stage) 90.0 %" in best.sentence
    assert judge(floats, both, JudgeConfig(method="exhaustive")).passed
    assert judge(floats, both, JudgeConfig(method="exhaustive", k=5)).recall == 1.0
    with pytest.raises(
        ConfigError, match="b has no binary search, its model lacks a branch; it has exhaustive"
    ):
        judge(floats, both, JudgeConfig(method="binary"))
    with pytest.raises(ConfigError, match=r"judge\.k=3 is not among the measured ks \[1, 5\]"):
        judge(floats, both, JudgeConfig(k=3))
