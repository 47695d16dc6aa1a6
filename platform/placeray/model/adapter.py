"""The MultiConv adapter: a bottleneck whose hidden tokens pass through 1x1, 3x3 and 5x5 convolutions.

Source: SelaVPR++, `MulConvAdapter`. It differs in one thing: the grid of patches is given, not taken as the
square root of their number, so that an input need not be square.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from placeray.model.products import exact_product, layer_gradients, linear, product

ConvStart = Literal["reference", "small", "random"]

# The published start of every adapter convolution is this constant; `small` is noise of this size instead.
CONV_WEIGHT = 1e-5
_OF_CHANNELS = ("weight", "bias", "running_mean", "running_var")


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001, momentum=0.1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, rows, columns) -> (B, C', rows, columns), not negative."""
        return F.relu(self.bn(self.conv(image)), inplace=True)


class MultiConvAdapter(nn.Module):
    """Width C -> H -> three branches over the patch grid, beside an identity -> C. H is C / 2 as published."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or width // 2
        reduced, wide = hidden // 16, hidden // 4
        self.down = nn.Linear(width, hidden)
        self.branch1 = ConvUnit(hidden, hidden - 2 * wide, 1)
        self.branch2 = nn.Sequential(ConvUnit(hidden, reduced, 1), ConvUnit(reduced, wide, 3))
        self.branch3 = nn.Sequential(ConvUnit(hidden, reduced, 1), ConvUnit(reduced, wide, 5))
        self.up = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int], total: Tensor | None = None) -> Tensor:
        """What the adapter adds to the running sum, added to it where that is given.

        Args:
            tokens: (B, T, C), the last rows * columns of the T being patches, row major. What stands before
                them (a cls token) passes through the bottleneck doubled and never meets the patches.
            grid:   rows and columns of patches.
            total:  (B, T, C), the running sum.

        Returns:
            (B, T, C); there is no outer skip.
        """
        hidden = F.relu(linear(tokens, self.down.weight, self.down.bias), inplace=True)
        patches = hidden[:, hidden.shape[1] - grid[0] * grid[1] :]
        scales = self._convolve(patches, grid)
        if not torch.is_grad_enabled():
            return product(_mix(hidden, scales), self.up.weight, self.up.bias, total)
        return _Expand.apply(hidden, scales, self.up.weight, self.up.bias, total)

    def _convolve(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the three branches make of patches (B, P, C / 2): (B, C / 2, rows, columns), not negative.

        Their 1x1 convolutions are one matrix product over tokens, which reads and differentiates the patches once, and
        what is normalised at the same depth is one batch norm. All images are in channels-last order.
        """
        units = (self.branch1, self.branch2[0], self.branch3[0])
        weight = torch.cat([unit.conv.weight for unit in units]).flatten(1)
        bias = torch.cat([unit.conv.bias for unit in units])
        image = linear(patches, weight, bias).unflatten(1, grid).permute(0, 3, 1, 2)
        num_channels = [len(unit.conv.weight) for unit in units]
        one, for_others = image.split([num_channels[0], sum(num_channels[1:])], dim=1)
        # In a piece of their own: batch norm is slow on strided channels.
        reduced = _normalise(
            [unit.bn for unit in units[1:]], for_others.contiguous(memory_format=torch.channels_last)
        )
        for_three, for_five = F.relu(reduced, inplace=True).split(num_channels[1:], dim=1)
        three, five = self.branch2[1], self.branch3[1]
        scales = torch.cat([one, three.conv(for_three), five.conv(for_five)], dim=1)
        return F.relu(_normalise([self.branch1.bn, three.bn, five.bn], scales), inplace=True)

    @torch.no_grad()
    def initialise(self, conv_start: ConvStart) -> None:
        """The start of stage 1: the adapter gives 0 whatever comes in.

        `reference` sets every convolution to the published constant, under which the channels of each
        reducing 1x1 layer start equal, get equal gradients and stay equal for ever. `small` draws noise of that
        size and `random`, the default, keeps torch's own start; under both the channels come apart (a purposeful
        difference from the reference: docs/results/training.md has ranks and recalls of all three). From
        `reference` and `small` the convolutions start almost silent, because batch norm's eps (1e-3) is far above
        the variance of what they give.
        """
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                _start_convolution(conv.weight, conv.bias, conv_start)


class _Expand(torch.autograd.Function):
    """`up` of hidden tokens (B, T, C / 2) plus what the convolutions made of the patches (B, C / 2, rows, columns).

    It is added to a running sum (B, T, C), where there is one. Both terms of the product are kept for backward anyway;
    their sum is added up again there instead of being kept as well. That takes a sixth off what an adapter keeps, at
    the price of one addition.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, scales: Tensor, weight: Tensor, bias: Tensor, total: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, scales, weight)
        ctx.total_dtype = total.dtype if total is not None else None
        return exact_product(_mix(hidden, scales), weight, bias, total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_total = grad.to(ctx.total_dtype) if ctx.total_dtype is not None else None
        hidden, scales, weight = ctx.saved_tensors
        grad = grad.to(hidden.dtype)  # under autocast the weight and the running sum are wider than the rest
        for_weight, for_bias = layer_gradients(grad, _mix(hidden, scales))
        for_mixed = product(grad, weight.to(grad.dtype).t())
        num_prefix = hidden.shape[1] - scales.shape[2] * scales.shape[3]
        for_patches = for_mixed[:, num_prefix:]
        for_scales = for_patches.unflatten(1, scales.shape[2:]).permute(0, 3, 1, 2)
        for_hidden = for_mixed
        if num_prefix:
            for_hidden = torch.cat([2 * for_mixed[:, :num_prefix], for_patches], dim=1)
        return (
            for_hidden,
            for_scales.to(scales.dtype),
            for_weight.to(weight.dtype),
            for_bias.to(weight.dtype),
            for_total,
        )


def _normalise(norms: list[nn.BatchNorm2d], image: Tensor) -> Tensor:
    """Several batch norms of one kind, each of its share of the channels, in one pass."""
    joint = {name: torch.cat([getattr(norm, name) for norm in norms]) for name in _OF_CHANNELS}
    if not norms[0].training:  # several threads may describe at once, so no module is touched
        return F.batch_norm(image, **joint, eps=norms[0].eps)
    joint["num_batches_tracked"] = norms[0].num_batches_tracked.clone()
    # As a call of one of them, which may be normalising over the photos of all ranks.
    found = functional_call(norms[0], joint, (image,))
    sizes = [len(norm.weight) for norm in norms]
    means, variances = joint["running_mean"].split(sizes), joint["running_var"].split(sizes)
    for norm, mean, variance in zip(norms, means, variances, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.num_batches_tracked.copy_(joint["num_batches_tracked"])
    return found


def _mix(hidden: Tensor, scales: Tensor) -> Tensor:
    """Hidden tokens plus the scales at the patches; what stands before these is doubled, like `hidden + hidden`."""
    from_scales = scales.permute(0, 2, 3, 1).flatten(1, 2)
    num_prefix = hidden.shape[1] - from_scales.shape[1]
    mixed = from_scales + hidden[:, num_prefix:]
    return torch.cat([2 * hidden[:, :num_prefix], mixed], dim=1) if num_prefix else mixed


def _start_convolution(weight: Tensor, bias: Tensor, conv_start: ConvStart) -> None:
    if conv_start == "reference":
        nn.init.constant_(weight, CONV_WEIGHT)
        nn.init.constant_(bias, CONV_WEIGHT)
    elif conv_start == "small":
        nn.init.normal_(weight, std=CONV_WEIGHT)
        nn.init.zeros_(bias)
