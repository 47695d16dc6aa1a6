"""Run a list of independent, resumable parts on Ray Data: the one engine under normalize, embed and index.

A job plans its work on the driver as a list of *parts*: small JSON-able dicts such as "write this domain
file" or "describe this file of photos". Each part is one row of a Ray Data set and is handed to one actor,
which writes its own files and returns a small JSON-able *report*. Nothing but these two dicts travels through
Ray, so memory stays bounded by what one worker holds, and a part that is repeated after a kill simply writes
the same files again.
"""

import contextlib
import json
import logging
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from placeray.errors import PlacerayError

Part = dict[str, Any]
Report = dict[str, Any]

_ANSWER = pa.schema([("number", pa.int64()), ("report", pa.string()), ("error", pa.string())])
_LOG_LINE_EVERY_S = 10.0


class PartWorker(Protocol):
    """What does the work: built once per actor, then called with one part after the other."""

    def __call__(self, part: Part) -> Report: ...


def ensure_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), else start a private local Ray.

    A private one is started on purpose instead of joining whatever runs on the machine: Ray remembers the
    address of an ended cluster and would wait for it for more than a minute.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=512 * 1024**2,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


def run_parts(
    parts: Sequence[Part],
    worker_cls: Callable[..., PartWorker],
    worker_kwargs: dict[str, Any] | None = None,
    *,
    describe: str,
    num_workers: int = 2,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    done: Callable[[Part], Report | None] | None = None,
    unit: str = "parts",
) -> list[Report]:
    """Hand every part to a pool of `num_workers` actors and return the reports in the order of `parts`.

    Args:
        parts:         JSON-able dicts. `name` says in messages which part it is; `rows`, where every part has
                       it, is what the progress bar counts (otherwise it counts parts).
        worker_cls:    importable class; one instance per actor, made with `worker_kwargs`, called with one part.
        describe:      verb of the job for progress and messages, such as "normalize".
        num_workers:   actors at most; fewer when there are fewer parts or the cluster has fewer CPUs.
        num_cpus:      Ray CPUs of one actor; `num_gpus` likewise.
        done:          report of a part that an earlier run finished, or None; such parts are not run again.
        unit:          what the progress bar counts, such as "photos".

    Raises:
        PlacerayError: one sentence with the part that failed first, when those under way have ended too: a worker
            that Ray stops in the middle of a file leaves half of it on the disk. Parts that finished stay finished
            there, so running the job again continues where it stopped.
    """
    reports: list[Report | None] = [done(part) if done else None for part in parts]
    pending = [number for number, report in enumerate(reports) if report is None]
    if not pending:
        return [report for report in reports if report is not None]
    finished = [number for number, report in enumerate(reports) if report is not None]
    rows = [int(part.get("rows", 1)) for part in parts]
    stop = f"stop-{uuid.uuid4().hex}"
    answers = _stream(
        [parts[number] for number in pending],
        worker_cls,
        worker_kwargs or {},
        stop,
        describe,
        num_workers,
        num_cpus,
        num_gpus,
    )
    with _Progress(
        describe, unit, total=sum(rows), done=sum(rows[number] for number in finished)
    ) as progress:
        for position, report, error in answers:
            number = pending[position]
            if error is not None:
                failed = f"{describe}: part {parts[number].get('name', number)!r} failed: {error}"
                print(f"{failed}; parts under way are being finished", file=sys.stderr, flush=True)
                _begin_no_more(answers, stop)
                raise PlacerayError(f"{failed}. Finished parts are kept: run the same job again to continue")
            reports[number] = report
            progress.advance(rows[number])
    return [report for report in reports if report is not None]


class _Stop:
    """Does nothing: while an actor of its name lives, the workers of a run begin no further part."""


def _begin_no_more(answers: Iterator[Any], stop: str) -> None:
    """Return when no worker is at work any more; what goes wrong meanwhile is not what made the run fail."""
    with contextlib.suppress(PlacerayError, ray.exceptions.RayError):
        _alive = ray.remote(num_cpus=0)(_Stop).options(name=stop).remote()  # as long as this refers to it
        for _ in answers:
            pass


