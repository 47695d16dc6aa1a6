"""Checkpoints: a folder of `model.pt` (published names) and `card.json` (last), or a published file."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from placeray import storage
from placeray.contracts import validate_document
from placeray.errors import CheckpointError, PlacerayError
from placeray.model.backbone import Backbone
from placeray.model.card import CARD_CONTRACT, CARD_FILE, WEIGHTS_FILE, read_card
from placeray.model.preprocess import REFERENCE, PreprocessConfig
from placeray.model.published import published_name, recognise
from placeray.model.selavpr import ModelConfig, SelaVPR
from placeray.model.weights import DATA_PARALLEL_PREFIX, check_weights, read_weights, weights_id


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with what its checkpoint says about it."""

    model: SelaVPR
    config: ModelConfig
    card: Mapping[str, Any] | None  # None for a published file, which has none
    model_id: str  # SHA-256 of the weights

    @property
    def preprocess(self) -> PreprocessConfig:
        """How the model wants its photos: as the card says, else as the published evaluation does it."""
        return PreprocessConfig.from_id(self.card["preprocessing"]) if self.card else REFERENCE


def save_checkpoint(folder: str, model: SelaVPR, card: Mapping[str, Any]) -> str:
    """Write `model.pt`, then `card.json`; a folder without a card is unfinished.

    Args:
        folder: uri of the checkpoint.
        model: its weights are saved under their published names.
        card: checkpoint_card/v1 without `contract`, `model_id` and `model`, which are filled in here.

    Returns:
        The model id.

    Raises:
        ContractError: the card lacks something.
    """
    weights = export_weights(model)
    model_id = weights_id(weights)
    document = {
        **card, "contract": CARD_CONTRACT, "model_id": model_id, "model": model.config.model_dump(mode="json")
    }  # fmt: skip
    validate_document(document, CARD_CONTRACT)
    write_weights(storage.join(folder, WEIGHTS_FILE), weights)
    storage.write_json(storage.join(folder, CARD_FILE), document)
    return model_id


def load_checkpoint(uri: str) -> LoadedModel:
    """Load a checkpoint folder, or a published file whose variant is recognised from its weights.

    Raises:
        StorageError: there is nothing at `uri`, or only half a folder.
        CheckpointError: the weights do not fit the model, or are not those the card speaks of.
    """
    card = read_card(uri)
    weights = read_weights(storage.join(uri, WEIGHTS_FILE) if card else uri)
    if card is None:
        config = recognise(weights)
    else:
        config = _config_of(card, uri)
    model = load_weights(config, weights, what=f"checkpoint {uri}")
    model_id = weights_id(weights)
    if card is not None and card["model_id"] != model_id:
        raise CheckpointError(
            f"{uri}: the card speaks of model {card['model_id'][:12]}, the weights are {model_id[:12]}; "
            "the folder was changed after it was written"
        )
    return LoadedModel(model, config, card, model_id)


def identify(uri: str) -> tuple[str, str]:
    """Model id and preprocessing of a checkpoint, from its card where it has one; the model is not built.

    Raises:
        StorageError: there is nothing at `uri`, or only half a folder.
        CheckpointError: it is no weight file.
    """
    card = read_card(uri)
    if card is None:
        return weights_id(read_weights(uri)), REFERENCE.id
    return str(card["model_id"]), str(card["preprocessing"])


def load_weights(config: ModelConfig, weights: Mapping[str, Tensor], what: str = "the checkpoint") -> SelaVPR:
    """A model in eval mode with weights given under published names, strictly.

    The tensors are taken over without a copy, so a memory-mapped file is read when it is needed.

    Raises:
        CheckpointError: names every missing, unexpected and mis-shaped weight.
    """
    with torch.device("meta"):
        model = SelaVPR(config, Backbone(config.backbone))
    expected = {name: (_published(name, config), value) for name, value in model.state_dict().items()}
    check_weights(weights, dict(expected.values()), what)
    ours = {name: weights[published].to(value.dtype) for name, (published, value) in expected.items()}
    model.load_state_dict(ours, assign=True)
    return model.eval()


def export_weights(model: SelaVPR) -> dict[str, Tensor]:
    """The weights of a model on the CPU under their published names."""
    return {_published(name, model.config): value.cpu() for name, value in model.state_dict().items()}


def published_weights(model: SelaVPR) -> dict[str, Tensor]:
    """The same, for a file without a card: whoever reads it has only names and shapes to know the model by.

    Raises:
        CheckpointError: it would be read as another model.
    """
    weights = export_weights(model)
    try:
        with torch.device("meta"):
            known = recognise(weights)
            read = SelaVPR(known, Backbone(known.backbone))
        check_weights(
            weights, {_published(name, known): value for name, value in read.state_dict().items()}, "it"
        )
        ours, theirs = _untold(model), _untold(read)
        different = [name for name in ours if ours[name] != theirs[name]]
    except PlacerayError as error:
        different = [str(error)]
    if different:
        raise CheckpointError(
            f"a published file cannot say what this model is ({'; '.join(different)}): write it with form=folder"
        )
    return weights


def _untold(model: SelaVPR) -> dict[str, Any]:
    """What makes a model another one and shows in no name or shape of its weights."""
    head = model.config.float_head
    block = model.backbone.vit.blocks[0]
    return {
        "num_heads": getattr(getattr(block, "attn", None), "num_heads", None),
        "first_adapted_block": model.backbone.first_adapted_block,
        "position_resampling": model.backbone.resampling,
        "float_head": None if head is None else head.model_dump(exclude={"dropout"}),
        "block": str(block),
    }


def write_weights(uri: str, weights: Mapping[str, Tensor], *, data_parallel: bool = False) -> None:
    """Write weights as `{"model_state_dict": ...}`, which the published evaluation reads.

    Args:
        data_parallel: put `module.` before every name, which the published hub entry wants.
    """
    prefix = DATA_PARALLEL_PREFIX if data_parallel else ""
    # Each tensor is cloned: a view into a larger storage would drag all of it into the file.
    record = {"model_state_dict": {prefix + name: value.detach().clone() for name, value in weights.items()}}
    buffer = io.BytesIO()
    torch.save(record, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def _published(name: str, config: ModelConfig) -> str:
    return published_name(name, config.float_head.kind if config.float_head else None)


def _config_of(card: Mapping[str, Any], uri: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(card["model"])
    except ValidationError as error:
        raise CheckpointError(f"{uri}: the card describes no model of this version: {error}") from None
