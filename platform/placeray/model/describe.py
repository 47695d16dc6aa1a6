"""From a batch of inputs to descriptors as numpy arrays: what embedding, validation and queries all call."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from placeray.config import Config
from placeray.model.precision import Precision, autocast
from placeray.model.selavpr import SelaVPR
from placeray.model.sign import pack_bits


class EmbedConfig(Config):
    """How photos are pushed through the model."""

    batch_size: int = Field(default=32, ge=1, description="photos described at once")
    precision: Precision = Field(default="fp32", description="bf16 is twice as fast on a CPU that has it")
    compile: bool = Field(
        default=False, description="torch.compile the model; pays on a GPU and for many photos"
    )


class Described(NamedTuple):
    """Descriptors of N photos; None where the model has no such branch or does not compute it."""

    float: NDArray[np.float32] | None  # (N, D) unit length
    codes: NDArray[np.uint8] | None  # (N, bits / 8) packed, component 0 is the highest bit of byte 0


@torch.inference_mode()
def describe(model: SelaVPR, batch: Tensor | NDArray[np.float32], precision: Precision = "fp32") -> Described:
    """Describe a batch in eval mode.

    Args:
        model: left in the mode it came in.
        batch: (N, 3, H, W) float32, normalised; on any device.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with autocast(precision, device):
            found = model(torch.as_tensor(batch).to(device))
    finally:
        model.train(was_training)
    floats = None if found.float is None else found.float.float().cpu().numpy()
    return Described(floats, None if found.code is None else pack_bits(found.code))
