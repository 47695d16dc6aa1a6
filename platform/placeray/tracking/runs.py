"""Runs, metrics and models in MLflow, imported only when a run is opened.

A run that cannot be opened is an error before any work is done. Once it is open, nothing that MLflow does may cost a
trained model: a failing call is reported once on stderr and the job goes on.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from placeray import storage
from placeray.jobspecs.tracking import TrackingConfig
from placeray.tracking.store import TrackingError, open_store, reason, resolved_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_PARAM_CHARS = 6000
_PARAMS_AT_ONCE = 100
_RESUME_TAG = "placeray.resume_key"


class Run(Protocol):
    """What a job may do with its run."""

    @property
    def id(self) -> str | None:
        """MLflow's run id; None when tracking is off."""
        ...

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics; names hold letters, digits and `_ - . / space`, never `@`."""
        ...

    def log_file(self, path: str) -> None:
        """Keep a copy of one file with the run."""
        ...

    def register_model(self, checkpoint: str, name: str) -> str | None:
        """Register a checkpoint as the challenger of `name`; its version, None when that was not possible."""
        ...


@contextmanager
def tracked_run(
    name: str, config: Mapping[str, Any], tracking: TrackingConfig, *, resume_key: str | None = None
) -> Iterator[Run]:
    """A run around a job: finished when the block ends, failed when it raises.

    Args:
        name:       what the run is called, such as `train-float`.
        config:     the resolved configuration of the job; logged as flat parameters `a.b.c`.
        resume_key: an unfinished run with this key is continued instead of opening another one.

    Raises:
        TrackingError: the tracking store cannot be reached or its schema does not fit.
    """
    if not tracking.enabled:
        yield _NoRun()
        return
    run = _open(name, tracking, resume_key)
    run.log_params(config)
    try:
        yield run
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{'a': {'b': [1, 2]}} -> {'a.b.0': '1', 'a.b.1': '2'}."""
    items: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            items.update(flat(value, f"{prefix}{key}."))
        elif isinstance(value, list | tuple):
            items.update(flat({str(number): item for number, item in enumerate(value)}, f"{prefix}{key}."))
        else:
            items[f"{prefix}{key}"] = str(value)
    return items


class _NoRun:
    """Tracking is off."""

    id = None

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Nothing is recorded."""

    def log_file(self, path: str) -> None:
        """Nothing is kept."""

    def register_model(self, checkpoint: str, name: str) -> str | None:
        """Nothing is registered."""
        return None


class _MlflowRun:
    """One open MLflow run; calls go through the client with the run's id, so any thread may log."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client, self._id = client, run_id
        self._warned = False

    @property
    def id(self) -> str | None:
        return self._id

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(key.replace("@", "_at_"), float(value), now, step or 0) for key, value in metrics.items()
        ]
        self._try("log metrics", lambda: self._client.log_batch(self._id, metrics=entries))

    def log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value[:_PARAM_CHARS]) for key, value in flat(config).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            some = params[start : start + _PARAMS_AT_ONCE]
            self._try("log parameters", functools.partial(self._client.log_batch, self._id, params=some))

    def log_file(self, path: str) -> None:
        self._try(
            "keep a file", lambda: _with_local(path, lambda local: self._client.log_artifact(self._id, local))
        )

    def register_model(self, checkpoint: str, name: str) -> str | None:
        # Imported here: it brings torch, which jobs that only record a run should not wait for.
        from placeray.tracking.registering import register_checkpoint

        version = self._try(
            "register the model", lambda: register_checkpoint(self._client, checkpoint, name, self._id)
        )
        return version.version if version else None

    def close(self, status: str) -> None:
        self._try("close the run", lambda: self._client.set_terminated(self._id, status))

    def _try(self, what: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:
            if not self._warned:
                print(
                    f"tracking: could not {what}: {reason(error)}; the job goes on",
                    file=sys.stderr,
                    flush=True,
                )
            self._warned = True
            return None


def _open(name: str, tracking: TrackingConfig, resume_key: str | None) -> _MlflowRun:
    try:
        client = open_store(tracking.uri)
        experiment = _experiment(client, tracking)
        run_id = _unfinished(client, experiment, resume_key) if resume_key else None
        if run_id is None:
            tags = {"mlflow.runName": name, **({_RESUME_TAG: resume_key} if resume_key else {})}
            run_id = client.create_run(experiment, tags=tags).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
        return _MlflowRun(client, run_id)
    except TrackingError as error:
        raise TrackingError(f"{error} or set tracking.enabled=false") from None
    except Exception as error:
        raise TrackingError(
            f"cannot open a run in {resolved_uri(tracking.uri)}: {reason(error)}; correct tracking.uri or set "
            "tracking.enabled=false"
        ) from None


def _experiment(client: "MlflowClient", tracking: TrackingConfig) -> str:
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return str(found.experiment_id)
    place = None if tracking.artifacts is None else storage.resolve(tracking.artifacts)
    return str(client.create_experiment(tracking.experiment, artifact_location=place))


def _unfinished(client: "MlflowClient", experiment: str, resume_key: str) -> str | None:
    query = f"tags.`{_RESUME_TAG}` = '{resume_key}' and attributes.status != 'FINISHED'"
    runs = client.search_runs([experiment], query, max_results=1)
    return runs[0].info.run_id if runs else None


def _with_local(uri: str, action: Callable[[str], T]) -> T:
    """Call with a local path; a file or folder of an object store is copied to a temporary one first."""
    full = storage.resolve(uri)
    if not storage.is_remote(full):
        return action(full)
    with tempfile.TemporaryDirectory() as folder:
        for file in storage.list_files(full) or [full]:
            relative = file.removeprefix(full).strip("/") or full.rsplit("/", 1)[1]
            storage.write_bytes(storage.join(folder, relative), storage.read_bytes(file))
        return action(folder)
