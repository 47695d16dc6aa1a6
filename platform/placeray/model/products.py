"""Matrix products on the CPU by the faster of the two libraries that torch carries.

torch multiplies float32 matrices by MKL, which on AMD processors with AVX-512 uses half the width of their units.
oneDNN, to which torch gives convolutions and bf16, uses all of it: 490 instead of 220 GFLOP/s on two cores of Zen 5
(docs/results/model.md). There float32 products go to it, and in bf16 those of attention, which torch's kernel gives to
MKL; everywhere else these functions are torch's own.

Rounding errors of oneDNN's long sums are half as large again as torch's (3.7e-7 against 2.5e-7), and with them in what
learns the third step of a parity fixture mines another pair. So forward, what learns is summed in pieces, whose errors
are those of torch; backward it makes no difference. A layer whose product is taken here is not called as a module:
hooks on it do not run.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Products of oneDNN that are summed before the next ones are added to them.
SUMMED_AT_ONCE = 192


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`: (..., n) rows, (m, n) weight, (m,) bias -> (..., m); by oneDNN differentiable once."""
    if not (torch.is_grad_enabled() and any(value.requires_grad for value in (rows, weight, bias))):
        return product(rows, weight, bias)
    return _Linear.apply(rows, weight, bias) if _goes_to_onednn(rows) else F.linear(rows, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return exact_product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        for_rows = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        return for_rows, *layer_gradients(grad, rows)


def product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    total: Tensor | None = None,
    *,
    gelu: bool = False,
) -> Tensor:
    """The same outside any graph: with GELU (by the error function) on the result, or added to (..., m) total."""
    if not _goes_to_onednn(rows):
        return _added(F.linear(rows, weight, bias), total, gelu=gelu)
    flat = rows.flatten(0, -2)
    found = _product(flat, weight, bias, None if total is None else total.flatten(0, -2), gelu=gelu)
    return found.view(*rows.shape[:-1], len(weight))


def exact_product(rows: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None = None) -> Tensor:
    """`product` with rounding errors no larger than torch's."""
    if not _goes_to_onednn(rows):
        return _added(F.linear(rows, weight, bias), total)
    num_pieces = -(-weight.shape[1] // SUMMED_AT_ONCE)
    # Pieces in memory of their own: on strided rows oneDNN is slower by far.
    of_rows = [piece.contiguous() for piece in rows.flatten(0, -2).chunk(num_pieces, dim=1)]
    of_weight = [piece.contiguous() for piece in weight.chunk(num_pieces, dim=1)]
    sums = _product(of_rows[0], of_weight[0], bias)
    for some, others in zip(of_rows[1:], of_weight[1:], strict=True):
        _add_product(sums, some, others)
    if total is not None:
        sums += total.flatten(0, -2)  # last, so that the pieces are not rounded to what it can tell
    # Not a view to autograd, like the result of `F.linear`: the caller may change it in place.
    return torch.ops.aten._unsafe_view(sums, (*rows.shape[:-1], len(weight)))


def _added(found: Tensor, total: Tensor | None, *, gelu: bool = False) -> Tensor:
    if gelu:
        torch.ops.aten.gelu_(found)
    return found if total is None else total + found


def _product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """By oneDNN, (N, n) rows, (m, n) weight, (N, m) total -> (N, m)."""
    if total is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(rows, total.contiguous(), weight, bias, "add")
    activation, kind = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], kind)


def _add_product(sums: Tensor, rows: Tensor, weight: Tensor) -> None:
    """sums += rows @ weight.T, as a 1x1 convolution: the only product that oneDNN adds to memory which is there."""
    torch.ops.mkldnn._convolution_pointwise_.binary(
        _as_image(sums), _as_image(rows), weight[:, :, None, None], None,
        [0, 0], [1, 1], [1, 1], 1, "add", 1.0, None, [], "",
    )  # fmt: skip


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention` outside any graph: (B, heads, T, width of a head) each.

    Where torch's kernel is slow (above), the scores are written out, in bf16 as all else, by two products of
    oneDNN, at less than half of its time.
    """
    if not writes_scores(query.device, query.dtype):
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(dim=-1) @ value


def writes_scores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attention` holds a score (B, heads, T, T) for every two tokens."""
    return device.type == "cpu" and dtype is torch.bfloat16 and _onednn_is_faster() and _multiplies_bf16()


def layer_gradients(grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (m, n) and bias (m,) of a linear layer: (..., m) of its result, (..., n) what came in."""
    grad, rows = grad.flatten(0, -2), rows.flatten(0, -2)
    if not _goes_to_onednn(grad):
        return grad.t() @ rows, grad.sum(0)
    weight = grad.new_empty(grad.shape[1], rows.shape[1], 1, 1)
    # As a 1x1 convolution over one image: oneDNN sums over rows faster there than in a product.
    _, for_weight, for_bias = torch.ops.aten.convolution_backward(
        _as_image(grad), _as_image(rows), weight, [len(weight)],
        [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True],
    )  # fmt: skip
    return for_weight.flatten(1), for_bias


def _as_image(rows: Tensor) -> Tensor:
    """Rows (N, C) as an image (1, C, 1, N) in channels-last order, over the same memory where they are contiguous."""
    return rows.contiguous()[None, None].permute(0, 3, 1, 2)


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


@functools.cache
def _multiplies_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
