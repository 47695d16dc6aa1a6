"""Which trials ride next: those that were interrupted first, then new ones."""

from collections import deque

from placeray.errors import ConfigError
from placeray.sweep.config import Sweep
from placeray.sweep.ledger import Ledger, Trial
from placeray.sweep.search import Known, OptunaSearch, propose
from placeray.training.packing import pack_key


class Planner:
    """Hands out packs of trial numbers and writes new trials into the ledger."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._ledger = sweep, Ledger(sweep.output)
        self._packs: deque[list[int]] = deque()
        self._enqueue([trial for trial in self._ledger.read_all() if not trial.ended])

    def next_pack(self) -> list[int] | None:
        """Numbers of trials to train together; None when all are handed out."""
        while not self._packs:
            trials = self._ledger.read_all()
            left = self._sweep.num_trials - len(trials)
            if left <= 0:
                return None
            # Random and grid trials do not depend on results: all are drawn, so that packs can be filled.
            wanted = min(left, self._sweep.pack) if isinstance(self._sweep.search, OptunaSearch) else left
            self._enqueue(self._draw(trials, wanted))
        return self._packs.popleft()

    def _draw(self, trials: list[Trial], wanted: int) -> list[Trial]:
        known = [
            Known(trial.values, None if trial.state == "failed" else trial.score, trial.ended, trial.state == "stopped")
            for trial in trials
        ]  # fmt: skip
        drawn: list[Trial] = []
        for _ in range(wanted):
            values = propose(self._sweep.space, self._sweep.search, known)
            trial = Trial(len(known), values)
            self._ledger.write(trial)
            known.append(Known(values, None, ended=False, stopped_early=False))
            drawn.append(trial)
        return drawn

    def _enqueue(self, trials: list[Trial]) -> None:
        """Trials of one pack key that stand at the same step ride together."""
        groups: dict[tuple[str, int], list[int]] = {}
        for trial in trials:
            try:
                key = pack_key(self._sweep.spec(trial.number, trial.values))
            except ConfigError as error:
                trial.state, trial.why = "failed", str(error)
                self._ledger.write(trial)
                continue
            snapshot = self._ledger.read_snapshot(trial.number)
            groups.setdefault((key, snapshot.progress.step if snapshot else 0), []).append(trial.number)
        size = self._sweep.pack
        for numbers in groups.values():
            self._packs.extend(numbers[start : start + size] for start in range(0, len(numbers), size))
