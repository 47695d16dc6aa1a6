"""Train the trials of one pack to their ends, in this process, writing what happens into the ledger."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from placeray.errors import PlacerayError
from placeray.sweep.asha import falls_behind
from placeray.sweep.config import Sweep
from placeray.sweep.ledger import Ledger, Trial, standing
from placeray.sweep.objectives import map_bytes
from placeray.training.loop import StepReport
from placeray.training.packing import Member, train_packed
from placeray.training.progress import step_metrics
from placeray.training.run import RunResult, RunSpec
from placeray.training.state import Snapshot
from placeray.training.validation import code_score, score


def ride_pack(
    sweep: Sweep, numbers: Sequence[int], *, stop_at: float | None = None, device: torch.device | None = None
) -> None:
    """Train trials together until each has ended; what went wrong stands in their records.

    Args:
        numbers: trials of one pack key, all at the same step.
        stop_at: `time.time()` after which they end with their epoch.
    """
    ledger = Ledger(sweep.output)
    riders = [_Rider(sweep, ledger, ledger.read(number), stop_at) for number in numbers]
    try:
        train_packed([rider.member() for rider in riders], device=device)
    except Exception as error:  # what they share cannot be had: all of them fail
        for rider in riders:
            rider.ended(error)


@dataclass
class _Rider:
    """One trial of the pack: listens to its run and keeps its record."""

    sweep: Sweep
    ledger: Ledger
    trial: Trial
    stop_at: float | None

    def __post_init__(self) -> None:
        self.spec: RunSpec = self.sweep.spec(self.trial.number, self.trial.values)
        self.step_seconds: list[float] = []
        self._steps = self.ledger.read_steps(self.trial.number)

    def member(self) -> Member:
        """The trial as training sees it, from where it stood."""
        resume = self.ledger.read_snapshot(self.trial.number)
        done, step = (resume.progress.epoch, resume.progress.step) if resume else (0, 0)
        # A record may be ahead of the snapshot; what comes again is dropped.
        self.trial.epochs = [report for report in self.trial.epochs if report["epoch"] <= done]
        self._steps = [report for report in self._steps if report["step"] <= step]
        if not (resume and resume.progress.stopped):
            self.trial.why = ""
        self.trial.state, self.trial.map_bytes = "running", map_bytes(self.spec.model)
        self.ledger.write(self.trial)
        return Member(self.spec, self, resume, self.step_seconds, self.ended)

    def steps(self, report: StepReport) -> None:
        """Keep the figures of a stretch of steps."""
        self._steps.append({"step": float(report.step), **step_metrics(report)})
        self.ledger.write_steps(self.trial.number, self._steps)

    def epoch(self, report: dict[str, float]) -> bool:
        """Keep the figures of an epoch; True ends the trial."""
        entry = dict(report)
        if any("/recall_at_" in key for key in report):
            self._rank(entry)
        self.trial.epochs.append(entry)
        self.trial.why = self._reason_to_stop()
        self._note_time()
        self.ledger.write(self.trial)
        return bool(self.trial.why)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Keep where the trial stands."""
        self.ledger.write_snapshot(self.trial.number, snapshot)

    def ended(self, outcome: RunResult | Exception) -> None:
        """Keep how the trial ended."""
        trial = self.trial
        if trial.ended:
            return
        if isinstance(outcome, Exception):
            trial.state, trial.why = "failed", _sentence(outcome)
        else:
            early = len(trial.epochs) < self.spec.train.epochs
            trial.state = "stopped" if early else "finished"
            if early and not trial.why:
                patience = self.spec.train.validation.patience
                trial.why = f"it had gained nothing in {patience} judgements after epoch {len(trial.epochs)}"
            trial.checkpoint, trial.model_id = self.spec.output, outcome.model_id
        self._note_time()
        self.ledger.write(trial)
        self.ledger.drop_snapshot(trial.number)

    def _rank(self, entry: dict[str, float]) -> None:
        """Give a judged epoch the scores of the best so far. Both go together: they rise only where the loop keeps the
        weights, so that the first epoch of the highest pair is the one it kept.
        """
        config = self.spec.train.validation
        entry |= {"score": score(entry, config), "code_score": code_score(entry, config)}
        if best := self.trial.best:
            entry["score"], entry["code_score"] = max(standing(entry), standing(best))

    def _reason_to_stop(self) -> str:
        epoch, epochs = len(self.trial.epochs), self.spec.train.epochs
        if epoch >= epochs:
            return ""
        if self.stop_at is not None and time.time() >= self.stop_at:
            return f"the sweep's time was up after epoch {epoch}"
        asha = self.sweep.early_stopping
        if asha is None:
            return ""
        others = [other for other in self.ledger.read_all() if other.number != self.trial.number]
        if falls_behind(self.trial.scores, [other.scores for other in others], asha, epochs):
            return f"it had fallen behind the other trials after epoch {epoch}"
        return ""

    def _note_time(self) -> None:
        if self.step_seconds:
            self.trial.step_s = median(self.step_seconds)
            self.trial.run_s = self.trial.step_s * self.trial.epochs[-1]["step"] if self.trial.epochs else 0.0


def _sentence(error: Exception) -> str:
    """What a person needs to know of an error; the file and line too where nobody foresaw it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if isinstance(error, PlacerayError):
        return lines[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0][:300]}{place}"
