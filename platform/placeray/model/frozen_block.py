"""A frozen transformer block: what timm's Block.forward gives, with less traffic to memory.

Nothing inside a frozen block is kept for backward. So GELU overwrites its input, LayerScale and the sum are one pass,
and the two widest products of every block go to one buffer, where fresh memory of that size costs a page fault per 4
KiB each time. docs/results/model.md has the figures.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

RunBlock = Callable[[nn.Module, Tensor], Tensor]


def frozen_runner(blocks: Iterable[nn.Module], tokens: Tensor) -> RunBlock:
    """A function (block, tokens) -> tokens for a pass of tokens through some of `blocks`, one after the other.

    It is timm's own forward, hooks and all, wherever a graph, autocast or torch.compile is at work, or a block is not
    the plain one (SwiGLU, normalised queries, adapted layers, ...). Otherwise it calls the norms and the two narrow
    layers of a block, but neither the block, `attn`, `mlp` nor the two wide layers, as modules.

    Args:
        blocks: all that will be run.
        tokens: (B, T, C) as they enter the first one; the passes that follow have the same shape.
    """
    blocks = list(blocks)
    if _needs_timm(tokens) or not all(_is_plain_and_frozen(block) for block in blocks):
        return _as_timm
    widest = max(max(block.attn.qkv.out_features, block.mlp.fc1.out_features) for block in blocks)
    return partial(_forward, buffer=tokens.new_empty(tokens.shape[0] * tokens.shape[1] * widest))


def _as_timm(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


@torch.no_grad()
def _forward(block: nn.Module, tokens: Tensor, buffer: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C); the given tokens stay as they are, for a side branch reads them."""
    attention, mlp = block.attn, block.mlp
    qkv = _linear_into(buffer, attention.qkv, block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, width of a head) each
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    summed = _add_scaled(tokens, attention.proj(mixed), block.ls1)
    hidden = torch.ops.aten.gelu_(_linear_into(buffer, mlp.fc1, block.norm2(summed)))
    return _add_scaled(summed, mlp.fc2(hidden), block.ls2, out=summed)


def _linear_into(buffer: Tensor, layer: nn.Linear, tokens: Tensor) -> Tensor:
    """layer(tokens), written to the start of the buffer."""
    rows = tokens.flatten(0, 1)
    out = buffer[: len(rows) * layer.out_features].view(len(rows), layer.out_features)
    torch.addmm(layer.bias, rows, layer.weight.t(), out=out)
    return out.unflatten(0, tokens.shape[:2])


def _add_scaled(tokens: Tensor, found: Tensor, scale: nn.Module, out: Tensor | None = None) -> Tensor:
    """tokens + scale(found), where `scale` is a LayerScale or an Identity."""
    if isinstance(scale, LayerScale):
        return torch.addcmul(tokens, found, scale.gamma, out=out)
    return torch.add(tokens, found, out=out)


def _needs_timm(tokens: Tensor) -> bool:
    """An output that is given in advance has no gradient and no autocast, and hinders the compiler's own fusion."""
    with_graph = torch.is_grad_enabled() and tokens.requires_grad
    return with_graph or torch.is_autocast_enabled(tokens.device.type) or torch.compiler.is_compiling()


def _is_plain_and_frozen(block: nn.Module) -> bool:
    """Whether `_forward` writes out all that this block does."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in block.parameters()):
        return False
    if block.training or (type(block), type(block.attn), type(block.mlp)) != (Block, Attention, Mlp):
        return False
    attention, mlp = block.attn, block.mlp
    unused = (attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
    return (
        attention.fused_attn
        and attention.gate is None
        and all(isinstance(layer, nn.Identity) for layer in unused)
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in (attention.qkv, mlp.fc1))
        and all(type(scale) in (LayerScale, nn.Identity) for scale in (block.ls1, block.ls2))
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
    )