def _stream(
    parts: list[Part],
    worker_cls: Callable[..., PartWorker],
    worker_kwargs: dict[str, Any],
    stop: str,
    describe: str,
    num_workers: int,
    num_cpus: float,
    num_gpus: float,
) -> Iterator[tuple[int, Report | None, str | None]]:
    """Yield (number of the part, report, error) in the order in which parts finish; neither for one not begun."""
    ensure_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    lowest, highest = _pool_size(len(parts), describe, num_workers, num_cpus, num_gpus)
    # One block per part: Ray Data hands whole blocks to an actor. `from_items` makes them here; `from_arrow` starts a
    # remote task per table to look at it, in workers that load all of Ray Data for it and are of no use afterwards.
    rows = [{"number": number, "payload": json.dumps(part)} for number, part in enumerate(parts)]
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _PartActor,
        fn_constructor_kwargs={"worker_cls": worker_cls, "worker_kwargs": worker_kwargs, "stop": stop},
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=lowest, max_size=highest, max_tasks_in_flight_per_actor=2
        ),
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                report = None if row["report"] is None else json.loads(row["report"])
                yield row["number"], report, row["error"]
    except ray.exceptions.RayError as error:
        raise PlacerayError(
            f"{describe}: Ray lost the work: {_first_sentence(error)}. Run the same job again"
        ) from None


def _pool_size(
    num_parts: int, describe: str, num_workers: int, num_cpus: float, num_gpus: float
) -> tuple[int, int]:
    """How many actors to start with and how many at most; what can never be placed is an error, not an
    endless wait.
    """
    resources = ray.cluster_resources()
    room = min(
        (
            resources.get(kind, 0.0) / wanted
            for kind, wanted in (("CPU", num_cpus), ("GPU", num_gpus))
            if wanted > 0
        ),
        default=float(num_workers),
    )
    if room < 1:
        raise PlacerayError(
            f"{describe}: a worker wants num_cpus={num_cpus} and num_gpus={num_gpus}, but the cluster has "
            f"{resources.get('CPU', 0.0):g} CPUs and {resources.get('GPU', 0.0):g} GPUs in all"
        )
    highest = max(1, min(num_workers, num_parts))
    return min(highest, int(room)), highest


class _PartActor:
    """Ray Data's side of a worker: one part in, one report or one error sentence out."""

    def __init__(
        self, worker_cls: Callable[..., PartWorker], worker_kwargs: dict[str, Any], stop: str
    ) -> None:
        # Made with the first part, so that a failing constructor is reported like any other error.
        self._make = lambda: worker_cls(**worker_kwargs)
        self._worker: PartWorker | None = None
        self._stop = stop

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            report, error = (None, None) if self._is_stopped() else self._run(json.loads(row["payload"]))
            rows.append({"number": row["number"], "report": report, "error": error})
        return pa.Table.from_pylist(rows, schema=_ANSWER)

    def _is_stopped(self) -> bool:
        """Whether a part has failed elsewhere: the name of an actor is what all workers see at once."""
        try:
            ray.get_actor(self._stop)
        except (ValueError, ray.exceptions.RayError):  # there is none, or nobody can tell just now
            return False
        return True

    def _run(self, part: Part) -> tuple[str | None, str | None]:
        try:
            if self._worker is None:
                self._worker = self._make()
            return json.dumps(self._worker(part)), None
        except PlacerayError as error:
            return None, str(error)
        except Exception as error:
            traceback.print_exc()  # the whole story stays in the log of the Ray worker
            return None, _with_place(error)


def _with_place(error: Exception) -> str:
    """`ValueError: words (file.py:31)` for an error nobody foresaw."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{_first_sentence(error)}{place}"


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


class _Progress:
    """A live bar on a terminal, a plain line now and then in a log file; both on stderr."""

    def __init__(self, describe: str, unit: str, total: int, done: int) -> None:
        self._label, self._total, self._done = f"{describe} ({unit})", total, done
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(self._label, total=total, completed=done)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, rows: int) -> None:
        self._done += rows
        self._bar.advance(self._task, rows)
        now = time.monotonic()
        if self._bar.disable and (now - self._last_line >= _LOG_LINE_EVERY_S or self._done == self._total):
            self._last_line = now
            print(f"{self._label}: {self._done}/{self._total}", file=sys.stderr, flush=True)
