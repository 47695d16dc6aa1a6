"""Sweeps on Ray Tune: what Tune places, restarts and counts is a pack of trials; the ledger holds the trials.

Tune gives every trial of its own a process. Here one process trains several (they share the frozen backbone), so a
Tune trial is a pack: our searcher hands Tune pack after pack, Tune finds the resources, fractions included, and
starts a pack again whose process was lost. What Tune would remember of an experiment is not needed: a sweep that was
killed goes on from the ledger, with the same trials, each from its last snapshot.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from placeray import storage
from placeray.cluster.parts import ensure_ray
from placeray.datasets.reading import places_fingerprint
from placeray.errors import ConfigError, TrainingError
from placeray.jobspecs.tune import SweepWorkersConfig
from placeray.sweep.config import Sweep
from placeray.sweep.ledger import Ledger, Trial
from placeray.sweep.objectives import best_trial
from placeray.sweep.planning import Planner
from placeray.sweep.riding import ride_pack
from placeray.sweep.words import short_paths, short_value
from placeray.tracking.sweeps import SweepRuns
from placeray.training.progress import epoch_line

PLAN_FILE, SUMMARY_FILE = "plan.json", "sweep.json"
_POLL_S = 1.0


@dataclass(frozen=True)
class SweepReport:
    """How a sweep stands at its end."""

    trials: list[Trial]
    best: Trial
    seconds: float
    already_finished: bool


def tune_sweep(sweep: Sweep, workers: SweepWorkersConfig, runs: SweepRuns) -> SweepReport:
    """Train the trials of a sweep, or those that are left of it.

    Args:
        sweep: located (see `located`).
        runs:  receives parameters and curves while it trains.

    Raises:
        ConfigError: the space does not fit the training job, or `sweep.output` holds another sweep.
        TrainingError: no trial came to a checkpoint, or the workers do not fit.
    """
    started = time.monotonic()
    sweep.check_space()
    _claim(sweep)
    ensure_ray()
    _check_room(workers)
    ledger = Ledger(sweep.output)
    known = len(ledger.read_all())
    if known:
        ended = sum(trial.ended for trial in ledger.read_all())
        _say(f"sweep: going on with {known} trials, of which {ended} have ended")
    with _showing(sweep, ledger, runs):
        _run_packs(sweep, workers, ledger)
    trials = ledger.read_all()
    lost = runs.sync_all([_for_tracking(sweep, ledger, trial) for trial in trials])
    if lost:
        _say(
            f"sweep: the tracking store did not take all of the trials {lost}; the folder of the sweep holds them"
        )
    best = best_trial(trials)
    if best is None:
        reasons = [f"trial {trial.number}: {trial.why}" for trial in trials if trial.why]
        raise TrainingError(f"none of {len(trials)} trials came to a checkpoint; {'; '.join(reasons[:3])}")
    return SweepReport(trials, best, time.monotonic() - started, already_finished=False)


def located(sweep: Sweep) -> Sweep:
    """The sweep with absolute paths: a worker runs in another folder than the driver."""
    backbone = sweep.model.backbone
    if backbone.weights not in (None, "timm"):
        backbone = backbone.model_copy(update={"weights": storage.resolve(str(backbone.weights))})
    paths = {
        "normalized": storage.resolve(sweep.normalized),
        "output": storage.resolve(sweep.output),
        "start_from": None if sweep.start_from is None else storage.resolve(sweep.start_from),
        "model": sweep.model.model_copy(update={"backbone": backbone}),
    }
    return sweep.model_copy(update=paths)


def sweep_key(sweep: Sweep) -> str:
    """A hash of everything that decides which trials there are and how each goes; not how many or how packed."""
    free = {"output", "trials", "time_limit_s", "pack"}
    identity = sweep.model_dump(mode="json", exclude=free)
    for part in ("feed", "log_every_s"):
        identity["train"].pop(part)
    identity["data"] = places_fingerprint(sweep.normalized)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def finished_sweep(sweep: Sweep) -> SweepReport | None:
    """The report of the same sweep when it ended earlier, None when something is left to do."""
    uri = storage.join(sweep.output, SUMMARY_FILE)
    if not storage.exists(uri):
        return None
    summary = storage.read_json(uri)
    if (summary["key"], summary["trials"], summary["time_limit_s"]) != (
        sweep_key(sweep), sweep.num_trials, sweep.time_limit_s,
    ):  # fmt: skip
        return None
    trials = Ledger(sweep.output).read_all()
    return SweepReport(trials, trials[summary["best"]], 0.0, already_finished=True)


def write_summary(sweep: Sweep, report: SweepReport) -> None:
    """What marks the sweep as ended; written last."""
    storage.write_json(
        storage.join(sweep.output, SUMMARY_FILE),
        {
            "key": sweep_key(sweep), "trials": sweep.num_trials, "time_limit_s": sweep.time_limit_s,
            "best": report.best.number, "checkpoint": report.best.checkpoint, "score": report.best.score,
            "states": [trial.state for trial in report.trials], "sweep": sweep.model_dump(mode="json"),
        },
    )  # fmt: skip


def _claim(sweep: Sweep) -> None:
    """The folder belongs to one sweep."""
    uri, key = storage.join(sweep.output, PLAN_FILE), sweep_key(sweep)
    if storage.exists(uri) and storage.read_json(uri)["key"] != key:
        raise ConfigError(
            f"{sweep.output} holds another sweep: its space, search, training or data differ; choose another output or "
            "move that folder away"
        )
    storage.write_json(uri, {"key": key, "sweep": sweep.model_dump(mode="json")})


def _check_room(workers: SweepWorkersConfig) -> None:
    """Tune would wait for ever for what no machine has."""
    have = ray.cluster_resources()
    for kind, wanted in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if wanted > have.get(kind, 0.0):
            raise TrainingError(
                f"a pack of trials wants {wanted:g} {kind}s, the cluster has {have.get(kind, 0.0):g}; change workers.*"
            )


class _PackSearcher(Searcher):
    """Tune asks it what to run next; the answer is the numbers of the trials of a pack."""

    def __init__(self, planner: Planner, stop_at: float | None) -> None:
        super().__init__(metric="trials", mode="max")
        self._planner, self._stop_at = planner, stop_at

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next pack, or that there is none."""
        late = self._stop_at is not None and time.time() >= self._stop_at
        numbers = None if late else self._planner.next_pack()
        return str(Searcher.FINISHED) if numbers is None else {"numbers": numbers}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The ledger knows already."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


