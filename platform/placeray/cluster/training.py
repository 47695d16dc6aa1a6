"""Training on Ray Train: a torch process group that survives lost workers, lost machines and a killed driver.

The run is named after everything that decides its outcome (configuration, data, starting weights). Ray Train keeps
the last snapshots under `<output>/training/<name>`; the same run started again, by Ray or by a person, goes on from
there. The checkpoint folder itself is written once, at the end, its card last.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from placeray import storage
from placeray.cluster.parts import ensure_ray
from placeray.datasets.reading import places_fingerprint
from placeray.errors import ConfigError, PlacerayError, StorageError, TrainingError
from placeray.jobspecs.train import WorkersConfig
from placeray.model.card import CARD_FILE
from placeray.tracking.runs import Run
from placeray.training.allocator import KEEP_FREED_MEMORY
from placeray.training.loop import StepReport
from placeray.training.progress import epoch_line, epoch_metrics, step_line, step_metrics
from placeray.training.run import RunSpec, train_once
from placeray.training.state import Snapshot

_STATE_FILE = "state.pt"
_POLL_S = 0.5


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """What `train` did."""

    checkpoint: str
    model_id: str
    metrics: dict[str, float]
    epochs: int
    places: int
    photos: int
    seconds: float
    already_finished: bool


def train(spec: RunSpec, workers: WorkersConfig, run: Run) -> TrainReport:
    """Train by a recipe and leave a finished checkpoint folder at `spec.output`.

    Args:
        spec:    uris may be relative; they are resolved here, on the driver.
        workers: how many processes on which resources.
        run:     receives metrics while it trains.

    Raises:
        ConfigError: `spec.output` holds the result of another run.
        StorageError: `spec.output` cannot be written.
        TrainingError: the workers could not be started or failed more often than allowed.
        PlacerayError: what a worker says about data, configuration or the loss.
    """
    started = time.monotonic()
    spec = identified(spec)
    finished = finished_report(spec)
    if finished is not None:
        return finished
    storage.check_can_write(storage.join(spec.output, CARD_FILE))
    ensure_ray()
    _check_room(workers)
    answer = _fit(spec, workers, run)
    for file in storage.list_files(_state_folder(spec)):
        storage.remove(file)
    return TrainReport(
        spec.output, answer["model_id"], answer["metrics"], answer["epochs"], answer["places"], answer["photos"],
        time.monotonic() - started, already_finished=False,
    )  # fmt: skip


def identified(spec: RunSpec) -> RunSpec:
    """The spec with absolute paths and its key, as `train` runs it and `finished_report` wants it."""
    spec = _located(spec)
    return spec.model_copy(update={"key": run_key(spec)})


def _located(spec: RunSpec) -> RunSpec:
    """All paths absolute: a worker runs in another folder than the driver."""
    weights = spec.model.backbone.weights
    if weights is not None and weights != "timm":
        backbone = spec.model.backbone.model_copy(update={"weights": storage.resolve(weights)})
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": backbone})})
    return spec.model_copy(
        update={
            "normalized": storage.resolve(spec.normalized),
            "output": storage.resolve(spec.output),
            "start_from": None if spec.start_from is None else storage.resolve(spec.start_from),
        }
    )


def run_key(spec: RunSpec) -> str:
    """Recipe name and a hash of everything that decides the outcome: configuration, data, starting weights.

    Raises:
        StorageError: the data or the starting checkpoint is not finished.
    """
    start = None
    if spec.start_from is not None and storage.exists(storage.join(spec.start_from, CARD_FILE)):
        start = storage.read_json(storage.join(spec.start_from, CARD_FILE))["model_id"]
    identity = {
        "data": places_fingerprint(spec.normalized),
        "start_from": start or spec.start_from,
        "model": spec.model.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json", exclude={"log_every_s": True, "feed": True}),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{spec.train.recipe}-{digest[:16]}"


def finished_report(spec: RunSpec) -> TrainReport | None:
    """The report of a run that finished earlier, None when there is none.

    Raises:
        ConfigError: the output folder holds another run's checkpoint.
    """
    card_uri = storage.join(spec.output, CARD_FILE)
    if not storage.exists(card_uri):
        return None
    card = storage.read_json(card_uri)
    if card.get("run_key") != spec.key:
        raise ConfigError(
            f"{spec.output} holds the checkpoint of another run ({card.get('run_key')}, this one is {spec.key}): its "
            "configuration, data or start differ; choose another output or move that folder away"
        )
    epochs = len(card.get("history", []))
    return TrainReport(
        spec.output, card["model_id"], card["metrics"], epochs, 0, 0, 0.0, already_finished=True
    )


def _fit(spec: RunSpec, workers: WorkersConfig, run: Run) -> dict[str, Any]:
    # A report waits for the next health check of the controller: the default of 2 s would be a tax on short epochs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    board = _board_on_this_machine()
    trainer = ray.train.torch.TorchTrainer(
        _worker_main,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "workers": workers.model_dump_json(),
            "board": board,
        },
        scaling_config=_scaling(workers),
        run_config=ray.train.RunConfig(
            name=spec.key,
            storage_path=_state_root(spec),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=3
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={} if workers.use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        ),
    )
    with _showing(board, spec, run) as events:
        try:
            answer = trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            events.drain()
            raise TrainingError(events.last_error or _cause(error)) from None
    if answer is None or "error" in answer:
        raise TrainingError(
            answer["error"] if answer else "training ended without a result; run the same job again"
        )
    return dict(answer)


def _board_on_this_machine() -> Any:
    """Beside the driver: anywhere else it would be lost with another machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()


