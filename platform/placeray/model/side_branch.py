"""A side branch: a running sum beside the frozen ViT, an adapter per adapted block, a head on its end."""

from typing import Self

from torch import Tensor, nn

from placeray.model.adapter import ConvStart, MultiConvAdapter
from placeray.model.heads import Head


class SideBranch(nn.Module):
    """y <- y + adapter_i(y + x_i) over the token streams x_i; the head reads the normalised y.

    Inside the adapters the cls token and the patches never meet, so the cls token is carried only for a head
    that reads it (SALAD); the reference always carries it.
    """

    def __init__(
        self, num_adapters: int, width: int, head: Head, conv_start: ConvStart, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(MultiConvAdapter(width, hidden) for _ in range(num_adapters))
        self.head = head
        self.frozen = False
        for adapter in self.adapters:
            adapter.initialise(conv_start)

    def tokens(self, stream: Tensor, num_prefix: int) -> Tensor:
        """The part of a (B, T, C) stream that this branch works on: patches, after the cls token if read."""
        if not self.head.needs_cls_token:
            return stream[:, num_prefix:]
        if num_prefix == 1:
            return stream
        return stream[:, [0, *range(num_prefix, stream.shape[1])]]  # registers are left out

    def step(self, index: int, total: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The running sum after adapter `index`; total and tokens are (B, T, C)."""
        return self.adapters[index](total + tokens, grid, total)

    def freeze(self, frozen: bool) -> None:
        """Switch gradients off and stay in eval mode, so that batch norm statistics stand still."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """A frozen branch stays in eval mode."""
        return super().train(mode and not self.frozen)
