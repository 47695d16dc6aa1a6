"""A model small enough for a test of milliseconds: DINOv2's shape, 3 blocks of width 64, 4 x 4 patches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from placeray.model.backbone import BackboneConfig
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model

TINY_BACKBONE = {"name": "toy", "embed_dim": 64, "depth": 3, "num_heads": 1, "position_px": 56}
HEADS: dict[str, dict[str, Any]] = {
    "gem": {"kind": "gem", "dim": 24},
    "boq": {"kind": "boq", "channels": 64, "queries": 4, "rows": 3},
    "salad": {"kind": "salad", "clusters": 4, "cluster_dim": 6, "token_dim": 5, "hidden": 16},
}

MakeModel = Callable[..., SelaVPR]


@pytest.fixture
def tiny_backbone() -> BackboneConfig:
    """The backbone of a tiny model."""
    return BackboneConfig(**TINY_BACKBONE)


@pytest.fixture
def make_model() -> MakeModel:
    """(float head kind or None, bits or None, **backbone overrides) -> a tiny model that has left its zero start."""

    def make(
        head: str | None = "gem", bits: int | None = 16, *, fresh: bool = False, **backbone: Any
    ) -> SelaVPR:
        config = ModelConfig(
            backbone=BackboneConfig(**{**TINY_BACKBONE, **backbone}),
            float_head=HEADS[head] if head else None,  # type: ignore[arg-type]
            hash_bits=bits,
            conv_start="random",
        )
        model = build_model(config)
        if not fresh:
            stir(model)
        return model.eval()

    return make


@torch.no_grad()
def stir(model: SelaVPR) -> None:
    """Give every trainable weight and statistic a value of its own, so that nothing cancels or stays 0."""
    generator = torch.Generator().manual_seed(5)
    for branch in (model.float_branch, model.code_branch):
        for name, value in branch.state_dict().items() if branch is not None else ():
            if name.endswith(("up.weight", "up.bias", "running_mean", "bn.bias")):
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
            elif name.endswith(("running_var", "bn.weight")):
                value.mul_(0.5 + torch.rand(value.shape, generator=generator))


@pytest.fixture
def images() -> torch.Tensor:
    """(8, 3, 56, 56) normalised inputs."""
    return torch.randn(8, 3, 56, 56, generator=torch.Generator().manual_seed(3))
