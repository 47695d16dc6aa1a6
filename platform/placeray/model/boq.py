"""BoQ aggregation: a bag of learned queries that attend to the patches, in two rounds.

Source: Ali-bey et al., "BoQ: A Place is Worth a Bag of Learnable Queries"; sizes as SelaVPR++ uses it.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from placeray.config import Config

HEAD_WIDTH = 64


class BoqConfig(Config):
    """Bag of queries; descriptor length channels * rows."""

    kind: Literal["boq"] = "boq"
    channels: int = Field(
        default=384, ge=64, description="channels the patches are projected to; 64 per head"
    )
    queries: int = Field(default=64, ge=1, description="learned queries of each round")
    rounds: int = Field(default=2, ge=1, description="rounds of encoder and cross attention")
    rows: int = Field(default=32, ge=1, description="outputs per channel")

    @model_validator(mode="after")
    def _whole_heads(self) -> "BoqConfig":
        if self.channels % HEAD_WIDTH:
            raise ValueError(
                f"channels={self.channels} is not a multiple of {HEAD_WIDTH}, the width of a head"
            )
        return self

    @property
    def dim(self) -> int:
        """Length of the descriptor."""
        return self.channels * self.rows


class BoqRound(nn.Module):
    """One encoder layer over the tokens, then the queries attend to what it gives."""

    def __init__(self, channels: int, num_queries: int) -> None:
        super().__init__()
        heads = channels // HEAD_WIDTH
        self.encoder = nn.TransformerEncoderLayer(
            channels, heads, 4 * channels, dropout=0.0, batch_first=True
        )
        self.queries = nn.Parameter(torch.randn(1, num_queries, channels))
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(channels)
        self.cross_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, C) -> the encoded tokens (B, P, C) and the answers to the queries (B, queries, C)."""
        tokens = self.encoder(tokens)
        queries = self.queries.expand(len(tokens), -1, -1)
        queries = queries + self.self_attn(queries, queries, queries, need_weights=False)[0]
        answers = self.cross_attn(self.norm_q(queries), tokens, tokens, need_weights=False)[0]
        return tokens, self.norm_out(answers)

    def attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, C) -> the encoded tokens, and (B, P) the mean attention that the queries pay to each."""
        tokens = self.encoder(tokens)
        queries = self.queries.expand(len(tokens), -1, -1)
        queries = self.norm_q(queries + self.self_attn(queries, queries, queries, need_weights=False)[0])
        _, weights = self.cross_attn(queries, tokens, tokens, need_weights=True)
        return tokens, weights.mean(dim=1)


class BoqHead(nn.Module):
    """3x3 convolution, LayerNorm, rounds of queries, one linear map over all queries, unit length."""

    needs_cls_token = False

    def __init__(self, width: int, config: BoqConfig) -> None:
        super().__init__()
        self.proj_c = nn.Conv2d(width, config.channels, 3, padding=1)
        self.norm_input = nn.LayerNorm(config.channels)
        self.boqs = nn.ModuleList(BoqRound(config.channels, config.queries) for _ in range(config.rounds))
        self.fc = nn.Linear(config.rounds * config.queries, config.rows)
        self.dim = config.dim

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, C) normalised patch tokens -> (B, channels * rows) of unit length, channel major."""
        tokens = self._project(tokens, grid)
        answers = []
        for one_round in self.boqs:
            tokens, answer = one_round(tokens)
            answers.append(answer)
        rows = self.fc(torch.cat(answers, dim=1).transpose(1, 2))  # (B, channels, rows)
        return F.normalize(rows.flatten(1).float(), dim=-1)

    def patch_shares(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, C) tokens -> (B, P): the attention all queries of all rounds pay to each patch; sums to 1."""
        tokens = self._project(tokens, grid)
        shares = []
        for one_round in self.boqs:
            tokens, attention = one_round.attention(tokens)
            shares.append(attention)
        return torch.stack(shares).mean(dim=0)

    def _project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        image = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        return self.norm_input(self.proj_c(image).flatten(2).transpose(1, 2))
