"""From unit-length logits to a binary code: the straight-through sign and the packing of bits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        code = torch.where(logits >= 0, 1.0, -1.0)
        return torch.where(logits.isnan(), 0.0, code)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def straight_through_sign(logits: Tensor) -> Tensor:
    """+1 where a logit is >= 0 (also -0.0), -1 below, 0 for NaN; always float32. Backward is the identity."""
    result: Tensor = _StraightThroughSign.apply(logits.float())
    return result


def pack_bits(code: Tensor) -> NDArray[np.uint8]:
    """(N, bits) of +-1 -> (N, bits / 8) bytes; component 0 is the most significant bit of byte 0."""
    return np.packbits(code.detach().cpu().numpy() > 0, axis=1)
