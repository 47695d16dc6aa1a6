"""A frozen transformer block: what timm's Block.forward gives, with less traffic to memory and faster products.

Nothing inside a frozen block is kept for backward. So GELU goes into the product before it or overwrites it, and
LayerScale and the sum are one pass. On a CPU a few photos go through a block at a time, so that its widest product
stays small enough for memory that is used again; what glibc maps afresh costs a page fault per 4 KiB each time.
docs/results/model.md has the figures.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from placeray.model.products import product

# glibc takes more than 32 MiB from the system each time, and gives it back.
WIDEST_BYTES = 30 << 20

RunBlock = Callable[[nn.Module, Tensor], Tensor]


def frozen_runner(blocks: Iterable[nn.Module], tokens: Tensor) -> RunBlock:
    """A function (block, tokens) -> tokens for a pass of tokens through some of `blocks`, one after the other.

    It is timm's own forward, hooks and all, wherever a graph, autocast or torch.compile is at work, or a block is not
    the plain one (SwiGLU, normalised queries, adapted layers, ...). Otherwise it calls the norms of a block, but
    neither the block, `attn`, `mlp` nor its four linear layers, as modules.

    Args:
        blocks: all that will be run.
        tokens: (B, T, C) as they enter the first one; the passes that follow have the same shape.
    """
    blocks = list(blocks)
    if _needs_timm(tokens) or not all(_is_plain_and_frozen(block) for block in blocks):
        return _as_timm
    widest = max(max(block.attn.qkv.out_features, block.mlp.fc1.out_features) for block in blocks)
    return partial(_forward, num_pieces=_num_pieces(tokens, widest))


def _as_timm(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _num_pieces(tokens: Tensor, widest: int) -> int:
    """How many times a batch is cut on a CPU, so that (photos, T, widest) stays below WIDEST_BYTES."""
    if tokens.device.type != "cpu" or not len(tokens):
        return 1
    photo = tokens.shape[1] * widest * tokens.element_size()
    return math.ceil(len(tokens) / max(1, WIDEST_BYTES // photo))


@torch.no_grad()
def _forward(block: nn.Module, tokens: Tensor, num_pieces: int) -> Tensor:
    """(B, T, C) -> (B, T, C); the given tokens stay as they are, for a side branch reads them."""
    result = torch.empty_like(tokens)
    for piece, out in zip(tokens.tensor_split(num_pieces), result.tensor_split(num_pieces), strict=True):
        _forward_into(out, block, piece)
    return result


def _forward_into(out: Tensor, block: nn.Module, tokens: Tensor) -> None:
    attention, mlp = block.attn, block.mlp
    qkv = _apply(attention.qkv, block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (photos, heads, T, width of a head) each
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    _add_scaled(tokens, _apply(attention.proj, mixed), block.ls1, out)
    hidden = _apply(mlp.fc1, block.norm2(out), gelu=True)
    _add_scaled(out, _apply(mlp.fc2, hidden), block.ls2, out)


def _apply(layer: nn.Linear, tokens: Tensor, gelu: bool = False) -> Tensor:
    return product(tokens, layer.weight, layer.bias, gelu=gelu)


def _add_scaled(tokens: Tensor, found: Tensor, scale: nn.Module, out: Tensor) -> None:
    """out = tokens + scale(found), where `scale` is a LayerScale or an Identity."""
    if isinstance(scale, LayerScale):
        torch.addcmul(tokens, found, scale.gamma, out=out)
    else:
        torch.add(tokens, found, out=out)


def _needs_timm(tokens: Tensor) -> bool:
    """An output that is given in advance has no gradient and no autocast, and hinders the compiler's own fusion."""
    with_graph = torch.is_grad_enabled() and tokens.requires_grad
    return with_graph or torch.is_autocast_enabled(tokens.device.type) or torch.compiler.is_compiling()


def _is_plain_and_frozen(block: nn.Module) -> bool:
    """Whether `_forward` writes out all that this block does."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in block.parameters()):
        return False
    if block.training or type(block) is not Block or (type(block.attn), type(block.mlp)) != (Attention, Mlp):
        return False
    attention, mlp = block.attn, block.mlp
    layers = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
    unused = (attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
    return (
        attention.fused_attn
        and attention.gate is None
        and all(isinstance(layer, nn.Identity) for layer in unused)
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        and all(type(scale) in (LayerScale, nn.Identity) for scale in (block.ls1, block.ls2))
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
    )
