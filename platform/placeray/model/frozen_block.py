"""A frozen transformer block: what timm's Block.forward gives, with less traffic to memory and faster products.

Nothing inside a frozen block is kept for backward. So GELU goes into the product before it or overwrites it, and
LayerScale and the sum are one pass. Under autocast, which casts weights without gradients again in every pass, those of
the products are cast once; tokens stay float32 as they do there. On a CPU a few photos go through a block at a time, so
that its widest product stays small enough for memory that is used again; what glibc maps afresh costs a page fault per
4 KiB each time. docs/results/model.md has the figures.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from timm.layers import Attention, LayerScale, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from placeray.model.products import attention, product, writes_scores

# glibc takes more than 32 MiB from the system each time, and gives it back.
WIDEST_BYTES = 30 << 20

RunBlock = Callable[[nn.Module, Tensor], Tensor]


def frozen_runner(blocks: Iterable[nn.Module], tokens: Tensor) -> RunBlock:
    """A function (block, tokens) -> tokens for a pass of tokens through some of `blocks`, one after the other.

    It is timm's own forward, hooks and all, wherever a graph or torch.compile is at work, or a block is not the plain
    one (SwiGLU, normalised queries, adapted layers, ...). Otherwise it calls the norms of a block, but neither the
    block, `attn`, `mlp` nor its four linear layers, as modules. Autocast is read here, not when the function is called.

    Args:
        blocks: all that will be run.
        tokens: (B, T, C) as they enter the first one; the passes that follow have the same shape.
    """
    blocks = list(blocks)
    if _needs_timm(tokens) or not all(_is_plain_and_frozen(block) for block in blocks):
        return _as_timm
    kind = tokens.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
    return partial(_forward, num_pieces=_num_pieces(blocks, tokens, dtype), dtype=dtype)


def _as_timm(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _num_pieces(blocks: list[nn.Module], tokens: Tensor, dtype: torch.dtype) -> int:
    """How many times a batch is cut on a CPU, so that (photos, T, widest) stays below WIDEST_BYTES."""
    if tokens.device.type != "cpu" or not len(tokens):
        return 1
    num_tokens = tokens.shape[1]
    widest = max(max(block.attn.qkv.out_features, block.mlp.fc1.out_features) for block in blocks)
    if writes_scores(tokens.device, dtype):
        widest = max(widest, num_tokens * max(block.attn.num_heads for block in blocks))
    return math.ceil(len(tokens) / max(1, WIDEST_BYTES // (num_tokens * widest * dtype.itemsize)))


@torch.no_grad()
def _forward(block: nn.Module, tokens: Tensor, num_pieces: int, dtype: torch.dtype) -> Tensor:
    """(B, T, C) -> (B, T, C); the given tokens stay as they are, for a side branch reads them."""
    result = torch.empty_like(tokens)
    for piece, out in zip(tokens.tensor_split(num_pieces), result.tensor_split(num_pieces), strict=True):
        _forward_into(out, block, piece, dtype)
    return result


def _forward_into(out: Tensor, block: nn.Module, tokens: Tensor, dtype: torch.dtype) -> None:
    own, mlp = block.attn, block.mlp
    qkv = _apply(own.qkv, block.norm1(tokens), dtype).unflatten(-1, (3, own.num_heads, -1))
    mixed = attention(*qkv.permute(2, 0, 3, 1, 4))  # of (photos, heads, T, width of a head) each
    _add_scaled(tokens, _apply(own.proj, mixed.transpose(1, 2).flatten(2), dtype), block.ls1, out)
    hidden = _apply(mlp.fc1, block.norm2(out), dtype, gelu=True)
    _add_scaled(out, _apply(mlp.fc2, hidden, dtype), block.ls2, out)


def _apply(layer: nn.Linear, tokens: Tensor, dtype: torch.dtype, gelu: bool = False) -> Tensor:
    return product(tokens.to(dtype), *_weights(layer, dtype), gelu=gelu)


class _Cast(NamedTuple):
    """Weight and bias of a layer in another format, and what they were made of."""

    weight: Tensor
    bias: Tensor
    source: Tensor  # kept, so that no other weight can come to lie at its address
    state: tuple[torch.dtype, int, int, int]


_CAST: WeakKeyDictionary[nn.Linear, _Cast] = WeakKeyDictionary()


def _weights(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer in `dtype`, cast again only when they have changed."""
    weight, bias = layer.weight, layer.bias
    if weight.dtype == dtype:
        return weight, bias
    if weight.is_inference() or bias.is_inference():  # these do not tell when they change
        return weight.to(dtype), bias.to(dtype)
    state = (dtype, weight.data_ptr(), weight._version, bias._version)
    found = _CAST.get(layer)
    if found is None or found.source is not weight or found.state != state:
        found = _CAST[layer] = _Cast(weight.detach().to(dtype), bias.detach().to(dtype), weight, state)
    return found.weight, found.bias


def _add_scaled(tokens: Tensor, found: Tensor, scale: nn.Module, out: Tensor) -> None:
    """out = tokens + scale(found), where `scale` is a LayerScale or an Identity."""
    if isinstance(scale, LayerScale):
        torch.addcmul(tokens, found, scale.gamma, out=out)
    else:
        torch.add(tokens, found, out=out)


def _needs_timm(tokens: Tensor) -> bool:
    """An output that is given in advance has no gradient and the format of its input, and hinders the compiler."""
    with_graph = torch.is_grad_enabled() and tokens.requires_grad
    widens = torch.is_autocast_enabled(tokens.device.type) and tokens.dtype != torch.float32
    return with_graph or widens or torch.compiler.is_compiling()


def _is_plain_and_frozen(block: nn.Module) -> bool:
    """Whether `_forward` writes out all that this block does."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in block.parameters()):
        return False
    if block.training or type(block) is not Block or (type(block.attn), type(block.mlp)) != (Attention, Mlp):
        return False
    own, mlp = block.attn, block.mlp
    layers = (own.qkv, own.proj, mlp.fc1, mlp.fc2)
    unused = (own.q_norm, own.k_norm, own.norm, mlp.norm)
    return (
        own.fused_attn
        and own.gate is None
        and all(isinstance(layer, nn.Identity) for layer in unused)
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        and all(type(scale) in (LayerScale, nn.Identity) for scale in (block.ls1, block.ls2))
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
    )
