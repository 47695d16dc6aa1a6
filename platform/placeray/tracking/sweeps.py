"""A sweep in MLflow: one parent run, and below it a child run per trial with its values, curves and configuration.

The ledger on disk is the truth; `sync` brings MLflow up to it. It knows what was recorded before, asks the store
about it after a restart, and counts a point as recorded only when the store has taken it. So whatever is killed or
locked for a while, nothing is lost and nothing is there twice.
"""

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placeray.jobspecs.tracking import TrackingConfig
from placeray.sweep.ledger import Trial
from placeray.sweep.objectives import recall_at_1
from placeray.sweep.words import short_value
from placeray.tracking.code_version import code_version
from placeray.tracking.runs import Run, tracked_run
from placeray.tracking.store import resolved_uri
from placeray.training.progress import epoch_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_TRIAL_TAG = "placeray.trial"
_METRICS_AT_ONCE = 500
_ATTEMPTS = 5
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}

Point = tuple[str, float, int]  # name, value, step


class SweepRuns:
    """The parent run and its children. Without a store it takes everything and does nothing."""

    def __init__(self, parent: Run, tracking: TrackingConfig) -> None:
        self.parent = parent
        self._children: dict[int, _Child] = {}
        self._client: MlflowClient | None = None
        if parent.id is not None:
            import mlflow

            self._client = mlflow.MlflowClient(tracking_uri=resolved_uri(tracking.uri))
            self._experiment = self._client.get_run(parent.id).info.experiment_id

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the parent."""
        if self._client is not None:
            for name, value in tags.items():
                self._client.set_tag(self.parent.id, name, value)

    def sync(self, trial: Trial, steps: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> bool:
        """Bring a trial's child run up to what is known of it; True when the store holds all of it.

        Args:
            steps:  its curve: `step` and metrics under their tracking names.
            config: its resolved configuration, kept as a file when the run is made.
        """
        if self._client is None or trial.state == "waiting":
            return True
        try:
            child = self._child(trial, config)
            self._log_new(child, trial, steps)
            if trial.ended and not child.closed:
                self._close(child, trial)
        except Exception as error:  # the store is busy or away: the next call tries again
            print(
                f"tracking: {trial.name}: {str(error).strip()[:200]}; will try again",
                file=sys.stderr,
                flush=True,
            )
            return False
        return True

    def sync_all(
        self, trials: Sequence[tuple[Trial, Sequence[Mapping[str, float]], Mapping[str, Any]]]
    ) -> list[int]:
        """Sync with patience; numbers of the trials that the store did not take in several attempts."""
        left = list(trials)
        for attempt in range(_ATTEMPTS):
            left = [each for each in left if not self.sync(*each)]
            if not left:
                break
            time.sleep(2.0**attempt)
        return [trial.number for trial, _, _ in left]

    def _child(self, trial: Trial, config: Mapping[str, Any]) -> "_Child":
        if trial.number not in self._children:
            child = self._find(trial.number) or self._create(trial, config)
            self._children[trial.number] = child
        return self._children[trial.number]

    def _find(self, number: int) -> "_Child | None":
        """The child that an earlier run of the same sweep left, and how far it had come."""
        assert self._client is not None
        query = f"tags.`mlflow.parentRunId` = '{self.parent.id}' and tags.`{_TRIAL_TAG}` = '{number}'"
        found = self._client.search_runs([self._experiment], query, max_results=1)
        if not found:
            return None
        info = found[0].info
        last = {
            name: max(
                (entry.step for entry in self._client.get_metric_history(info.run_id, name)), default=-1
            )
            for name in ("train/step_loss", "train/loss")
        }
        return _Child(
            info.run_id, last["train/step_loss"], last["train/loss"], info.status in _STATUS.values()
        )

    def _create(self, trial: Trial, config: Mapping[str, Any]) -> "_Child":
        from mlflow.entities import Param

        assert self._client is not None
        tags = {"mlflow.parentRunId": str(self.parent.id), _TRIAL_TAG: str(trial.number)}
        made = self._client.create_run(self._experiment, tags=tags, run_name=f"trial-{trial.number:04d}")
        params = [Param(path, short_value(value)[:500]) for path, value in trial.values.items()]
        self._client.log_batch(made.info.run_id, params=params)
        self._client.log_text(made.info.run_id, json.dumps(config, indent=1), "config.json")
        return _Child(made.info.run_id)

    def _log_new(self, child: "_Child", trial: Trial, steps: Sequence[Mapping[str, float]]) -> None:
        new_steps = [report for report in steps if report["step"] > child.last_step]
        new_epochs = [report for report in trial.epochs if report["step"] > child.last_epoch_step]
        points: list[Point] = []
        for report in new_steps:
            points += [(name, value, int(report["step"])) for name, value in report.items() if name != "step"]
        for report in new_epochs:
            points += [(name, value, int(report["step"])) for name, value in epoch_metrics(report).items()]
        self._log(child.run_id, points)
        if new_steps:
            child.last_step = int(new_steps[-1]["step"])
        if new_epochs:
            child.last_epoch_step = int(new_epochs[-1]["step"])

    def _close(self, child: "_Child", trial: Trial) -> None:
        assert self._client is not None
        last = int(trial.epochs[-1]["step"]) if trial.epochs else 0
        figures = {"score": trial.score, "recall_at_1": recall_at_1(trial)}
        figures |= {"step_s": trial.step_s or None, "map_bytes": float(trial.map_bytes) or None}
        points = [(f"best/{name}", value, last) for name, value in figures.items() if value is not None]
        self._log(child.run_id, points)
        tags = {
            "state": trial.state,
            "why": trial.why,
            "checkpoint": trial.checkpoint,
            "model_id": trial.model_id,
        }
        for name, value in tags.items():
            if value:
                self._client.set_tag(child.run_id, f"placeray.{name}", value)
        self._client.set_terminated(child.run_id, _STATUS[trial.state])
        child.closed = True

    def _log(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        now = int(time.time() * 1000)
        metrics = [Metric(name.replace("@", "_at_"), float(value), now, step) for name, value, step in points]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])


@dataclass
class _Child:
    """A child run and the last steps that it holds."""

    run_id: str
    last_step: int = -1
    last_epoch_step: int = -1
    closed: bool = False


@contextmanager
def sweep_runs(
    name: str, config: Mapping[str, Any], tracking: TrackingConfig, *, key: str, data_fingerprint: str
) -> Iterator[SweepRuns]:
    """The runs of a sweep; an unfinished parent of the same key is continued.

    Args:
        config: the resolved configuration of the job, logged as parameters of the parent.

    Raises:
        TrackingError: the tracking store cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        with _making_the_store(tracking):
            parent = stack.enter_context(tracked_run(name, config, tracking, resume_key=key))
        runs = SweepRuns(parent, tracking)
        runs.tag({"placeray.code": code_version(), "placeray.data_fingerprint": data_fingerprint})
        yield runs


@contextmanager
def _making_the_store(tracking: TrackingConfig) -> Iterator[None]:
    """One process at a time opens a sqlite store: two that both make its tables break each other."""
    uri = resolved_uri(tracking.uri)
    if not tracking.enabled or not uri.startswith(_SQLITE):
        yield
        return
    path = Path(uri.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
