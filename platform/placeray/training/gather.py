"""Descriptors of the whole global batch on every rank, with gradient: pairs are mined across all workers.

Every rank computes the loss of the full batch. The backward of the gather sums the W identical gradients and hands
each rank its own rows, so that DDP's mean over W ranks is exactly the gradient of one process on the whole batch.
(torch.distributed.nn has such a function; it warns of its removal on every call.)
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rows_of_ranks(rows: int, device: torch.device) -> list[int]:
    """How many rows each rank holds (a collective: every rank must call it)."""
    if world_size() == 1:
        return [rows]
    counts = torch.empty(world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, torch.tensor([rows], dtype=torch.int64, device=device))
    return [int(count) for count in counts.tolist()]


def gather_rows(local: Tensor, counts: list[int]) -> Tensor:
    """(B_rank, ...) on each rank -> (sum of B_rank, ...) in rank order on every rank; gradient flows back.

    Args:
        local:  this rank's rows; ranks may hold different numbers of them.
        counts: rows of every rank, from `rows_of_ranks`.
    """
    if len(counts) == 1:
        return local
    if local.dtype.is_floating_point and local.requires_grad:
        return _GatherRows.apply(local, counts)
    return _gather(local, counts)


def _gather(local: Tensor, counts: list[int]) -> Tensor:
    longest = max(counts)
    padded = local.new_zeros((longest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: list[int]) -> Tensor:
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + counts[rank()])
        return _gather(local.detach(), counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None
