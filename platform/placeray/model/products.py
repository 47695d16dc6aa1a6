"""Matrix products on the CPU by the faster of the two libraries that torch carries.

torch multiplies float32 matrices by MKL, which on AMD processors with AVX-512 uses half the width of their units.
oneDNN, to which torch gives convolutions and bf16, uses all of it: 490 instead of 220 GFLOP/s on two cores of Zen 5
(docs/results/model.md). There float32 products go to it; everywhere else these functions are torch's own.

What learns is left to torch too: the rounding errors of oneDNN's sums are half as large again (3.7e-7 against 2.5e-7),
and the third step of a parity fixture then mines another pair. A layer whose product is taken here is not called as a
module: hooks on it do not run.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`: (..., n) rows, (m, n) weight, (m,) bias -> (..., m); torch's own where a graph is recorded."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in (rows, weight, bias)):
        return F.linear(rows, weight, bias)
    return product(rows, weight, bias)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """The same outside any graph, with GELU (by the error function) on the result if wanted."""
    if _goes_to_onednn(rows):
        activation, kind = ("gelu", "none") if gelu else ("none", "")
        flat = rows.flatten(0, -2)
        found = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, activation, [], kind)
        return found.view(*rows.shape[:-1], len(weight))
    result = F.linear(rows, weight, bias)
    return torch.ops.aten.gelu_(result) if gelu else result


def _goes_to_onednn(rows: Tensor) -> bool:
    """A compiled graph is left to the compiler, and autocast to its own choice of format."""
    return (
        not torch.compiler.is_compiling()
        and rows.dtype is torch.float32
        and rows.device.type == "cpu"
        and rows.numel() > 0
        and rows.dim() > 1
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and _onednn_is_faster()
    )


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether MKL leaves half of this processor unused: AMD with AVX-512."""
    if not hasattr(torch.cpu, "get_capabilities") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and str(found.get("cpu_name", "")).startswith("AMD")
