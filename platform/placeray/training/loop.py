"""The training loop: epochs of steps, judgement, early stopping, best weights, resume. It knows no Ray and no MLflow.

What it needs from outside comes as plain callables: batches from a feed, a judge, and a listener that shows progress
and keeps snapshots.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from placeray.errors import TrainingError
from placeray.training.config import TrainConfig
from placeray.training.gather import rank
from placeray.training.optimizer import build_optimizer, build_schedule
from placeray.training.state import EpochSums, Progress, Snapshot, changing_weights, copied, load_changing
from placeray.training.step import LossFunction, StepResult, TrainStep

Batch = tuple[Tensor, Tensor]
Judge = Callable[[nn.Module], dict[str, float]]
Score = Callable[[dict[str, float]], float]


class Feed(Protocol):
    """Batches of one epoch, always the same for the same epoch number; every rank gets its share."""

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, number: int, first_step: int = 0) -> Iterable[Batch]:
        """(images (B_rank, 3, H, W) float32, labels (B_rank,) int64) from `first_step` on."""
        ...


class Listener(Protocol):
    """Where progress goes. All ranks call `epoch` and `snapshot` at the same moments, `steps` each by its own clock.

    `epoch` may answer True, on all ranks alike: the run then ends with this epoch, as if patience had run out.
    """

    def steps(self, report: "StepReport") -> None: ...

    def epoch(self, report: dict[str, float]) -> bool | None: ...

    def snapshot(self, snapshot: Snapshot) -> None: ...


class StepReport(NamedTuple):
    """Progress since the last report; `waiting` is the share of time spent waiting for data, 0..1."""

    epoch: int
    step: int
    total_steps: int
    last: StepResult
    mean_loss: float
    photos_per_s: float
    waiting: float


class FitResult(NamedTuple):
    """The outcome; the model holds the best weights."""

    progress: Progress
    metrics: dict[str, float]


class Silent:
    """A listener that does nothing: for tests and for whoever needs no progress."""

    def steps(self, report: StepReport) -> None:
        """Ignore."""

    def epoch(self, report: dict[str, float]) -> None:
        """Ignore."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Ignore."""


