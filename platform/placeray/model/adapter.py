"""The MultiConv adapter: a bottleneck whose hidden tokens pass through 1x1, 3x3 and 5x5 convolutions.

Source: SelaVPR++, `MulConvAdapter`. It differs in one thing: the grid of patches is given, not taken as the
square root of their number, so that an input need not be square.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from placeray.model.products import exact_product, layer_gradients, linear, product

ConvStart = Literal["reference", "small", "random"]

# The published start of every adapter convolution is this constant; `small` is noise of this size instead.
CONV_WEIGHT = 1e-5


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001, momentum=0.1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, rows, columns) -> (B, C', rows, columns), not negative."""
        return F.relu(self.before_relu(image), inplace=True)

    def before_relu(self, image: Tensor) -> Tensor:
        """The same without the ReLU, for a caller that applies one to several units at once."""
        return self.bn(self.conv(image))


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

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the adapter adds to the running sum.

        Args:
            tokens: (B, T, C), the last rows * columns of the T being patches, row major. What stands before
                them (a cls token) passes through the bottleneck doubled and never meets the patches.
            grid:   rows and columns of patches.

        Returns:
            (B, T, C); there is no outer skip.
        """
        hidden = F.relu(linear(tokens, self.down.weight, self.down.bias), inplace=True)
        patches = hidden[:, hidden.shape[1] - grid[0] * grid[1] :]
        one, for_three, for_five = self._reduce(patches, grid)
        three = self.branch2[1].before_relu(F.relu(for_three, inplace=True))
        five = self.branch3[1].before_relu(F.relu(for_five, inplace=True))
        # One ReLU over all three, so that backward keeps its result once, not before and after the concatenation.
        scales = F.relu(torch.cat([one, three, five], dim=1), inplace=True)
        if not torch.is_grad_enabled():
            return product(_mix(hidden, scales), self.up.weight, self.up.bias)
        return _Expand.apply(hidden, scales, self.up.weight, self.up.bias)

    def _reduce(self, patches: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """What each branch's 1x1 convolution and batch norm make of patches (B, P, C / 2), before ReLU.

        The three convolutions are one matrix product over tokens, which reads and differentiates the patches once.
        """
        units = (self.branch1, self.branch2[0], self.branch3[0])
        weight = torch.cat([unit.conv.weight for unit in units]).flatten(1)
        bias = torch.cat([unit.conv.bias for unit in units])
        parts = linear(patches, weight, bias).split([len(unit.conv.weight) for unit in units], dim=-1)
        # In one piece each, in channels-last order: batch norm is slow on strided channels.
        images = [part.contiguous().unflatten(1, grid).permute(0, 3, 1, 2) for part in parts]
        return [unit.bn(image) for unit, image in zip(units, images, strict=True)]

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

    Both terms are kept for backward anyway; their sum is added up again there instead of being kept as well. That
    takes a sixth off what an adapter keeps, at the price of one addition.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scales: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, scales, weight)
        return exact_product(_mix(hidden, scales), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        hidden, scales, weight = ctx.saved_tensors  # under autocast the weight is wider than the rest
        for_weight, for_bias = layer_gradients(grad, _mix(hidden, scales).to(grad.dtype))
        for_mixed = product(grad, weight.to(grad.dtype).t())
        num_prefix = hidden.shape[1] - scales.shape[2] * scales.shape[3]
        for_patches = for_mixed[:, num_prefix:]
        for_scales = for_patches.unflatten(1, scales.shape[2:]).permute(0, 3, 1, 2)
        for_hidden = for_mixed
        if num_prefix:
            for_hidden = torch.cat([2 * for_mixed[:, :num_prefix], for_patches], dim=1)
        return (
            for_hidden.to(hidden.dtype),
            for_scales.to(scales.dtype),
            for_weight.to(weight.dtype),
            for_bias.to(weight.dtype),
        )


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
