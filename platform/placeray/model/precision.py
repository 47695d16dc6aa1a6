"""Number formats and compilation, by configuration."""

import functools
import warnings
from contextlib import AbstractContextManager
from typing import Literal, cast

import torch

from placeray.model.selavpr import SelaVPR

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# The x86 instruction sets that multiply in a format; without one of them torch emulates it, several times slower.
_NATIVE = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[object]:
    """Matrix products in `precision` inside the block; `fp32` changes nothing.

    bf16 halves the time on a CPU that has it and moves descriptors by 6e-4; fp16 needs a gradient scaler. On a CPU
    without the instructions a warning says so, once.
    """
    kind = torch.device(device).type
    if not is_native(precision, kind):
        _warn_of_emulation(precision)
    return torch.autocast(kind, dtype=DTYPES[precision], enabled=precision != "fp32")


def is_native(precision: Precision, device_type: str) -> bool:
    """Whether the processor computes in `precision` itself. What torch cannot tell counts as yes."""
    if device_type != "cpu" or precision == "fp32" or not hasattr(torch.cpu, "get_capabilities"):
        return True
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") != "x86_64" or any(
        capabilities.get(name) for name in _NATIVE[precision]
    )


@functools.cache
def _warn_of_emulation(precision: Precision) -> None:
    warnings.warn(
        f"precision {precision}: this CPU has none of {' and '.join(_NATIVE[precision])}, so it will be several times "
        "slower than fp32; use fp32 here",
        stacklevel=3,
    )


def compiled(model: SelaVPR, wanted: bool) -> SelaVPR:
    """The same model, with the same weights, through torch.compile where wanted.

    The first batch of each shape then takes a minute.
    """
    return cast(SelaVPR, torch.compile(model)) if wanted else model
