"""What a run must remember to go on exactly where it stopped.

Only what training changes is stored: trainable parameters and buffers, not the frozen backbone (a tenth of the whole
for a large model). Random numbers need no state: every step seeds them from (seed, step, rank).
"""

import io
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from placeray.errors import CheckpointError

Weights = dict[str, Tensor]


@dataclass
class EpochSums:
    """Sums over the steps of an unfinished epoch, so that its figures are whole also after a restart."""

    loss: float = 0.0
    pairs: int = 0
    photos: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0


@dataclass
class Progress:
    """Where a run stands. `epoch` counts finished epochs, `step_in_epoch` steps of the unfinished one."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_score: float | None = None
    best_tie: float = 0.0  # what decided between epochs of this score
    best_epoch: int | None = None
    judged_without_gain: int = 0
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    sums: EpochSums = field(default_factory=EpochSums)


@dataclass
class Snapshot:
    """A run at one moment; `to_bytes` and `from_bytes` are its file format (torch, loads with weights_only)."""

    progress: Progress
    weights: Weights
    best: Weights
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({**vars(self), "progress": asdict(self.progress)}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """Raises CheckpointError when the bytes are damaged."""
        try:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            progress = {**values["progress"], "sums": EpochSums(**values["progress"].get("sums", {}))}
            return cls(**{**values, "progress": Progress(**progress)})
        except Exception as error:  # torch raises a dozen kinds for damaged files
            raise CheckpointError(f"the training state is damaged and cannot be resumed: {error}") from None


def changing_weights(model: nn.Module) -> Weights:
    """Parameters that are trained and all buffers, by their state-dict names (no copies)."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def copied(weights: Weights) -> Weights:
    """A copy on the CPU that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


def load_changing(model: nn.Module, weights: Weights) -> None:
    """Put stored weights back. Raises CheckpointError when they belong to another model or recipe."""
    expected = changing_weights(model)
    if expected.keys() != weights.keys():
        differ = sorted(expected.keys() ^ weights.keys())
        raise CheckpointError(
            f"the training state does not fit this model and recipe: {len(differ)} names differ, such as {differ[:3]}"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            if expected[name].shape != tensor.shape:
                raise CheckpointError(
                    f"the training state does not fit: {name} has shape {tuple(tensor.shape)}, "
                    f"the model has {tuple(expected[name].shape)}"
                )
            expected[name].copy_(tensor)
