"""From inputs to descriptors as numpy arrays: what embedding, validation and queries all call."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from placeray import storage
from placeray.config import Config
from placeray.errors import DataError
from placeray.model.precision import Precision, autocast, compiled
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

    def summary(self) -> str:
        """`2048 floats and 512 bits each`"""
        parts = [] if self.float is None else [f"{self.float.shape[1]} floats"]
        parts += [] if self.codes is None else [f"{8 * self.codes.shape[1]} bits"]
        return f"{' and '.join(parts)} each"


class Inputs(Protocol):
    """Anything that gives (B, 3, H, W) batches."""

    rejected: list[tuple[str, str]]  # what could not be read so far, and why

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Float32 batches of at most `batch_size`, normalised."""


@torch.inference_mode()
def describe(model: SelaVPR, batch: Tensor | NDArray[np.float32], precision: Precision = "fp32") -> Described:
    """Describe a batch in eval mode.

    Args:
        model: left in the mode it came in.
        batch: (N, 3, H, W) float32, normalised; on any device.

    Raises:
        DataError: a descriptor is not finite: the input, or a weight, was not.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with autocast(precision, device):
            found = model(torch.as_tensor(batch).to(device))
    finally:
        model.train(was_training)
    for values in (found.float, found.code_logits):
        if values is not None and not torch.isfinite(values).all():
            raise DataError(
                "the model gives descriptors that are not finite: look for NaN or infinity in the inputs and weights"
            )
    floats = None if found.float is None else found.float.float().cpu().numpy()
    return Described(floats, None if found.code is None else pack_bits(found.code))


def describe_inputs(
    model: SelaVPR,
    inputs: Inputs,
    config: EmbedConfig,
    progress: Callable[[int], None] = lambda described: None,
) -> Described:
    """Describe everything that `inputs` gives; `progress` hears the number of rows described so far.

    Raises:
        DataError: it gives nothing.
    """
    model = compiled(model, config.compile)
    parts: list[Described] = []
    rows = 0
    for batch in inputs.batches(config.batch_size):
        parts.append(describe(model, batch, config.precision))
        rows += len(batch)
        progress(rows)
    if not parts:
        first = f": {': '.join(inputs.rejected[0])}" if inputs.rejected else ""
        raise DataError(f"none of the inputs could be described{first}")
    return Described(_stack(part.float for part in parts), _stack(part.codes for part in parts))


def save_described(uri: str, described: Described, names: Sequence[str]) -> None:
    """Write an `.npz` of `float` (N, D), `codes` (N, bits / 8) and `inputs` (N,); absent arrays are left out."""
    arrays: dict[str, Any] = {"inputs": np.array(names), "float": described.float, "codes": described.codes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    storage.write_bytes(uri, buffer.getvalue())


def _stack(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None
