"""A checkpoint becomes a version of a registered model.

The version is made in one step that carries its tags and its card; the alias follows last.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import placeray
from placeray.jobspecs.register import StatementConfig
from placeray.model.checkpoint import LoadedModel, identify, load_checkpoint
from placeray.tracking.model_card import DESCRIPTION_CHARS, tags_of
from placeray.tracking.model_package import local_checkpoint, pack
from placeray.tracking.registry import CHALLENGER, TAG, Version, set_alias, version_of
from placeray.tracking.store import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_same(client: "MlflowClient", name: str, checkpoint: str) -> Version | None:
    """The newest version of `name` with these weights, this preprocessing and this placeray, or None.

    Raises:
        StorageError: there is no finished checkpoint at `checkpoint`.
        CheckpointError: it is no weight file.
    """
    model_id, preprocessing = identify(checkpoint)
    wanted = {f"{TAG}preprocessing": preprocessing, f"{TAG}version": placeray.__version__}
    query = f"name = '{name}' and tags.`{TAG}model_id` = '{model_id}'"
    same = [
        found
        for found in client.search_model_versions(query)
        if all(found.tags.get(key) == value for key, value in wanted.items())
    ]
    return version_of(max(same, key=lambda found: int(found.version))) if same else None


def register_checkpoint(
    client: "MlflowClient",
    checkpoint: str,
    name: str,
    run_id: str,
    *,
    statement: StatementConfig = StatementConfig(),  # noqa: B008  (frozen)
    alias: str | None = CHALLENGER,
) -> Version:
    """Make a checkpoint a new version of `name`, of the newest challenger by default.

    A version with the same weights, preprocessing and code is not made twice: it gets the alias.

    Args:
        checkpoint: folder, or a file of published weights; a broken one is refused before anything is written.
        run_id:     the run it came out of.

    Raises:
        StorageError: there is no finished checkpoint at `checkpoint`.
        CheckpointError: the weights do not fit the model, or are not those the card speaks of.
    """
    version = find_same(client, name, checkpoint)
    if version is None:
        with local_checkpoint(checkpoint) as folder, explained(f"register {checkpoint} as {name}"):
            version = _create_version(client, folder, load_checkpoint(folder), name, run_id, statement)
    if alias is not None:
        set_alias(client, version, alias)
    return version


def _create_version(
    client: "MlflowClient",
    checkpoint: str,
    loaded: LoadedModel,
    name: str,
    run_id: str,
    statement: StatementConfig,
) -> Version:
    """Upload the packed model, then make the version, with its tags and card, in one step."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    tags = tags_of(loaded)
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags=tags,
        params={key.removeprefix(TAG): value for key, value in tags.items()},
    )
    record = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            packed = str(Path(temporary, "model"))
            card = pack(packed, checkpoint, loaded, name, statement, record)
            client.log_model_artifacts(logged.model_id, packed)
    except BaseException:
        with contextlib.suppress(Exception):  # the store may be what failed
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _create_model(client, name)
    made = client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run_id,
        tags=tags,
        description=card[:DESCRIPTION_CHARS],
        model_id=logged.model_id,
    )
    # MLflow's page of the logged model lists its versions by this tag.
    versions = json.dumps([{"name": name, "version": made.version}])
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": versions})
    return version_of(made)


def _create_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
