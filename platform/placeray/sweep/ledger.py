"""What is known of every trial, on disk: a folder each, `trials/0003/`, with `trial.json`, its curve and its snapshot.

A trial is written by one process at a time, whole and at once, so that a reader sees a true state at any moment and
a sweep that was killed goes on from it: ended trials are never repeated, others resume from their snapshot.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from placeray import storage
from placeray.training.state import Snapshot

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED = ("finished", "stopped", "failed")
_RECORD, _STEPS, _SNAPSHOT = "trial.json", "steps.json", "state.pt"


@dataclass
class Trial:
    """One trial.

    Attributes:
        values:    by dotted path, what differs from the sweep's base configuration.
        state:     stopped means ended early with a checkpoint.
        why:       reason of `stopped` and `failed`, in a sentence; already set in the epoch that ends the trial.
        epochs:    a report per epoch: epoch, step, train/loss, recalls; where judged also `score` and `code_score`,
                   those of the best epoch so far.
        step_s:    seconds of a step, as the trial would take alone.
        map_bytes: bytes a photo takes in a map: code and quantised descriptor.
        run_s:     seconds the trial would have taken alone.
    """

    number: int
    values: dict[str, Any]
    state: State = "waiting"
    why: str = ""
    epochs: list[dict[str, float]] = field(default_factory=list)
    checkpoint: str = ""
    model_id: str = ""
    step_s: float = 0.0
    map_bytes: int = 0
    run_s: float = 0.0

    @property
    def name(self) -> str:
        """`trial 3`"""
        return f"trial {self.number}"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def scores(self) -> dict[int, float]:
        """Epoch -> best score so far, at the epochs that were judged."""
        return {int(report["epoch"]): report["score"] for report in self.epochs if "score" in report}

    @property
    def score(self) -> float | None:
        """Best score; R@1 + R@5, 0 to 2."""
        return max(self.scores.values(), default=None)

    @property
    def best(self) -> Mapping[str, float]:
        """The report of the epoch whose weights are kept, by the rule of the training loop: the best score,
        of equal ones the best code score, of equal ones the first. Empty before any judgement.
        """
        judged = [report for report in self.epochs if "score" in report]
        return max(judged, key=standing, default={})


def standing(report: Mapping[str, float]) -> tuple[float, float]:
    """What epochs and trials are ordered by: (`score`, `code_score`) of a judged report."""
    return report["score"], report.get("code_score", 0.0)


class Ledger:
    """The trials of a sweep, in `<root>/trials`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, number: int) -> str:
        """Where a trial keeps its files."""
        return storage.join(self.root, "trials", f"{number:04d}")

    def write(self, trial: Trial) -> None:
        """Replace what is known of a trial."""
        storage.write_json(storage.join(self.folder(trial.number), _RECORD), asdict(trial))

    def read(self, number: int) -> Trial:
        """What is known of a trial. Raises StorageError when there is none of that number."""
        return Trial(**storage.read_json(storage.join(self.folder(number), _RECORD)))

    def read_all(self) -> list[Trial]:
        """All trials by number; numbers have no gaps."""
        found: list[Trial] = []
        while storage.exists(storage.join(self.folder(len(found)), _RECORD)):
            found.append(self.read(len(found)))
        return found

    def write_steps(self, number: int, steps: list[dict[str, float]]) -> None:
        """Keep the curve of a trial: a report per stretch of steps, `step` and metrics under their tracking names."""
        storage.write_json(storage.join(self.folder(number), _STEPS), steps)

    def read_steps(self, number: int) -> list[dict[str, float]]:
        """The curve of a trial; empty before its first report."""
        uri = storage.join(self.folder(number), _STEPS)
        steps: list[dict[str, float]] = storage.read_json(uri) if storage.exists(uri) else []
        return steps

    def write_snapshot(self, number: int, snapshot: Snapshot) -> None:
        """Keep where a trial stands."""
        storage.write_bytes(storage.join(self.folder(number), _SNAPSHOT), snapshot.to_bytes())

    def read_snapshot(self, number: int) -> Snapshot | None:
        """Where a trial stands; None before its first epoch."""
        uri = storage.join(self.folder(number), _SNAPSHOT)
        return Snapshot.from_bytes(storage.read_bytes(uri)) if storage.exists(uri) else None

    def drop_snapshot(self, number: int) -> None:
        """An ended trial needs none."""
        uri = storage.join(self.folder(number), _SNAPSHOT)
        if storage.exists(uri):
            storage.remove(uri)
