"""The loop on a tiny stand-in for the model: steps, judgement, best weights, early stopping and exact resume."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from placeray.errors import CheckpointError, TrainingError
from placeray.losses import LossConfig, LossTerms, recipe_loss
from placeray.model.selavpr import Descriptors
from placeray.training.config import OptimizerConfig, TrainConfig, ValidationConfig
from placeray.training.loop import FitResult, Silent, StepReport, _Run, fit
from placeray.training.optimizer import build_optimizer, build_schedule
from placeray.training.state import Snapshot, changing_weights, copied, load_changing
from placeray.training.step import TrainStep
from placeray.training.validation import code_score, score

PLACES, PHOTOS = 6, 3


class Tiny(nn.Module):
    """A frozen layer, a batch norm, dropout and a head: every kind of state that a resume must bring back."""

    def __init__(self, with_norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4) if with_norm else nn.Identity()
        self.dropout = nn.Dropout(0.2 if with_norm else 0.0)
        self.head = nn.Linear(16, 8)

    def forward(self, images: Tensor) -> Descriptors:
        moved = self.frozen(images.flatten(1)).reshape(images.shape)
        rows = self.head(self.dropout(self.norm(self.conv(moved)).flatten(1)))
        return Descriptors(nn.functional.normalize(rows, dim=1), None, None)


@dataclass
class TinyFeed:
    """Four batches an epoch, another order and other photos in every epoch, the same again for the same epoch."""

    steps_per_epoch: int = 4
    asked: list[tuple[int, int]] = field(default_factory=list)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((number, first_step))
        for step in range(first_step, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(number * 100 + step)
            labels = torch.arange(PLACES).repeat_interleave(PHOTOS)
            clean = torch.randn(PLACES, 3, 2, 2, generator=torch.Generator().manual_seed(step % 2))[labels]
            yield clean + 0.8 * torch.randn(len(labels), 3, 2, 2, generator=generator), labels


@dataclass
class Recorder(Silent):
    """Keeps what a shell would keep: the bytes of every snapshot."""

    snapshots: list[bytes] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)

    def steps(self, report: StepReport) -> None:
        self.reports.append(report)

    def snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot.to_bytes())


def _loss(descriptors: Descriptors, labels: Tensor) -> LossTerms:
    return recipe_loss(descriptors, labels, "float", LossConfig())


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 3, "log_every_s": 0, "optimizer": {"lr": 0.01}, **changes})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return copied(model.state_dict())


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loss_falls_and_frozen_weights_stay() -> None:
    model, recorder = Tiny(), Recorder()
    frozen = model.frozen.weight.clone()
    result = fit(model, _loss, TinyFeed(), _config(epochs=15), listener=recorder)
    losses = [epoch["train/loss"] for epoch in result.progress.history]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(model.frozen.weight, frozen)
    assert [report.step for report in recorder.reports][-1] == 60
    assert result.progress.epoch == 15


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_resume_from_any_snapshot_gives_the_undisturbed_weights(every: int | None, place: int) -> None:
    config, undisturbed, recorder = _config(checkpoint_every_steps=every), Tiny(), Recorder()
    fit(undisturbed, _loss, TinyFeed(), config, listener=recorder)
    torch.manual_seed(12345)  # whatever happened before the restart
    resumed, feed = Tiny(), TinyFeed()
    snapshot = Snapshot.from_bytes(recorder.snapshots[place])
    start = (snapshot.progress.epoch, snapshot.progress.step_in_epoch)
    result = fit(resumed, _loss, feed, config, resume=snapshot)
    assert _same(_weights(undisturbed), _weights(resumed))
    assert result.progress.step == 12
    if snapshot.progress.epoch < 3:
        assert feed.asked[0] == start, "finished steps must not be repeated"


def _judged(scores: list[float], **changes: object) -> tuple[Tiny, FitResult, list[dict[str, Tensor]]]:
    """Fit with a judge that gives these scores in turn; also the weights at each judgement."""
    model, seen, remaining = Tiny(), [], iter(scores)

    def judge(judged: nn.Module) -> dict[str, float]:
        seen.append(_weights(judged))
        return {"val/float/recall_at_1": next(remaining)}

    validation = {"sets": [{"name": "val", "dataset": "d"}], **changes}
    result = fit(
        model, _loss, TinyFeed(), _config(epochs=6, validation=validation),
        judge=judge, score=lambda metrics: metrics["val/float/recall_at_1"],
    )  # fmt: skip
    return model, result, seen


def test_best_weights_are_kept_and_their_figures_reported() -> None:
    model, result, seen = _judged([0.1, 0.7, 0.3, 0.7, 0.6, 0.5])
    assert result.progress.best_epoch == 2, "an equal score later is no gain"
    assert result.metrics["val/float/recall_at_1"] == 0.7
    assert _same(_weights(model), seen[1])


def test_a_tie_goes_to_the_better_codes_then_to_the_earlier_epoch() -> None:
    judged = iter([(0.9, 0.2), (0.9, 0.6), (0.9, 0.6), (0.8, 0.9), (0.9, 0.5), (0.9, 0.6)])

    def judge(_: nn.Module) -> dict[str, float]:
        whole, codes = next(judged)
        return {f"val/{stage}/recall_at_{k}": value
                for stage, value in (("two_stage", whole), ("binary", codes)) for k in (1, 5)}  # fmt: skip

    config = _config(epochs=6, validation={"sets": [{"name": "val", "dataset": "d"}]})
    result = fit(
        Tiny(), _loss, TinyFeed(), config, judge=judge,
        score=functools.partial(score, config=config.validation),
        tie=functools.partial(code_score, config=config.validation),
    )  # fmt: skip
    assert result.progress.best_epoch == 2
    assert result.metrics["val/binary/recall_at_1"] == 0.6


def test_training_stops_when_patience_is_used_up() -> None:
    _, result, seen = _judged([0.5, 0.4, 0.4, 0.9, 0.9, 0.9], patience=2)
    assert result.progress.epoch == 3
    assert len(seen) == 3


def test_judged_every_second_epoch_and_at_the_end() -> None:
    _, result, _ = _judged([0.1, 0.2, 0.3], every_epochs=2)
    judged = [int(row["epoch"]) for row in result.progress.history if "val/float/recall_at_1" in row]
    assert judged == [2, 4, 6]


def test_no_batch_is_said() -> None:
    with pytest.raises(TrainingError, match="no batch"):
        fit(Tiny(), _loss, TinyFeed(steps_per_epoch=0), _config())


def test_a_loss_that_is_not_finite_is_said_with_what_to_do() -> None:
    def broken(descriptors: Descriptors, labels: Tensor) -> LossTerms:
        terms = _loss(descriptors, labels)
        return terms._replace(total=terms.total * float("nan"))

    with pytest.raises(TrainingError, match=r"became nan at learning rate 0\.01.*lower optimizer\.lr"):
        fit(Tiny(), broken, TinyFeed(), _config())


def test_a_batch_of_one_place_is_said() -> None:
    step = _step(Tiny())
    with pytest.raises(TrainingError, match="one single place"):
        step(torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))


def test_half_precision_on_a_cpu_is_said() -> None:
    with pytest.raises(TrainingError, match="needs a GPU"):
        _step(Tiny(), precision="fp16")


def _step(model: nn.Module, **changes: object) -> TrainStep:
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1))
    schedule = build_schedule(optimizer, OptimizerConfig(), steps_per_epoch=10, epochs=1)
    return TrainStep(model, _loss, optimizer, schedule, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("micro_batch", [5, 9, 17])
def test_passing_a_batch_in_parts_gives_the_gradient_of_the_whole(micro_batch: int) -> None:
    images, labels = next(iter(TinyFeed().epoch(0)))
    whole, parts = Tiny(with_norm=False), Tiny(with_norm=False)  # BatchNorm sees parts, by its nature
    first = _step(whole)(images, labels)
    second = _step(parts, micro_batch=micro_batch)(images, labels)
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert (second.num_pos_pairs, second.num_neg_pairs) == (first.num_pos_pairs, first.num_neg_pairs)
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parts.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_parts_update_batch_norm_statistics_once() -> None:
    images, labels = next(iter(TinyFeed().epoch(0)))
    model = Tiny()
    _step(model, micro_batch=9)(images, labels)
    assert int(model.norm.num_batches_tracked) == 2, (
        "two parts, each counted once although each is passed twice"
    )


def test_without_a_mined_pair_nothing_moves() -> None:
    def no_pairs(descriptors: Descriptors, labels: Tensor) -> LossTerms:
        zero = torch.zeros(())
        return LossTerms(zero, zero, zero, 0, 0)

    model = Tiny(with_norm=False)
    before = _weights(model)
    step = _step(model)
    step.loss = no_pairs
    assert step(*next(iter(TinyFeed().epoch(0)))).loss == 0.0
    assert _same(before, _weights(model))


def test_a_snapshot_holds_no_frozen_weight_and_says_when_it_does_not_fit() -> None:
    model = Tiny()
    weights = changing_weights(model)
    assert not any(name.startswith("frozen") for name in weights)
    assert {"norm.running_mean", "norm.num_batches_tracked", "head.weight"} <= weights.keys()
    with pytest.raises(CheckpointError, match="names differ"):
        load_changing(Tiny(with_norm=False), weights)
    with pytest.raises(CheckpointError, match=r"head\.bias has shape \(3,\)"):
        load_changing(model, {**weights, "head.bias": torch.zeros(3)})


def test_a_damaged_snapshot_is_said() -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        Snapshot.from_bytes(b"no snapshot")


def test_validation_sets_need_different_names_and_a_known_favourite() -> None:
    item = {"name": "a", "dataset": "d"}
    with pytest.raises(ValueError, match="share a name"):
        ValidationConfig.model_validate({"sets": [item, item]})
    with pytest.raises(ValueError, match="none of the validation sets"):
        ValidationConfig.model_validate({"sets": [item], "best_by": "b"})


@pytest.mark.parametrize(
    "message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory: you tried"]
)
def test_out_of_memory_is_one_sentence_with_what_to_do(message: str) -> None:
    kind = torch.OutOfMemoryError if "CUDA" in message else RuntimeError

    class Greedy(Tiny):
        def forward(self, images: Tensor) -> Descriptors:
            raise kind(message)

    images, labels = next(iter(TinyFeed().epoch(0)))
    with pytest.raises(
        TrainingError, match=r"^out of memory with 18 photos in one pass.*train\.micro_batch to 9"
    ):
        _step(Greedy())(images, labels)
    with pytest.raises(TrainingError, match=r"with 8 photos in one pass.*train\.micro_batch to 4"):
        _step(Greedy(), micro_batch=8)(images, labels)


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(Tiny):
        def forward(self, images: Tensor) -> Descriptors:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        _step(Broken())(*next(iter(TinyFeed().epoch(0))))


def test_a_batch_of_parts_drops_the_same_in_both_passes() -> None:
    """Else the gradient belongs to other descriptors than those the loss has seen."""

    class Remembering(Tiny):
        def __init__(self) -> None:
            super().__init__(with_norm=False)
            self.dropout = nn.Dropout(0.5)
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor) -> Descriptors:
            found = super().forward(images)
            assert found.float is not None
            self.seen.append(found.float.detach())
            return found

    model = Remembering()
    _step(model, micro_batch=6)(*next(iter(TinyFeed().epoch(0))))
    assert len(model.seen) == 6
    for first, second in zip(model.seen[:3], model.seen[3:], strict=True):
        assert torch.equal(first, second)


def test_the_gradient_scaler_is_part_of_a_snapshot() -> None:
    """Its scale falls after an overflow; a restart at the first scale would overflow again."""
    recorder = Recorder()
    run = _Run(Tiny(), _loss, TinyFeed(), _config(), None, None, None, recorder, None, None)
    run.step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=True)
    snapshot = Snapshot.from_bytes(run.snapshot().to_bytes())
    assert snapshot.scaler["scale"] == 64.0
    resumed = _Run(Tiny(), _loss, TinyFeed(), _config(), None, None, None, recorder, None, None)
    resumed.step.scaler = torch.amp.GradScaler("cpu", enabled=True)
    resumed._resume(snapshot)
    assert resumed.step.scaler.get_scale() == 64.0


def test_the_figures_of_an_epoch_are_whole_after_a_restart_inside_it() -> None:
    config, recorder = _config(checkpoint_every_steps=3), Recorder()
    undisturbed = fit(Tiny(), _loss, TinyFeed(), config, listener=recorder)
    inside = Snapshot.from_bytes(recorder.snapshots[0])
    assert inside.progress.step_in_epoch == 3
    resumed = fit(Tiny(), _loss, TinyFeed(), config, resume=inside)
    for name in ("train/loss", "train/pairs_per_step", "train/lr"):
        assert [row[name] for row in resumed.progress.history] == [
            row[name] for row in undisturbed.progress.history
        ]
