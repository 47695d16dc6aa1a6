"""The MLflow store of a job: where it is, and a client of it. MLflow is imported when one is opened, not before."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from placeray import storage
from placeray.errors import PlacerayError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# Quiet, and nothing is sent anywhere.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(PlacerayError):
    """The tracking store cannot be used, or does not hold what is asked for."""


def open_store(uri: str) -> "MlflowClient":
    """A client of the store; the store also becomes MLflow's own default in this process.

    Raises:
        TrackingError: MLflow is not installed, or the store cannot be opened.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    full = resolved_uri(uri)
    try:
        import mlflow

        if full.startswith(_SQLITE):
            Path(full.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(full)
        client = mlflow.MlflowClient(full)
        client.search_experiments(max_results=1)  # a server that is not there is said here, not in the middle
        return client
    except ImportError:
        raise TrackingError(
            "MLflow is not installed: install placeray[cluster], or set tracking.enabled=false and name "
            "checkpoints by folder"
        ) from None
    except Exception as error:
        raise TrackingError(f"cannot open the store {full}: {reason(error)}; correct tracking.uri") from None


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns whatever the store raises in the block into one sentence: TrackingError `could not <what>: ...`."""
    try:
        yield
    except PlacerayError:
        raise
    except Exception as error:
        raise TrackingError(f"could not {what}: {reason(error)}") from None


def resolved_uri(uri: str) -> str:
    """A sqlite path made absolute; any other uri as it is."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + storage.resolve(uri.removeprefix(_SQLITE))


def reason(error: Exception) -> str:
    """The first line of what MLflow says, which can be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