def fit(
    model: nn.Module,
    loss: LossFunction,
    feed: Feed,
    config: TrainConfig,
    *,
    judge: Judge | None = None,
    score: Score | None = None,
    tie: Score | None = None,
    listener: Listener | None = None,
    resume: Snapshot | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> FitResult:
    """Train a model that a recipe has prepared; at the end it holds the best weights.

    Args:
        model:    prepared: parameters frozen or trainable, modules in the mode they train in.
        loss:     (descriptors, labels) -> terms.
        feed:     batches by epoch.
        judge:    model -> metrics on held-out sets; None keeps the last weights.
        score:    metrics -> the number that picks the best epoch, larger is better; needed with `judge`.
        tie:      metrics -> the number that decides between epochs of equal score; the earlier one if equal too.
        resume:   where an interrupted run stood.
        wrap:     makes the module that is called in a step, such as DistributedDataParallel.

    Raises:
        TrainingError: no batch to train on, or a loss that is not finite.
    """
    return _Run(model, loss, feed, config, judge, score, tie, listener or Silent(), resume, wrap).run()


class _Run:
    """State of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        feed: Feed,
        config: TrainConfig,
        judge: Judge | None,
        score: Score | None,
        tie: Score | None,
        listener: Listener,
        resume: Snapshot | None,
        wrap: Callable[[nn.Module], nn.Module] | None,
    ) -> None:
        if feed.steps_per_epoch == 0:
            raise TrainingError("an epoch has no batch: no domain has two places with enough photos")
        self.model, self.feed, self.config = model, feed, config
        self.judge, self.score, self.tie, self.listener = judge, score, tie, listener
        optimizer = build_optimizer(model, config.optimizer)
        schedule = build_schedule(
            optimizer, config.optimizer, steps_per_epoch=feed.steps_per_epoch, epochs=config.epochs
        )
        self.step = TrainStep(
            wrap(model) if wrap else model, loss, optimizer, schedule,
            config.precision, config.micro_batch, config.optimizer.clip_norm,
        )  # fmt: skip
        self.progress = Progress()
        self.best = copied(changing_weights(model))
        if resume is not None:
            self._resume(resume)

    def run(self) -> FitResult:
        while self.progress.epoch < self.config.epochs and not self.progress.stopped:
            self._epoch()
        if self.progress.best_epoch is not None:
            load_changing(self.model, self.best)
        return FitResult(self.progress, self._metrics_of_best())

    def _epoch(self) -> None:
        number, meter = self.progress.epoch, _Meter(self.progress.sums, self.progress.step_in_epoch)
        for images, labels in meter.waiting_for(self.feed.epoch(number, self.progress.step_in_epoch)):
            torch.manual_seed(_seed(self.config.seed, self.progress.step))
            result = self.step(images, labels)
            self.progress.step += 1
            self.progress.step_in_epoch += 1
            meter.add(result)
            if meter.since_report >= self.config.log_every_s:
                self.listener.steps(self._report(number, result, meter))
            every = self.config.checkpoint_every_steps
            if (
                every
                and self.progress.step % every == 0
                and self.progress.step_in_epoch < self.feed.steps_per_epoch
            ):
                self.listener.snapshot(self.snapshot())
        if meter.last is not None and meter.has_news:
            self.listener.steps(self._report(number, meter.last, meter))
        self.progress.epoch, self.progress.step_in_epoch = number + 1, 0
        self._close_epoch(meter)

    def _close_epoch(self, meter: "_Meter") -> None:
        epoch = self.progress.epoch
        report = {"epoch": float(epoch), "step": float(self.progress.step), **meter.figures()}
        last = epoch == self.config.epochs
        if self.judge is not None and (last or epoch % self.config.validation.every_epochs == 0):
            started = time.monotonic()
            metrics = self.judge(self.model)
            report.update(metrics, seconds_judging=time.monotonic() - started)
            self._remember(metrics)
        self.progress.history.append(report)
        self.progress.sums = EpochSums()
        if self.listener.epoch(report):
            self.progress.stopped = True
        self.listener.snapshot(self.snapshot())

    def _remember(self, metrics: dict[str, float]) -> None:
        assert self.score is not None, "fit with a judge needs a score"
        value, tie = self.score(metrics), self.tie(metrics) if self.tie else 0.0
        best = self.progress
        if best.best_score is None or (value, tie) > (best.best_score, best.best_tie):
            best.best_score, best.best_tie, best.best_epoch = value, tie, best.epoch
            self.progress.judged_without_gain = 0
            self.best = copied(changing_weights(self.model))
        else:
            self.progress.judged_without_gain += 1
        self.progress.stopped = self.progress.judged_without_gain >= self.config.validation.patience

    def snapshot(self) -> Snapshot:
        weights = changing_weights(self.model)
        return Snapshot(
            self.progress, copied(weights), self.best, self.step.optimizer.state_dict(),
            self.step.schedule.state_dict(), self.step.scaler.state_dict(),
        )  # fmt: skip

    def _resume(self, snapshot: Snapshot) -> None:
        self.progress, self.best = snapshot.progress, snapshot.best
        load_changing(self.model, snapshot.weights)
        self.step.optimizer.load_state_dict(snapshot.optimizer)
        self.step.schedule.load_state_dict(snapshot.schedule)
        self.step.scaler.load_state_dict(snapshot.scaler)

    def _report(self, epoch: int, result: StepResult, meter: "_Meter") -> StepReport:
        rate, waiting, mean_loss = meter.since_last_report()
        total = self.feed.steps_per_epoch * self.config.epochs
        return StepReport(epoch + 1, self.progress.step, total, result, mean_loss, rate, waiting)

    def _metrics_of_best(self) -> dict[str, float]:
        wanted = self.progress.best_epoch or self.progress.epoch
        rows = [row for row in self.progress.history if int(row["epoch"]) == wanted]
        return dict(rows[-1]) if rows else {}


def _seed(seed: int, step: int) -> int:
    """Of dropout and the like: the same after a restart, another one on every rank and step."""
    return (seed * 1_000_003 + step) * 1024 + rank()


class _Meter:
    """Loss, speed and waiting time of an epoch, which may have begun before a restart, and since the last report."""

    def __init__(self, sums: EpochSums, steps: int) -> None:
        self.last: StepResult | None = None
        self._sums, self._steps = sums, steps
        self._clock = time.monotonic()
        self._reported = (self._clock, sums.waited_s, sums.photos, sums.loss, steps)

    @property
    def since_report(self) -> float:
        return time.monotonic() - self._reported[0]

    @property
    def has_news(self) -> bool:
        return self._steps > self._reported[4]

    def waiting_for(self, batches: Iterable[Any]) -> Iterable[Any]:
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._sums.waited_s += time.monotonic() - asked
            yield batch

    def add(self, result: StepResult) -> None:
        now = time.monotonic()
        self.last = result
        self._steps += 1
        self._sums.loss += result.loss
        self._sums.photos += result.num_photos
        self._sums.pairs += result.num_pos_pairs + result.num_neg_pairs
        self._sums.seconds += now - self._clock
        self._clock = now

    def since_last_report(self) -> tuple[float, float, float]:
        """(photos per second, share of time spent waiting, mean loss) since the last call."""
        sums, now, (then, waited, photos, loss, steps) = self._sums, time.monotonic(), self._reported
        self._reported = (now, sums.waited_s, sums.photos, sums.loss, self._steps)
        seconds = max(now - then, 1e-9)
        mean_loss = (sums.loss - loss) / max(self._steps - steps, 1)
        return (sums.photos - photos) / seconds, (sums.waited_s - waited) / seconds, mean_loss

    def figures(self) -> dict[str, float]:
        sums, steps = self._sums, max(self._steps, 1)
        seconds = max(sums.seconds, 1e-9)
        return {
            "train/loss": sums.loss / steps,
            "train/pairs_per_step": sums.pairs / steps,
            "train/lr": self.last.lr if self.last else 0.0,
            "train/photos_per_s": sums.photos / seconds,
            "train/waiting_share": sums.waited_s / seconds,
            "seconds": seconds,
        }