def _scaling(workers: WorkersConfig) -> ray.train.ScalingConfig:
    number: int | tuple[int, int] = workers.num_workers
    if workers.min_workers is not None and workers.min_workers < workers.num_workers:
        number = (workers.min_workers, workers.num_workers)
    return ray.train.ScalingConfig(
        num_workers=number,
        use_gpu=workers.use_gpu,
        resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
    )


def _check_room(workers: WorkersConfig) -> None:
    """On a Ray of one's own no machine will ever join: say at once what would otherwise wait for ever."""
    number = workers.min_workers or workers.num_workers
    have = ray.cluster_resources()
    wanted = {"CPU": number * workers.cpus_per_worker, **({"GPU": float(number)} if workers.use_gpu else {})}
    short = {kind: amount for kind, amount in wanted.items() if have.get(kind, 0.0) < amount}
    if not short:
        return
    sentence = ", ".join(
        f"{amount:g} {kind}s wanted, {have.get(kind, 0.0):g} there" for kind, amount in short.items()
    )
    if not os.environ.get("RAY_ADDRESS"):
        raise TrainingError(
            f"{number} training workers do not fit on this machine: {sentence}; change workers.*"
        )
    print(f"train: waiting for machines to join the cluster: {sentence}", file=sys.stderr, flush=True)


