"""A pack from plan to end, without Ray: the ledger, broken trials, early stops, and going on after a kill."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from placeray import storage
from placeray.losses import LossTerms
from placeray.model.checkpoint import load_checkpoint
from placeray.model.selavpr import Descriptors
from placeray.sweep.config import Sweep
from placeray.sweep.ledger import Ledger, Trial
from placeray.sweep.objectives import best_trial, map_bytes, recall_at_1
from placeray.sweep.planning import Planner
from placeray.sweep.riding import _Rider, ride_pack
from placeray.training.loop import Silent, fit
from placeray.training.run import train_once
from placeray.training.state import Snapshot
from placeray.training.validation import code_score, score

HEADS: list[dict[str, Any]] = [
    {"kind": "gem", "dim": 16},
    {
        "kind": "salad",
        "clusters": 64,
        "cluster_dim": 8,
        "token_dim": 8,
        "hidden": 16,
    },  # the input has 4 patches
    {"kind": "gem", "dim": 8},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sweep(normalized: str, output: Path, **changes: Any) -> Sweep:
    base = {
        "normalized": normalized,
        "output": str(output),
        "model": {
            "backbone": {"name": "toy", "embed_dim": 64, "num_heads": 1, "depth": 1}, "conv_start": "random",
        },
        "train": {
            "epochs": 3, "places_per_batch": 6, "log_every_s": 0, "preprocess": {"size_px": 28}, "seed": 3,
            "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}]},
        },
        "space": {
            "model.float_head": {"kind": "grid", "values": HEADS},
            "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
        },
        "trials": 3, "pack": 4, "early_stopping": None,
    }  # fmt: skip
    return Sweep.model_validate(base | changes)


def ride_all(plan: Sweep) -> list[Trial]:
    planner = Planner(plan)
    while (numbers := planner.next_pack()) is not None:
        ride_pack(plan, numbers)
    return Ledger(plan.output).read_all()


@pytest.fixture(scope="module")
def whole(normalized: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, list[Trial]]:
    torch.set_num_threads(1)
    plan = sweep(normalized, tmp_path_factory.mktemp("whole"))
    return plan, ride_all(plan)


def test_a_broken_trial_is_named_and_the_others_are_what_jobs_train_makes(
    whole: tuple[Sweep, list[Trial]], tmp_path: Path
) -> None:
    plan, trials = whole
    assert [trial.state for trial in trials] == ["finished", "failed", "finished"]
    assert "SALAD has 64 clusters" in trials[1].why
    spec = plan.spec(2, trials[2].values).model_copy(update={"output": str(tmp_path / "alone")})
    alone = train_once(spec, Silent())
    assert trials[2].model_id == alone.model_id
    assert load_checkpoint(trials[2].checkpoint).model_id == alone.model_id
    assert recall_at_1(trials[2]) == alone.metrics["val/toy-val/float/recall_at_1"]
    assert [trial.map_bytes for trial in trials] == [20, 524, 12]
    assert trials[0].step_s > 0
    steps = Ledger(plan.output).read_steps(0)
    assert [report["step"] for report in steps] == [1, 2, 3, 4, 5, 6]
    best = best_trial(trials)
    assert best is not None
    assert best.score == max(trial.score or 0.0 for trial in trials)


def test_ended_trials_leave_no_snapshot_and_are_never_planned_again(
    whole: tuple[Sweep, list[Trial]],
) -> None:
    plan, _ = whole
    assert not [file for file in storage.list_files(plan.output) if file.endswith("state.pt")]
    assert Planner(plan).next_pack() is None
    more = Planner(plan.model_copy(update={"trials": 5, "pack": 1}))
    assert [more.next_pack() for _ in range(3)] == [[3], [4], None]


class Killed(BaseException):
    """Ends a run as a kill would: nothing below may catch it and write it down."""


def test_a_killed_pack_goes_on_from_its_snapshots_to_the_same_weights(
    whole: tuple[Sweep, list[Trial]], normalized: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, written = sweep(normalized, tmp_path), []

    def deadly(self: Ledger, number: int, snapshot: Snapshot) -> None:
        written.append(number)
        if len(written) > 3:  # trial 2 has kept two epochs, trial 0 one, and its second is lost
            raise Killed
        storage.write_bytes(storage.join(self.folder(number), "state.pt"), snapshot.to_bytes())

    monkeypatch.setattr(Ledger, "write_snapshot", deadly)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    ride_pack(plan, Planner(plan).next_pack() or [])
    ledger = Ledger(plan.output)
    assert [trial.state for trial in ledger.read_all()] == ["running", "failed", "running"]
    monkeypatch.undo()
    kept = {number: ledger.read_snapshot(number) for number in (0, 2)}
    assert {number: kept[number].progress.epoch for number in kept if kept[number]} == {0: 1, 2: 2}  # type: ignore[union-attr]
    planner = Planner(plan)
    assert [planner.next_pack() for _ in range(3)] == [[0], [2], None], "not in step: they ride alone"
    again = ride_all(plan)
    for trial, undisturbed in zip(again, whole[1], strict=True):
        assert trial.state == undisturbed.state
        assert trial.model_id == undisturbed.model_id
        assert trial.scores == undisturbed.scores
    assert [report["step"] for report in ledger.read_steps(0)] == [1, 2, 3, 4, 5, 6]


def test_time_and_rivals_end_trials_early_with_a_checkpoint(normalized: str, tmp_path: Path) -> None:
    plan = sweep(normalized, tmp_path / "late", trials=1)
    ride_pack(plan, Planner(plan).next_pack() or [], stop_at=time.time())
    (trial,) = Ledger(plan.output).read_all()
    assert (trial.state, trial.why) == ("stopped", "the sweep's time was up after epoch 1")
    assert load_checkpoint(trial.checkpoint).model_id == trial.model_id

    rivals = sweep(normalized, tmp_path / "rivals", trials=1, early_stopping={"grace_epochs": 1})
    planner, ledger = Planner(rivals.model_copy(update={"trials": 2, "pack": 1})), Ledger(rivals.output)
    assert planner.next_pack() == [0]
    good = Trial(
        1, {"x": 0}, "finished", epochs=[{"epoch": float(e), "step": 2.0, "score": 2.0} for e in (1, 2, 3)]
    )
    ledger.write(good)
    ride_pack(rivals, [0])
    behind = ledger.read(0)
    assert behind.state == "stopped"
    assert behind.why == "it had fallen behind the other trials after epoch 1"


def test_data_that_is_missing_fails_every_trial_with_the_reason(normalized: str, tmp_path: Path) -> None:
    sets = {"validation": {"sets": [{"name": "toy-val", "dataset": "nowhere"}]}}
    plan = sweep(normalized, tmp_path, train={"epochs": 1, **sets}, trials=2)
    trials = ride_all(plan)
    assert {trial.state for trial in trials} == {"failed"}
    assert all("nowhere/val" in trial.why for trial in trials)


def test_what_a_photo_takes_in_the_map() -> None:
    model = sweep("n", Path("o")).model
    assert map_bytes(model.model_copy(update={"hash_bits": 64})) == 64 // 8 + 2048 + 4
    assert map_bytes(model.model_copy(update={"hash_bits": 64, "float_head": None})) == 8


class OneBatch:
    """A feed of one batch an epoch."""

    steps_per_epoch = 1

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.ones(2, 3), torch.arange(2)


class OneLayer(nn.Linear):
    def forward(self, rows: Tensor) -> Descriptors:
        return Descriptors(super().forward(rows), None, None)


def rows_loss(descriptors: Descriptors, labels: Tensor) -> LossTerms:
    assert descriptors.float is not None
    loss = descriptors.float.square().mean()
    return LossTerms(loss, loss, torch.zeros(()), 1, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.3, 0.6])), min_size=1, max_size=6
    )
)
@settings(max_examples=20, deadline=None)
def test_the_best_epoch_of_the_record_is_the_one_whose_weights_the_loop_keeps(
    tmp_path_factory: pytest.TempPathFactory, figures: list[tuple[float, float]]
) -> None:
    """Whatever the recalls: scores tie often, and good codes come with worse scores too."""
    plan = sweep("unread", tmp_path_factory.mktemp("ties"), trials=1)
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"epochs": len(figures)})})
    rider, judged = _Rider(plan, Ledger(plan.output), Trial(0, {}), None), iter(figures)

    def judge(_: nn.Module) -> dict[str, float]:
        whole, codes = next(judged)
        stages = {"two_stage": whole, "binary": codes}
        return {f"toy-val/{stage}/recall_at_{k}": value for stage, value in stages.items() for k in (1, 5)}

    config = rider.spec.train
    result = fit(
        OneLayer(3, 2), rows_loss, OneBatch(), config, judge=judge, listener=rider,
        score=partial(score, config=config.validation), tie=partial(code_score, config=config.validation),
    )  # fmt: skip
    (trial,) = Ledger(plan.output).read_all()
    assert trial.best["epoch"] == result.progress.best_epoch
    assert trial.best["toy-val/binary/recall_at_1"] == result.metrics["toy-val/binary/recall_at_1"]
    assert trial.score == result.progress.best_score
