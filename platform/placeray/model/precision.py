"""Number formats and compilation, by configuration."""

from contextlib import AbstractContextManager
from typing import Literal, cast

import torch

from placeray.model.selavpr import SelaVPR

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[object]:
    """Matrix products in `precision` inside the block; `fp32` changes nothing.

    bf16 halves the time on a CPU that has it and moves descriptors by 6e-4; fp16 needs a gradient scaler.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=DTYPES[precision], enabled=precision != "fp32")


def compiled(model: SelaVPR, wanted: bool) -> SelaVPR:
    """The same model, with the same weights, through torch.compile where wanted.

    The first batch of each shape then takes a minute.
    """
    return cast(SelaVPR, torch.compile(model)) if wanted else model