def _worker_main(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one worker. An error that a restart would meet again is returned, not raised."""
    spec = RunSpec.model_validate_json(config["spec"])
    workers = WorkersConfig.model_validate_json(config["workers"])
    context, board = ray.train.get_context(), config["board"]
    hopeless = ray.get(board.hopeless.remote())
    if hopeless is not None:
        return {"error": hopeless}
    torch.set_num_threads(workers.torch_threads or _own_cores(context.get_local_world_size()))
    listener = _RayListener(spec, board, context.get_world_rank())
    try:
        result = train_once(
            spec, listener, device=ray.train.torch.get_device(), resume=_last_snapshot(listener)
        )
    except PlacerayError as error:
        # A store may answer the next time; nothing else gets better by repeating it.
        kind = "error" if isinstance(error, StorageError) else "hopeless"
        if kind == "hopeless" and context.get_world_size() == 1:
            return {"error": str(error)}
        # The others may wait in a collective: only a restart of the group frees them; when hopeless it ends at once.
        ray.get(board.push.remote([(kind, str(error))]))
        raise
    return dataclasses.asdict(result)


def _own_cores(workers_here: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


def _last_snapshot(listener: "_RayListener") -> Snapshot | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        snapshot = Snapshot.from_bytes((Path(folder) / _STATE_FILE).read_bytes())
    progress = snapshot.progress
    listener.note(f"going on after step {progress.step} ({progress.epoch} epochs are finished)")
    return snapshot


class _RayListener:
    """Sends progress of rank 0 to the driver and hands snapshots to Ray Train."""

    def __init__(self, spec: RunSpec, board: Any, rank: int) -> None:
        self._spec, self._board, self._rank = spec, board, rank
        self._last: dict[str, float] = {}

    def note(self, text: str) -> None:
        self._send("note", text)

    def steps(self, report: StepReport) -> None:
        self._send("steps", report)

    def epoch(self, report: dict[str, float]) -> None:
        self._last = report
        self._send("epoch", report)

    def snapshot(self, snapshot: Snapshot) -> None:
        if self._rank != 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _STATE_FILE).write_bytes(snapshot.to_bytes())
            ray.train.report(dict(self._last), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _send(self, kind: str, value: Any) -> None:
        if self._rank == 0:
            self._board.push.remote([(kind, value)])


class _Board:
    """Events on their way from the workers to the driver: Ray's own log forwarding is off in these jobs."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._hopeless: str | None = None

    def push(self, events: list[tuple[str, Any]]) -> None:
        self._events.extend(events)
        self._hopeless = next((value for kind, value in events if kind == "hopeless"), self._hopeless)

    def hopeless(self) -> str | None:
        """What a worker said that a restart would meet again."""
        return self._hopeless

    def take(self) -> list[tuple[str, Any]]:
        events, self._events = self._events, []
        return events


class _Events:
    """The driver's side of the board: prints a line and logs the metrics of each event."""

    def __init__(self, board: Any, spec: RunSpec, run: Run) -> None:
        self._board, self._spec, self._run = board, spec, run
        self.last_error: str | None = None

    def drain(self) -> None:
        for kind, value in ray.get(self._board.take.remote()):
            self._show(kind, value)

    def _show(self, kind: str, value: Any) -> None:
        recipe, epochs = self._spec.train.recipe, self._spec.train.epochs
        if kind == "steps":
            _say(step_line(recipe, epochs, value))
            self._run.log(step_metrics(value), step=value.step)
        elif kind == "epoch":
            _say(epoch_line(recipe, epochs, value))
            self._run.log(epoch_metrics(value), step=int(value["step"]))
        elif kind in ("error", "hopeless"):
            self.last_error = value
            _say(f"{recipe}  {value}")
        else:
            _say(f"{recipe}  {value}")


@contextlib.contextmanager
def _showing(board: Any, spec: RunSpec, run: Run) -> Iterator[_Events]:
    """Print and log what the workers report, from a thread of the driver, until the block ends."""
    events, done = _Events(board, spec, run), threading.Event()

    def poll() -> None:
        while not done.wait(_POLL_S):
            events.drain()

    thread = threading.Thread(target=poll, name="training-progress", daemon=True)
    thread.start()
    try:
        yield events
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            events.drain()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _cause(error: BaseException) -> str:
    """The innermost sentence of what Ray Train raises."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", None) or failure for failure in failures.values()] or [error]
    lines = [line for line in str(causes[0]).splitlines() if line.strip()]
    return f"training failed: {lines[-1].strip() if lines else type(causes[0]).__name__}"


def _state_root(spec: RunSpec) -> str:
    return storage.join(spec.output, "training")


def _state_folder(spec: RunSpec) -> str:
    return storage.join(_state_root(spec), spec.key)
