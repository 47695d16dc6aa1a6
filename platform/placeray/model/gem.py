"""GeM aggregation: a learnable generalised mean over the patches; for float descriptors and for codes."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from placeray.config import Config
from placeray.model.products import linear

EPS = 1e-6


class GemConfig(Config):
    """Generalised mean; the published choice."""

    kind: Literal["gem"] = "gem"
    dim: int = Field(
        default=2048, ge=1, description="length of the float descriptor; published: 2048, large 4096"
    )


class GemHead(nn.Module):
    """Linear, unit length per patch, generalised mean over patches, linear, unit length."""

    needs_cls_token = False

    def __init__(self, width: int, config: GemConfig) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.p = nn.Parameter(torch.full((1,), 3.0))
        self.reduce = nn.Linear(width, config.dim)
        self.dim = config.dim

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, C) normalised patch tokens -> (B, D) of unit length, float32. `grid` makes no difference."""
        features = self._features(tokens)
        # In float32: a norm taken in bfloat16 would leave descriptors up to 0.2 % too long or too short.
        return F.normalize(self.reduce(generalised_mean(features, self.p)).float(), dim=-1)

    def patch_shares(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, C) tokens -> (B, P): what each patch gives to the descriptor; see `gem_shares`."""
        features = self._features(tokens)
        mean = generalised_mean(features, self.p)
        direction = F.normalize(self.reduce(mean), dim=-1)  # (B, D)
        return gem_shares(features, self.p, direction @ self.reduce.weight)

    def _features(self, tokens: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C), each patch projected, of unit length."""
        return _UnitLength.apply(linear(tokens, self.project.weight, self.project.bias))


def gem_shares(features: Tensor, p: Tensor, weight: Tensor) -> Tensor:
    """Divide weight . mean, a linear function of the generalised mean, among the patches.

    The generalised mean of a channel is homogeneous of degree 1, so by Euler's theorem it is the sum over patches
    of feature times derivative: each patch's share of its p-th powers. Nothing is left over or counted twice.

    Args:
        features: (B, P, C).
        p:        exponent.
        weight:   (B, C) weight of each channel.

    Returns:
        (B, P) with sum over patches = (weight * generalised_mean).sum over channels; a share may be negative.
    """
    powers = features.float().clamp(min=EPS).pow(p)
    share = powers / powers.sum(dim=1, keepdim=True)
    return torch.einsum("bpc,bc->bp", share, weight.float() * generalised_mean(features, p))


def generalised_mean(features: Tensor, p: Tensor) -> Tensor:
    """(B, P, C) -> (B, C): (mean over patches of max(feature, 1e-6) ^ p) ^ (1 / p), in float32."""
    return _GeneralisedMean.apply(features.float(), p)


class _GeneralisedMean(torch.autograd.Function):
    """Forward the steps of torch; backward one logarithm and no power of all features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, p: Tensor) -> Tensor:
        powers = features.clamp(min=EPS).pow_(p)
        mean = powers.mean(dim=1)
        result = mean.pow(1.0 / p)
        ctx.save_for_backward(features, powers, mean, result, p)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, powers, mean, result, p = ctx.saved_tensors
        mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)  # 0 where all powers of tiny features are
        for_features = for_p = None
        if ctx.needs_input_grad[0]:
            slope = grad * result / (mean * features.shape[1])
            for_features = (powers / features).mul_(slope[:, None])
            for_features = torch.ops.aten.threshold_backward(for_features, features, EPS)
        if ctx.needs_input_grad[1]:
            mean_of_logs = features.clamp(min=EPS).log_().mul_(powers).mean(dim=1)
            for_p = (grad * result * (mean_of_logs / mean - mean.log() / p)).sum().div(p)
        return for_features, for_p


class _UnitLength(torch.autograd.Function):
    """`F.normalize` of the last dimension; backward in three passes, with nothing of that size kept but its result."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-12)
        result = rows / length
        ctx.save_for_backward(result, length)
        ctx.dtype = rows.dtype
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result, length = ctx.saved_tensors
        along = (grad * result).sum(dim=-1, keepdim=True)
        return torch.addcmul(grad, result, along, value=-1).div_(length).to(ctx.dtype)
