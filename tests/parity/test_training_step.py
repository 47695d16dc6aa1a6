"""Three Adam steps of every recipe give the losses, mined pairs and gradients of the published code."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from placeray.losses import LossConfig, MultiSimilarity, recipe_loss
from placeray.model.published import published_name
from placeray.model.recipes import RECIPES, prepare
from placeray.model.selavpr import SelaVPR

# From the `tolerances` entry of train_step.json: relative, first step and later ones.
LOSS_TOLERANCE = (1e-5, 1e-3, 1e-3)
GRADIENT_TOLERANCE = 1e-3
# Pairs that lie closer than this to a threshold of the miner may fall on either side.
SAFE_MINING_MARGIN = 1e-5

slow = pytest.mark.slow

CASES = [
    ("stage1_112", "float", 2),
    ("stage2_112", "hash", 2),
    pytest.param("stage1_112", "float", 3, marks=slow),
    pytest.param("stage2_112", "hash", 3, marks=slow),
    pytest.param("hash_112", "hash_only", 3, marks=slow),  # the same gradients as stage 2
    pytest.param("stage1_224", "float", 3, marks=slow),
    pytest.param("stage2_224", "hash", 3, marks=slow),
    pytest.param("hash_224", "hash_only", 3, marks=slow),
]


def published(model: SelaVPR, name: str) -> str:
    return published_name(name, model.config.float_head.kind if model.config.float_head else None)


@pytest.mark.parametrize(("case", "recipe", "num_steps"), CASES)
def test_training_steps(
    case: str,
    recipe: Any,
    num_steps: int,
    detgen: ModuleType,
    train_steps: dict[str, Any],
    load_variant: Callable[[str], SelaVPR],
) -> None:
    expected = train_steps[case]
    model = load_variant(expected["variant"]).train()
    prepare(model, recipe)
    parameters = {
        published(model, name): value for name, value in model.named_parameters() if value.requires_grad
    }
    assert sum(value.numel() for value in parameters.values()) == expected["n_trainable"]
    images, labels = map(torch.from_numpy, detgen.train_batch(expected["size"]))
    optimizer = torch.optim.Adam(parameters.values(), lr=4e-4)
    sees = RECIPES[recipe].loss_sees

    for number, step in enumerate(expected["steps"][:num_steps]):
        descriptors = model(images)
        terms = recipe_loss(descriptors, labels, sees, LossConfig())
        optimizer.zero_grad()
        terms.total.backward()

        tolerance = LOSS_TOLERANCE[number]
        assert terms.total.item() == pytest.approx(step["loss"], rel=tolerance)
        if sees == "code":
            assert terms.main.item() == pytest.approx(step["loss_ms"], rel=tolerance)
            assert terms.similarity.item() == pytest.approx(step["loss2"], rel=tolerance)
        if number < 2 and step["mining_margin"] > SAFE_MINING_MARGIN:
            check_mined_pairs(descriptors.float if sees == "float" else descriptors.code, labels, step)
        if number == 0:
            check_gradients(parameters, step["grad_norm"])
        optimizer.step()
        if number == 0:
            check_batch_norms(model, recipe, expected["bn_after_first_forward"])


def check_mined_pairs(seen: torch.Tensor, labels: torch.Tensor, step: dict[str, Any]) -> None:
    a1, p, a2, n = MultiSimilarity(LossConfig()).mine(seen, labels)
    assert sorted(zip(a1.tolist(), p.tolist(), strict=True)) == sorted(map(tuple, step["pos_pairs"]))
    assert sorted(zip(a2.tolist(), n.tolist(), strict=True)) == sorted(map(tuple, step["neg_pairs"]))


def check_gradients(parameters: dict[str, torch.nn.Parameter], expected: dict[str, float]) -> None:
    assert expected.keys() <= parameters.keys()
    found = {name: parameters[name].grad.norm().item() for name in expected}  # type: ignore[union-attr]
    assert found == pytest.approx(expected, rel=GRADIENT_TOLERANCE)


def check_batch_norms(model: SelaVPR, recipe: str, expected: dict[str, Any]) -> None:
    """Statistics move as published, except in the frozen float branch, which stands still on purpose."""
    modules = {published(model, f"{name}.weight"): module for name, module in norms(model).items()}
    for name, statistics in expected.items():
        norm = modules[f"{name}.weight"]
        if recipe == "hash" and "adapters_hashing" not in name:
            assert norm.num_batches_tracked.item() == 100
            continue
        check_statistics(norm, statistics)


def norms(model: SelaVPR) -> dict[str, torch.nn.BatchNorm2d]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }


def check_statistics(norm: torch.nn.BatchNorm2d, expected: dict[str, Any]) -> None:
    assert norm.num_batches_tracked.item() == expected["num_batches_tracked"]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean[:4].tolist() == pytest.approx(
        expected["running_mean_first4"], rel=1e-4, abs=1e-6
    )
    assert norm.running_var[:4].tolist() == pytest.approx(expected["running_var_first4"], rel=1e-4)


def test_the_reference_switch_brings_the_drift_back(
    detgen: ModuleType, train_steps: dict[str, Any], load_variant: Callable[[str], SelaVPR]
) -> None:
    expected = train_steps["stage2_112"]["bn_after_first_forward"]
    model = load_variant("base_rerank").train()
    prepare(model, "hash", reference=True)
    images, _ = detgen.train_batch(112)
    found = model(torch.from_numpy(images))
    assert found.float is not None
    assert not found.float.requires_grad
    modules = {published(model, f"{name}.weight"): module for name, module in norms(model).items()}
    for name, statistics in expected.items():
        check_statistics(modules[f"{name}.weight"], statistics)
