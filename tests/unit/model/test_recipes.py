"""Recipes: what starts from what, what stays as it is, and what is refused."""

import pytest
import torch

from placeray.errors import ConfigError
from placeray.model.gem import GemConfig
from placeray.model.recipes import prepare, start_hashing


def norm_statistics(branch) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in branch.state_dict().items() if ".bn.running" in name}


def test_hashing_starts_from_the_trained_float_branch(make_model, images) -> None:
    trained = make_model("gem", None)
    config = trained.config.model_copy(update={"hash_bits": 16})
    model = start_hashing(trained, config).eval()
    adapters = trained.float_branch.adapters.state_dict()
    torch.testing.assert_close(model.code_branch.adapters.state_dict(), adapters, rtol=0, atol=0)
    assert torch.equal(model(images).float, trained(images).float)
    fresh = model.code_branch.head.project.weight
    assert not torch.equal(fresh, model.float_branch.head.project.weight)  # the head is not copied
    assert model.code_branch.head.p.item() == 3


def test_the_copies_are_independent(make_model) -> None:
    trained = make_model("gem", None)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    model = start_hashing(trained, trained.config.model_copy(update={"hash_bits": 16}))
    with torch.no_grad():
        for parameter in model.code_branch.parameters():
            parameter.add_(1)
        for parameter in model.float_branch.parameters():
            parameter.add_(1)
    torch.testing.assert_close(trained.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("reference", "still", "computed"), [(False, True, False), (True, False, True)])
def test_the_float_branch_stands_still_unless_the_reference_is_asked_for(
    reference, still, computed, make_model, images
) -> None:
    model = make_model("gem", 16).train()
    prepare(model, "hash", reference=reference)
    before = norm_statistics(model.float_branch)
    found = model(images)
    after = norm_statistics(model.float_branch)
    assert (found.float is not None) == computed
    assert all(torch.equal(before[name], after[name]) for name in before) == still
    assert not any(value.requires_grad for value in model.float_branch.parameters())


@torch.no_grad()
def test_a_frozen_branch_stays_in_eval_mode_through_train(make_model) -> None:
    model = make_model("gem", 16)
    prepare(model, "hash")
    model.train()
    assert not any(module.training for module in model.float_branch.modules())
    assert all(module.training for module in model.code_branch.modules())
    prepare(model, "float")
    model.train()
    assert all(module.training for module in model.float_branch.modules())


def test_a_recipe_says_which_branch_it_misses(make_model) -> None:
    with pytest.raises(ConfigError, match="'hash' trains the code branch, which this model has not"):
        prepare(make_model("gem", None), "hash")
    with pytest.raises(ConfigError, match="'float' trains the float branch"):
        prepare(make_model(None, 16), "float")
    with pytest.raises(ConfigError, match="'hash' starts from a trained float branch"):
        prepare(make_model(None, 16), "hash")


def test_hashing_says_what_it_cannot_start_from(make_model) -> None:
    trained = make_model("gem", None)
    with pytest.raises(ConfigError, match="needs hash_bits"):
        start_hashing(trained, trained.config)
    other = trained.config.model_copy(update={"float_head": GemConfig(dim=48), "hash_bits": 16})
    with pytest.raises(ConfigError, match="keeps the float head"):
        start_hashing(trained, other)
    codes = make_model(None, 16)
    with pytest.raises(ConfigError, match="the given checkpoint has none"):
        start_hashing(codes, codes.config)
