"""BatchNorm over the photos of all ranks, on CPU and GPU alike, with the parameters it had before.

torch's SyncBatchNorm refuses CPU tensors, and the reference's conversion makes new parameters after the optimizer was
built, so that they are never trained. Here the very same Parameter and buffer objects move into the new module: the
state dict keeps its keys, and N workers normalise exactly as one worker on the whole batch does. One collective
forward, one backward.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of the global batch: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        normalised, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._remember(mean, variance * (count / (count - 1)))
        return normalised

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        buffers = self.running_mean, self.running_var, self.num_batches_tracked
        assert all(buffer is not None for buffer in buffers)  # they exist while statistics are tracked
        running_mean, running_var, batches = buffers
        batches.add_(1)
        running_mean.lerp_(mean, self.momentum)
        running_var.lerp_(variance, self.momentum)


def use_global_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d of a model in place; weights, buffers and state-dict keys stay the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _converted(child))
    return model


def _converted(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    twin = GlobalBatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum or 0.1)
    twin.weight, twin.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(twin, name, buffer)
    return twin.train(norm.training)


class _Normalise(torch.autograd.Function):
    """x -> (normalised x, mean (C,), variance (C,), number of values per channel of all ranks (1,))."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, variance, count = _global_statistics(wide)
        inverse = torch.rsqrt(variance + eps)
        scaled = (wide - _per_channel(mean)).mul_(_per_channel(inverse))
        ctx.save_for_backward(scaled.to(x.dtype), weight, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (scaled * _per_channel(weight) + _per_channel(bias)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scaled, weight, inverse, count = ctx.saved_tensors
        dtype = scaled.dtype
        gradient, scaled = gradients[0].to(inverse.dtype), scaled.to(inverse.dtype)
        by_bias, by_weight = gradient.sum((0, 2, 3)), (gradient * scaled).sum((0, 2, 3))
        sums = torch.stack([by_bias, by_weight])
        dist.all_reduce(sums)
        mean_gradient, mean_product = (sums / count).unbind()
        # Mean and variance depend on every value of every rank: the two means are what flows back through them.
        centred = gradient - _per_channel(mean_gradient) - scaled * _per_channel(mean_product)
        return (centred * _per_channel(weight * inverse)).to(dtype), by_weight, by_bias, None


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count (1,) over all ranks.

    Each rank sends mean, sum of squared deviations and count; they are merged by the rule of Chan et al. 1979, which
    does not subtract large squares from each other.
    """
    own_count = x.new_tensor([x.numel() // x.shape[1]])
    own_variance, own_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    own = torch.cat([own_mean, own_variance * own_count, own_count])
    flat = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(flat, own)
    every = flat.unflatten(0, (-1, len(own)))
    means, squares, counts = every[:, : len(own_mean)], every[:, len(own_mean) : -1], every[:, -1:]
    count = counts.sum().reshape(1)
    mean = (means * counts).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, variance, count


def _per_channel(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), to meet (B, C, H, W)."""
    return values[:, None, None]
