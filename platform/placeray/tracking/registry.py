"""Registered models: what `models:/name@alias` and `models:/name/3` mean, and who holds which alias.

An alias may move; jobs look it up once, on the driver, and work with the version they found. Neither torch nor
MLflow is imported before something is looked up.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from placeray import storage
from placeray.jobspecs.tracking import StoreConfig
from placeray.model.card import CARD_FILE, WEIGHTS_FILE, read_card
from placeray.tracking.store import TrackingError, explained, open_store, reason, resolved_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
CHECKPOINT = "checkpoint"  # the checkpoint folder among the artifacts of a registered model
TAG = "placeray."  # before the names of our tags
SCHEME = "models:/"
_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Version:
    """One version of a registered model. An alias may move on; a version never changes."""

    name: str
    version: str
    model_id: str  # SHA-256 of the weights

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def document(self) -> dict[str, str]:
        """As manifests of descriptors and maps keep it."""
        return {"name": self.name, "version": self.version}


@dataclass(frozen=True)
class Located:
    """A checkpoint that every worker can read, and the registered version it is, if it was named as one."""

    uri: str
    version: Version | None

    @property
    def registered(self) -> dict[str, str] | None:
        """Name and version, for a manifest."""
        return self.version.document if self.version else None


def locate_checkpoint(uri: str, store: StoreConfig) -> Located:
    """What a job's `checkpoint` names: `models:/name@alias` and `models:/name/3` are looked up once, here.

    Any other uri is returned as it is, without MLflow. A version whose files lie on a local disk is read in place;
    one behind a server or in an object store is copied to `store.models` once.

    Raises:
        TrackingError: the store cannot be opened, or has no such model, alias or version.
    """
    if not uri.startswith(SCHEME):
        return Located(uri, None)
    client = open_store(store.uri)
    version = find_version(client, uri)
    return Located(unpacked(client, version, store), version)


def model_id_of(uri: str, store: StoreConfig) -> str:
    """The model id of what a job's `checkpoint` names.

    Raises:
        TrackingError: see `locate_checkpoint`.
        StorageError: there is nothing at `uri`, or only half a folder.
    """
    located = locate_checkpoint(uri, store)
    card = read_card(located.uri)
    if card is not None:
        return str(card["model_id"])
    from placeray.model.checkpoint import identify  # brings torch, which takes seconds

    return identify(located.uri)[0]


def find_version(client: "MlflowClient", uri: str) -> Version:
    """The version that `models:/name@alias` or `models:/name/3` names now.

    Raises:
        TrackingError: there is none; the sentence lists the aliases that there are.
    """
    from mlflow.exceptions import MlflowException

    found = _URI.fullmatch(uri)
    if found is None:
        raise TrackingError(
            f"{uri} is no registered model; examples are models:/name@champion and models:/name/3"
        )
    name = found["name"]
    try:
        if found["alias"]:
            return version_of(client.get_model_version_by_alias(name, found["alias"]))
        return version_of(client.get_model_version(name, found["version"]))
    except MlflowException as error:
        raise TrackingError(f"there is no {uri}: {_what_there_is(client, name, error)}") from None


def alias_holder(client: "MlflowClient", name: str, alias: str) -> Version | None:
    """The version that holds an alias, None when nobody does (or there is no such model)."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise TrackingError(f"cannot read the registered model {name}: {reason(error)}") from None
    return version_of(client.get_model_version(name, aliases[alias])) if alias in aliases else None


def set_alias(client: "MlflowClient", version: Version, alias: str) -> None:
    """Let `models:/name@alias` mean this version from now on; one statement of the store, so all or nothing."""
    with explained(f"give {version} the alias {alias}"):
        client.set_registered_model_alias(version.name, alias, version.version)


def unpacked(client: "MlflowClient", version: Version, store: StoreConfig) -> str:
    """The folder of a version's checkpoint: in place on a local disk, else a copy below `store.models`, made once.

    Raises:
        TrackingError: the version is no model of placeray's, or its files cannot be fetched.
    """
    source = storage.join(
        client.get_model_version_download_uri(version.name, version.version), "artifacts", CHECKPOINT
    )
    place = urlparse(source)
    if place.scheme in ("", "file"):
        folder = unquote(place.path) if place.scheme else source
        if storage.exists(storage.join(folder, CARD_FILE)):
            return folder
        raise TrackingError(f"{version} holds no placeray checkpoint: {folder} has no {CARD_FILE}")
    folder = storage.join(
        storage.resolve(store.models), version.name, f"{version.version}-{version.model_id[:12]}"
    )
    if not storage.exists(storage.join(folder, CARD_FILE)):
        _copy_from_store(version, source, folder, store)
    return folder


def version_of(found: Any) -> Version:
    """From MLflow's record of a version."""
    return Version(found.name, str(found.version), found.tags.get(f"{TAG}model_id", ""))


def _what_there_is(client: "MlflowClient", name: str, error: Exception) -> str:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException:
        return reason(error)
    known = ", ".join(f"@{alias} (version {version})" for alias, version in sorted(aliases.items()))
    return f"its aliases are {known}" if known else "it has no alias yet"


def _copy_from_store(version: Version, source: str, folder: str, store: StoreConfig) -> None:
    """Copy the weights, then the card: a folder without a card is not there yet."""
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        try:
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=temporary, tracking_uri=resolved_uri(store.uri)
            )
            for name in (WEIGHTS_FILE, CARD_FILE):
                storage.write_bytes(storage.join(folder, name), Path(local, name).read_bytes())
        except Exception as error:
            raise TrackingError(
                f"cannot fetch the checkpoint of {version} from {source}: {reason(error)}"
            ) from None
