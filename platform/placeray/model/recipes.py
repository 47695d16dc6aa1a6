"""The three recipes of SelaVPR++ as data: what is trained, what it starts from, what the loss sees.

Differences from the reference, on purpose: the hash recipe neither computes the float branch nor lets it
drift. The reference runs the frozen float branch in training mode: it costs 7 % of a step and moves its batch
norm statistics, so the float descriptors of its stage-2 model are not those of stage 1. `reference=True`
brings both back.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from placeray.errors import ConfigError
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model

RecipeName = Literal["float", "hash", "hash_only"]
DescriptorName = Literal["float", "code"]


@dataclass(frozen=True)
class Recipe:
    """One way to train the model."""

    trains: DescriptorName  # the branch whose adapters and head get gradients; everything else is frozen
    loss_sees: DescriptorName  # the descriptor that is mined and compared
    copies_float_adapters: bool  # whether the code adapters start as a copy of the trained float adapters


RECIPES: dict[str, Recipe] = {
    "float": Recipe(trains="float", loss_sees="float", copies_float_adapters=False),
    "hash": Recipe(trains="code", loss_sees="code", copies_float_adapters=True),
    "hash_only": Recipe(trains="code", loss_sees="code", copies_float_adapters=False),
}


def prepare(model: SelaVPR, recipe: RecipeName, *, reference: bool = False) -> list[str]:
    """Set what is frozen and what is computed; values do not change.

    Args:
        model: changed in place.
        recipe: a key of RECIPES.
        reference: for `hash`, compute the frozen float branch in training mode as the published code does.

    Returns:
        The names of the trainable parameters.

    Raises:
        ConfigError: the model lacks a branch that the recipe needs.
    """
    chosen = RECIPES[recipe]
    branches = {"float": model.float_branch, "code": model.code_branch}
    if branches[chosen.trains] is None:
        raise ConfigError(f"recipe {recipe!r} trains the {chosen.trains} branch, which this model has not")
    if chosen.copies_float_adapters and model.float_branch is None:
        raise ConfigError(f"recipe {recipe!r} starts from a trained float branch, which this model has not")
    for name, branch in branches.items():
        if branch is not None:
            branch.freeze(name != chosen.trains)
    model.set_branches(float=chosen.trains == "float", code=chosen.trains == "code")
    if reference and recipe == "hash" and model.float_branch is not None:
        model.float_branch.frozen = False  # no gradients, but training mode
        model.float_branch.train(model.training)
        model.set_branches(float=True, code=True)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def start_hashing(float_model: SelaVPR, config: ModelConfig) -> SelaVPR:
    """The model at the start of the `hash` recipe: a trained float model, and code adapters copied from it.

    Weights and batch norm statistics of the adapters are copied; the code head is fresh, as in the reference.

    Args:
        float_model: trained by the `float` recipe; left as it is.
        config: the model to make; backbone and float head must be those of `float_model`.
    """
    if float_model.float_branch is None:
        raise ConfigError(
            "recipe 'hash' starts from a model with a float branch; the given checkpoint has none"
        )
    if config.float_head != float_model.config.float_head:
        raise ConfigError(
            f"recipe 'hash' keeps the float head of the model it starts from: that is "
            f"{float_model.config.float_head}, the config asks for {config.float_head}"
        )
    if config.hash_bits is None:
        raise ConfigError("recipe 'hash' needs hash_bits, the length of the code; published: 512")
    model = build_model(config, backbone=float_model.backbone)
    assert model.float_branch is not None  # follows from the config
    model.float_branch.load_state_dict(float_model.float_branch.state_dict())
    copy_float_adapters(model)
    return model


@torch.no_grad()
def copy_float_adapters(model: SelaVPR) -> None:
    """Set the code adapters, weights and batch norm statistics, to those of the float adapters."""
    if model.float_branch is None or model.code_branch is None:
        raise ConfigError("copying adapters needs a model with a float and a code branch")
    model.code_branch.adapters.load_state_dict(model.float_branch.adapters.state_dict())
