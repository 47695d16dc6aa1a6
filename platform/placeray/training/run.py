"""One training run from normalized data to a checkpoint folder, in this process: what every worker executes."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from pydantic import Field, model_validator

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.losses import recipe_loss
from placeray.model.backbone import Backbone
from placeray.model.checkpoint import load_checkpoint, save_checkpoint
from placeray.model.recipes import RECIPES, prepare, start_hashing
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.training.config import TrainConfig
from placeray.training.distributed import across_ranks
from placeray.training.feed import PlacesFeed
from placeray.training.gather import rank
from placeray.training.loop import Feed, FitResult, Listener, fit
from placeray.training.state import Snapshot
from placeray.training.step import LossFunction
from placeray.training.validation import ValidationSet, code_score, judge, load_validation_set, score


class RunSpec(Config):
    """Everything that decides the outcome of a run; it travels to the workers as JSON."""

    normalized: str = Field(description="folder that normalize wrote: places/, images/ and manifest.json")
    output: str = Field(description="checkpoint folder to write: model.pt and card.json")
    start_from: str | None = Field(
        default=None, description="checkpoint to start from; recipe hash needs one"
    )
    model: ModelConfig = Field(description="the model to train")
    train: TrainConfig = Field(description="how to train it")
    key: str = Field(default="", description="identity of the run, kept in the card")

    @model_validator(mode="after")
    def _hash_starts_from_float(self) -> "RunSpec":
        if self.train.recipe == "hash" and self.start_from is None:
            raise ValueError("recipe hash needs start_from, the checkpoint of the float recipe")
        return self


@dataclass(frozen=True)
class RunResult:
    """What a finished run reports."""

    model_id: str
    metrics: dict[str, float]
    epochs: int
    best_epoch: int | None
    places: int
    photos: int


class RunFeed(Feed, Protocol):
    """Batches of a run and what its card says about them."""

    num_places: int
    num_photos: int
    data_sets: Mapping[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Shared:
    """What runs of one process have in common, made once for all of them."""

    backbone: Backbone
    feed: RunFeed
    sets: list[ValidationSet]


def train_once(
    spec: RunSpec,
    listener: Listener,
    *,
    device: torch.device | None = None,
    resume: Snapshot | None = None,
    shared: Shared | None = None,
) -> RunResult:
    """Train by a recipe and write the checkpoint; every rank of a process group calls it alike.

    Args:
        shared: used instead of a backbone, feed and validation sets of its own; must be those that `spec` asks for.

    Raises:
        PlacerayError: one sentence on what is missing or went wrong.
    """
    train = spec.train
    started_from, model = starting_model(spec, shared.backbone if shared else None)
    model.to(device or torch.device("cpu"))
    prepare(model, train.recipe, reference=train.float_branch_drifts)
    model.train()
    own = PlacesFeed(spec.normalized, train) if shared is None else None
    feed: RunFeed = shared.feed if shared is not None else own  # type: ignore[assignment]  # one of the two is there
    sets = shared.sets if shared else validation_sets(spec)
    try:
        result = fit(
            model,
            loss_of(train),
            feed,
            train,
            judge=_judge(sets, train) if sets else None,
            score=functools.partial(score, config=train.validation),
            tie=functools.partial(code_score, config=train.validation),
            listener=listener,
            resume=resume,
            wrap=across_ranks,
        )
    finally:
        if own is not None:
            own.close()  # it may be reading an epoch that early stopping or an error has called off
    model_id = ""
    if rank() == 0:
        model_id = save_checkpoint(spec.output, model, _card(spec, started_from, feed, result))
    return RunResult(
        model_id, card_metrics(result), result.progress.epoch, result.progress.best_epoch,
        feed.num_places, feed.num_photos,
    )  # fmt: skip


def validation_sets(spec: RunSpec) -> list[ValidationSet]:
    """The held-out sets of a run, in memory."""
    return [load_validation_set(spec.normalized, item) for item in spec.train.validation.sets]


def starting_model(spec: RunSpec, backbone: Backbone | None = None) -> tuple[str | None, SelaVPR]:
    """(model id of the checkpoint it starts from, model with the weights of the first step).

    Args:
        backbone: used instead of another copy of the same weights.

    Raises:
        ConfigError: the checkpoint is of another model than the config asks for.
    """
    if spec.start_from is None:
        return None, build_model(spec.model, backbone)
    loaded = load_checkpoint(spec.start_from)
    if backbone is not None:
        loaded.model.backbone = backbone
    if spec.train.recipe == "hash" and loaded.config != spec.model:
        _same_backbone(spec, loaded.config)
        return loaded.model_id, start_hashing(loaded.model, spec.model)
    if loaded.config != spec.model:
        raise ConfigError(
            f"start_from {spec.start_from} holds {loaded.config}, the config asks for {spec.model}"
        )
    return loaded.model_id, loaded.model


def loss_of(train: TrainConfig) -> LossFunction:
    """(descriptors, labels) -> terms, as the recipe wants them."""
    return functools.partial(recipe_loss, sees=RECIPES[train.recipe].loss_sees, config=train.loss)


def card_metrics(result: FitResult) -> dict[str, float]:
    """Recalls of the kept weights as `val/<set>/<stage>/recall_at_<k>`, and the loss of their epoch."""
    recalls = {f"val/{key}": value for key, value in result.metrics.items() if "/recall_at_" in key}
    return {**recalls, **{key: value for key, value in result.metrics.items() if key == "train/loss"}}


def _judge(sets: list[Any], train: TrainConfig) -> Callable[[SelaVPR], dict[str, float]]:
    # Judged in the precision that is trained in: the figures only choose the epoch; evaluate measures in float32.
    return functools.partial(
        judge, sets=sets, config=train.validation, preprocess=train.preprocess, precision=train.precision
    )


def _same_backbone(spec: RunSpec, found: ModelConfig) -> None:
    wanted, given = (
        spec.model.backbone.model_dump(exclude={"weights"}),
        found.backbone.model_dump(exclude={"weights"}),
    )
    if wanted != given:
        differ = {key: (given[key], wanted[key]) for key in given if given[key] != wanted[key]}
        raise ConfigError(f"start_from {spec.start_from} has another backbone (found, asked for): {differ}")


def _card(spec: RunSpec, started_from: str | None, feed: RunFeed, result: FitResult) -> dict[str, Any]:
    train = spec.train
    return {
        "preprocessing": train.preprocess.id,
        "recipe": {"name": train.recipe, "loss": train.loss.model_dump(mode="json")},
        "training": train.model_dump(mode="json"),
        "start_from": started_from,
        "data_fingerprint": feed.fingerprint,
        "data_sets": {name: places for name, places in sorted(feed.data_sets.items()) if places},
        "metrics": card_metrics(result),
        "best_epoch": result.progress.best_epoch,
        "history": result.progress.history,
        "run_key": spec.key,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
