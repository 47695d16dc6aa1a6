"""Gradients reach exactly the tensors a recipe names, and the backbone keeps nothing for backward."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from placeray.model.recipes import RECIPES, prepare
from placeray.model.selavpr import SelaVPR

# Per recipe: how the names begin that get a gradient. Nothing else may.
REACHED = {
    "float": ("float_branch.adapters.", "float_branch.head."),
    "hash": ("code_branch.adapters.", "code_branch.head."),
    "hash_only": ("code_branch.adapters.", "code_branch.head."),
}


def loss(model: SelaVPR, images: Tensor, recipe: str) -> Tensor:
    found = model(images)
    seen = found.float if RECIPES[recipe].loss_sees == "float" else found.code
    return (seen[0] @ seen[1]).square() + (seen[2] @ seen[3])


@pytest.mark.parametrize("kind", ["gem", "boq", "salad"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_reach_exactly_what_the_recipe_names(recipe, kind, make_model, images) -> None:
    model = make_model(None if recipe == "hash_only" else kind, None if recipe == "float" else 16).train()
    named = prepare(model, recipe)
    loss(model, images, recipe).backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None}
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    expected = {name for name, _ in model.named_parameters() if name.startswith(REACHED[recipe])}
    assert reached == set(named) == expected
    # Exact arithmetic gives 0 to a conv bias in front of a batch norm in training, and to the score of SALAD's
    # dustbin, which is the same for every patch and cancels when its row is normalised.
    assert expected - moved <= {name for name in expected if name.endswith(("conv.bias", "dust_bin"))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_input_of_the_branch_carries_no_graph(recipe, make_model, images) -> None:
    model = make_model(bits=16).train()
    prepare(model, recipe)
    assert not any(stream.requires_grad for stream in model.backbone.streams(images))


def saved_bytes(model: SelaVPR, images: Tensor, recipe: str) -> tuple[int, set[int]]:
    """Bytes kept for backward besides the parameters, and the storages that were kept."""
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, images, recipe)
    return sum(kept.values()), set(kept)


class Recorder(TorchDispatchMode):
    """Holds every tensor that torch computes while a generator works."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        several = results if isinstance(results, (tuple, list)) else (results,)
        self.computed += [result for result in several if isinstance(result, Tensor)]
        return results

    def recorded(self, values: Iterator[Tensor]) -> Iterator[Tensor]:
        """The same values, recorded while they are computed, but not while they are used."""
        while True:
            with self:
                value = next(values, None)
            if value is None:
                return
            yield value


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_that_the_backbone_computes_is_saved(recipe, make_model, images) -> None:
    model = make_model(bits=16).train()
    prepare(model, recipe)
    # A module's outputs alone would miss what a block computes without calling one.
    recorder, streams = Recorder(), model.backbone.streams
    model.backbone.streams = lambda images: recorder.recorded(streams(images))
    _, kept = saved_bytes(model, images, recipe)
    storages = {value.untyped_storage().data_ptr() for value in recorder.computed}
    assert len(storages) > 20
    assert not kept & storages


def test_depth_that_no_branch_reads_costs_no_memory(make_model, images) -> None:
    """One adapter on a backbone of 3 or of 9 blocks keeps the same bytes."""
    sizes = []
    for depth in (3, 9):
        model = make_model(bits=None, depth=depth, first_adapted_block=depth - 1).train()
        prepare(model, "float")
        sizes.append(saved_bytes(model, images, "float")[0])
    assert sizes[0] == sizes[1] > 0


def test_a_frozen_branch_is_not_kept_either(make_model, images) -> None:
    with_float, without = make_model("gem", 16).train(), make_model(None, 16).train()
    prepare(with_float, "hash")
    prepare(without, "hash_only")
    assert saved_bytes(with_float, images, "hash")[0] == saved_bytes(without, images, "hash_only")[0]
