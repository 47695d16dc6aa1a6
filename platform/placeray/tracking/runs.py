"""Runs, metrics and models in MLflow, imported only when a run is opened.

A run that cannot be opened is an error before any work is done. Once it is open, nothing that MLflow does may cost a
trained model: a failing call is reported once on stderr and the job goes on.

The registered model is a checkpoint folder plus the name of this module (MLflow calls `_load_pyfunc`): no pickle.
"""

import functools
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from placeray import storage
from placeray.errors import PlacerayError
from placeray.jobspecs.tracking import TrackingConfig

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

T = TypeVar("T")

_SQLITE = "sqlite:///"
_PARAM_CHARS = 6000
_PARAMS_AT_ONCE = 100
_PHOTOS_AT_ONCE = 32
_RESUME_TAG = "placeray.resume_key"


class TrackingError(PlacerayError):
    """The tracking store cannot be used."""


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
        """Register a checkpoint folder as a new version of `name`; None when that was not possible."""
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
        return self._try(
            "register the model",
            lambda: _with_local(checkpoint, lambda local: _register(self._id, local, name)),
        )

    def close(self, status: str) -> None:
        self._try("close the run", lambda: self._client.set_terminated(self._id, status))

    def _try(self, what: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:
            if not self._warned:
                reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
                print(
                    f"tracking: could not {what}: {reason[0][:300]}; the job goes on",
                    file=sys.stderr,
                    flush=True,
                )
            self._warned = True
            return None


def _open(name: str, tracking: TrackingConfig, resume_key: str | None) -> _MlflowRun:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    uri = resolved_uri(tracking.uri)
    try:
        import mlflow

        if uri.startswith(_SQLITE):
            Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        experiment = _experiment(client, tracking)
        run_id = _unfinished(client, experiment, resume_key) if resume_key else None
        if run_id is None:
            tags = {"mlflow.runName": name, **({_RESUME_TAG: resume_key} if resume_key else {})}
            run_id = client.create_run(experiment, tags=tags).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
        return _MlflowRun(client, run_id)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackingError(
            f"cannot open a run in {uri}: {reason[:300]}; correct tracking.uri or set tracking.enabled=false"
        ) from None


def resolved_uri(uri: str) -> str:
    """A sqlite path made absolute; any other uri as it is."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + storage.resolve(uri.removeprefix(_SQLITE))


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


def _register(run_id: str, checkpoint: str, name: str) -> str:
    import mlflow
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name=name,
                loader_module="placeray.tracking.runs",
                data_path=checkpoint,
                signature=_signature(),
                pip_requirements=[f"placeray=={_version()}", f"torch=={torch.__version__.split('+')[0]}"],
                registered_model_name=name,
            )
    return str(info.registered_model_version)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.binary, "code", required=False),
                ColSpec(Array(DataType.float), "descriptor", required=False),
            ]
        ),
    )


def _version() -> str:
    import placeray

    return placeray.__version__


def _load_pyfunc(path: str) -> "PhotoDescriber":
    """Called by MLflow with the checkpoint folder inside the registered model."""
    return PhotoDescriber(path)


class PhotoDescriber:
    """The registered model: encoded photos in, binary codes and float descriptors out."""

    def __init__(self, checkpoint: str) -> None:
        from placeray.model.checkpoint import load_checkpoint
        from placeray.model.preprocess import PreprocessConfig

        loaded = load_checkpoint(checkpoint)
        self._model = loaded.model
        if loaded.card is None:
            raise TrackingError(f"{checkpoint} has no card.json: only a checkpoint folder can be registered")
        self._preprocess = PreprocessConfig.from_id(loaded.card["preprocessing"])

    def predict(self, photos: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """Describe a table of photos.

        Args:
            photos: column `image` of encoded bytes.

        Returns:
            Columns `code` (bits / 8 bytes) and `descriptor` (list of D floats), as far as the model has the branch.

        Raises:
            DataError: a photo cannot be decoded.
        """
        import pandas as pd
        import torch

        from placeray.model.describe import describe
        from placeray.model.preprocess import decode_to_input

        columns: dict[str, list[Any]] = {}
        for start in range(0, len(photos), _PHOTOS_AT_ONCE):
            some = photos["image"].iloc[start : start + _PHOTOS_AT_ONCE]
            batch = torch.stack([decode_to_input(data, self._preprocess) for data in some])
            described = describe(self._model, batch)
            if described.codes is not None:
                columns.setdefault("code", []).extend(code.tobytes() for code in described.codes)
            if described.float is not None:
                columns.setdefault("descriptor", []).extend(described.float.tolist())
        return pd.DataFrame(columns)