def _run_packs(sweep: Sweep, workers: SweepWorkersConfig, ledger: Ledger) -> None:
    # Tune's own loggers, state and Ctrl-C handling are of no use here: the ledger and the driver do that.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables count packs, ours count trials
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    stop_at = None if sweep.time_limit_s is None else time.time() + sweep.time_limit_s
    resources = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    sweep_json, workers_json = sweep.model_dump_json(), workers.model_dump_json()

    def train_pack(config: dict[str, Any]) -> dict[str, int]:
        return _train_pack(sweep_json, workers_json, config["numbers"], stop_at)

    with tempfile.TemporaryDirectory(prefix="placeray-sweep-") as folder:
        results = tune.Tuner(
            tune.with_resources(train_pack, resources),
            tune_config=tune.TuneConfig(
                search_alg=_PackSearcher(Planner(sweep), stop_at),
                num_samples=10 * sweep.num_trials,  # the searcher says when there are no more
                max_concurrent_trials=workers.at_once,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="packs", storage_path=folder, verbose=0,
                failure_config=tune.FailureConfig(max_failures=workers.max_failures),
            ),
        ).fit()  # fmt: skip
    for result in results:
        if result.error is not None:
            _name_as_lost(ledger, result.config["numbers"], workers.max_failures + 1)


def _name_as_lost(ledger: Ledger, numbers: list[int], attempts: int) -> None:
    for number in numbers:
        trial = ledger.read(number)
        if not trial.ended:
            trial.state = "failed"
            trial.why = f"its process was lost {attempts} times (memory ran out, or a library crashed)"
            ledger.write(trial)


def _train_pack(
    sweep_json: str, workers_json: str, numbers: list[int], stop_at: float | None
) -> dict[str, int]:
    """One pack, in a worker process of Tune; trials that ended before the process was lost are left alone."""
    sweep = Sweep.model_validate_json(sweep_json)
    workers = SweepWorkersConfig.model_validate_json(workers_json)
    cores = max(1, len(os.sched_getaffinity(0)) // workers.at_once)
    torch.set_num_threads(workers.torch_threads or cores)
    device = torch.device("cuda" if workers.gpus and torch.cuda.is_available() else "cpu")
    ledger = Ledger(sweep.output)
    for group in _in_step(ledger, [n for n in numbers if not ledger.read(n).ended]):
        ride_pack(sweep, group, stop_at=stop_at, device=device)
    return {"trials": len(numbers)}


def _in_step(ledger: Ledger, numbers: list[int]) -> list[list[int]]:
    """Trials that stand at the same step ride together; all do unless the process was lost between two snapshots."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        snapshot = ledger.read_snapshot(number)
        groups.setdefault(snapshot.progress.step if snapshot else 0, []).append(number)
    return list(groups.values())


@contextlib.contextmanager
def _showing(sweep: Sweep, ledger: Ledger, runs: SweepRuns) -> Iterator[None]:
    """Print a line per epoch of every trial and record its curve, from a thread, until the block ends."""
    done, seen = threading.Event(), {trial.number: len(trial.epochs) for trial in ledger.read_all()}
    ended = {trial.number for trial in ledger.read_all() if trial.ended}

    def look() -> None:
        number = 0
        while storage.exists(storage.join(ledger.folder(number), "trial.json")):
            if number not in ended:
                trial = ledger.read(number)
                _show(sweep, trial, seen.get(number, 0))
                seen[number] = len(trial.epochs)
                if runs.sync(*_for_tracking(sweep, ledger, trial)) and trial.ended:
                    ended.add(number)
            number += 1

    def poll() -> None:
        while not done.wait(_POLL_S):
            look()

    thread = threading.Thread(target=poll, name="sweep-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()


def _for_tracking(
    sweep: Sweep, ledger: Ledger, trial: Trial
) -> tuple[Trial, list[dict[str, float]], dict[str, Any]]:
    try:
        config = sweep.spec(trial.number, trial.values).model_dump(mode="json")
    except ConfigError as error:
        config = {"values": trial.values, "error": str(error)}
    return trial, ledger.read_steps(trial.number), config


def _show(sweep: Sweep, trial: Trial, seen: int) -> None:
    names = short_paths(list(trial.values))
    values = ", ".join(f"{names[path]} {short_value(value)}" for path, value in trial.values.items())
    for report in trial.epochs[seen:]:
        _say(epoch_line(f"trial {trial.number} ({values})", sweep.train.epochs, report))
    if trial.ended:
        _say(f"trial {trial.number} {trial.state}{': ' + trial.why if trial.why else ''}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
