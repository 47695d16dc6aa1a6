"""Trials that ride on one backbone: bit for bit what each computes alone, one pass of the backbone for all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from placeray.errors import TrainingError
from placeray.model.backbone import Backbone
from placeray.model.checkpoint import load_checkpoint
from placeray.model.selavpr import ModelConfig
from placeray.training.config import TrainConfig
from placeray.training.loop import Silent, StepReport
from placeray.training.packing import Member, pack_key, train_packed
from placeray.training.run import RunResult, RunSpec, train_once
from placeray.training.state import Snapshot

EPOCHS = 10  # of 2 batches each: 20 steps
SALAD = {"kind": "salad", "clusters": 2, "cluster_dim": 8, "token_dim": 8, "hidden": 16, "dropout": 0.3}
BOQ = {"kind": "boq", "channels": 64, "queries": 8, "rows": 4}
TRIALS: list[dict[str, Any]] = [
    {"head": {"kind": "gem", "dim": 16}, "lr": 1e-3},
    {"head": SALAD, "lr": 3e-3},  # has dropout: its random numbers must be its own
    {"head": BOQ, "lr": 2e-3, "kind": "sgd"},
    {
        "head": {"kind": "gem", "dim": 8},
        "lr": 1e-3,
        "recipe": "hash_only",
        "adapter_hidden": 16,
        "beta": 20.0,
    },
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recorder(Silent):
    def __init__(self, stop_after: int | None = None, fail_after: int | None = None) -> None:
        self.losses: list[float] = []
        self.snapshots: list[Snapshot] = []
        self._stop_after, self._fail_after = stop_after, fail_after

    def steps(self, report: StepReport) -> None:
        self.losses.append(report.last.loss)

    def epoch(self, report: dict[str, float]) -> bool | None:
        if report["epoch"] == self._fail_after:
            raise ValueError("made to fail")
        return report["epoch"] == self._stop_after

    def snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(Snapshot.from_bytes(snapshot.to_bytes()))


def spec(normalized: str, output: Path, trial: dict[str, Any], **changes: Any) -> RunSpec:
    backbone = {"name": "toy", "embed_dim": 64, "num_heads": 1, "depth": 2}
    model = {"backbone": backbone, "float_head": trial["head"], "hash_bits": 16, "conv_start": "random"}
    train = {
        "recipe": trial.get("recipe", "float"), "epochs": EPOCHS, "places_per_batch": 6, "seed": 3, "log_every_s": 0,
        "preprocess": {"size_px": 28}, "loss": {"beta": trial.get("beta", 50.0)},
        "optimizer": {"kind": trial.get("kind", "adam"), "lr": trial["lr"]},
        "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}], "every_epochs": 4, "batch_size": 5},
    }  # fmt: skip
    return RunSpec(
        normalized=normalized,
        output=str(output),
        model=ModelConfig.model_validate(model | {"adapter_hidden": trial.get("adapter_hidden")}),
        train=TrainConfig.model_validate(train | changes),
    )


@pytest.fixture(scope="module")
def alone(normalized: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[RunResult, list[float]]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = []
    for number, trial in enumerate(TRIALS):
        recorder = Recorder()
        result = train_once(spec(normalized, folder / str(number), trial), recorder)
        found.append((result, recorder.losses))
    return found


def test_packed_trials_equal_trials_alone_to_the_bit(
    normalized: str,
    alone: list[tuple[RunResult, list[float]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tolerance is zero: 20 losses, every weight, every recall."""
    passes: list[int] = []
    plain = Backbone.streams

    def counted(self: Backbone, images: Tensor) -> Iterator[Tensor]:
        passes.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Backbone, "streams", counted)
    members = [
        Member(spec(normalized, tmp_path / str(i), trial), Recorder()) for i, trial in enumerate(TRIALS)
    ]
    outcomes = train_packed(members)
    assert len(alone[0][1]) == 20
    for (result, losses), outcome, member in zip(alone, outcomes, members, strict=True):
        assert isinstance(member.listener, Recorder)
        assert member.listener.losses == losses
        assert outcome == result, "model id (a hash of all weights), recalls, best epoch"
        assert len(member.step_seconds) == 20
        assert min(member.step_seconds) > 0
    judgements = 3  # after epochs 4, 8 and 10: a database and queries of 8 photos, 5 at once
    assert len(passes) == 20 + judgements * 2 * 2, "one pass per batch, however many trials read it"


def test_losing_members_changes_nothing_for_the_others(
    normalized: str, alone: list[tuple[RunResult, list[float]]], tmp_path: Path
) -> None:
    """One fails, one is stopped, one cannot even start; the rest go on with the same figures."""
    told: list[RunResult | Exception] = []
    broken = spec(normalized, tmp_path / "broken", {"head": SALAD | {"clusters": 64}, "lr": 1e-3})
    members = [
        Member(spec(normalized, tmp_path / "0", TRIALS[0]), Recorder()),
        Member(spec(normalized, tmp_path / "1", TRIALS[1]), Recorder(fail_after=3), ended=told.append),
        Member(spec(normalized, tmp_path / "2", TRIALS[2]), Recorder(stop_after=4)),
        Member(broken, Recorder(), ended=told.append),
        Member(spec(normalized, tmp_path / "3", TRIALS[3]), Recorder()),
    ]
    first, failed, stopped, unable, last = train_packed(members)
    assert first == alone[0][0]
    assert last == alone[3][0]
    assert isinstance(failed, ValueError)
    assert "64 clusters" in str(unable)
    assert told == [unable, failed], "told at once, in the order in which it happened"
    assert isinstance(stopped, RunResult)
    assert stopped.epochs == 4
    assert load_checkpoint(str(tmp_path / "2")).model_id == stopped.model_id


def test_a_pack_goes_on_from_snapshots(
    normalized: str, alone: list[tuple[RunResult, list[float]]], tmp_path: Path
) -> None:
    recorders = [Recorder(), Recorder()]
    specs = [spec(normalized, tmp_path / str(i), TRIALS[i]) for i in range(2)]
    train_packed([Member(*pair) for pair in zip(specs, recorders, strict=True)])
    again = [Member(s, Recorder(), r.snapshots[5]) for s, r in zip(specs, recorders, strict=True)]
    assert train_packed(again) == [alone[0][0], alone[1][0]]
    with pytest.raises(TrainingError, match="2 different steps"):
        train_packed([Member(specs[0], Recorder(), recorders[0].snapshots[5]), Member(specs[1], Recorder())])


def test_trials_with_other_batches_or_backbones_do_not_ride_together(normalized: str, tmp_path: Path) -> None:
    base = spec(normalized, tmp_path / "a", TRIALS[0])
    same = [spec(normalized, tmp_path / "b", trial) for trial in TRIALS]
    assert {pack_key(item) for item in same} == {pack_key(base)}
    other = [
        spec(normalized, tmp_path / "c", TRIALS[0], **change)
        for change in (
            {"seed": 4}, {"photos_per_place": 3}, {"places_per_batch": 5}, {"augment": {"magnitude": 2}},
            {"preprocess": {"size_px": 42}}, {"precision": "bf16"}, {"micro_batch": 8}, {"epochs": 3},
        )
    ]  # fmt: skip
    assert len({pack_key(base), *map(pack_key, other)}) == 1 + len(other)
    with pytest.raises(TrainingError, match="cannot ride together"):
        train_packed([Member(base, Recorder()), Member(other[0], Recorder())])
