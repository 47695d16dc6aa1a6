"""SALAD aggregation: optimal transport of patches to clusters, beside a projection of the cls token.

Source: Izquierdo and Civera, "Optimal Transport Aggregation for Visual Place Recognition"; sizes: SelaVPR++.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from placeray.config import Config
from placeray.errors import ConfigError


class SaladConfig(Config):
    """Optimal-transport clusters; descriptor length token_dim + clusters * cluster_dim."""

    kind: Literal["salad"] = "salad"
    clusters: int = Field(
        default=64, ge=2, description="number of clusters; an input needs more patches than this"
    )
    cluster_dim: int = Field(default=128, ge=1, description="features per cluster")
    token_dim: int = Field(default=256, ge=1, description="features of the cls token")
    hidden: int = Field(default=512, ge=1, description="hidden width of the three projections")
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="dropout in the patch projections, in training"
    )
    iterations: int = Field(default=3, ge=1, description="Sinkhorn iterations")

    @property
    def dim(self) -> int:
        """Length of the descriptor."""
        return self.token_dim + self.clusters * self.cluster_dim


class SaladHead(nn.Module):
    """Patches are assigned to clusters or to a dustbin; the cls token stands first."""

    needs_cls_token = True

    def __init__(self, width: int, config: SaladConfig) -> None:
        super().__init__()
        self.token_features = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.token_dim)
        )
        self.cluster_features = _patch_projection(width, config.cluster_dim, config)
        self.score = _patch_projection(width, config.clusters, config)
        self.dust_bin = nn.Parameter(torch.tensor(1.0))
        self.iterations = config.iterations
        self.dim = config.dim

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + P, C) normalised tokens, cls first -> (B, dim) of unit length.

        Raises:
            ConfigError: there are not more patches than clusters, so no mass is left for the dustbin.
        """
        image = tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
        features = self.cluster_features(image).flatten(2).float()  # (B, cluster_dim, P)
        scores = self.score(image).flatten(2).float()  # (B, clusters, P)
        weights = assign_to_clusters(scores, self.dust_bin, self.iterations)
        clusters = torch.einsum("bdp,bkp->bdk", features, weights)
        parts = [F.normalize(self.token_features(tokens[:, 0]).float(), dim=-1)]
        parts.append(F.normalize(clusters, dim=1).flatten(1))
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)

    def patch_shares(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + P, C) tokens -> (B, P): how much of each patch reaches a cluster and not the dustbin."""
        image = tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
        scores = self.score(image).flatten(2).float()
        return assign_to_clusters(scores, self.dust_bin, self.iterations).sum(dim=1)


def assign_to_clusters(scores: Tensor, dust_bin: Tensor, iterations: int) -> Tensor:
    """Soft assignment of patches to clusters by log-domain Sinkhorn.

    Args:
        scores:   (B, K, P) of K clusters and P > K patches.
        dust_bin: scalar score of the dustbin, the same for every patch.

    Returns:
        (B, K, P) probabilities; what a patch gives the dustbin is missing from its sum.
    """
    batch, clusters, patches = scores.shape
    if patches <= clusters:
        raise ConfigError(
            f"SALAD has {clusters} clusters and needs more patches than that; the input has {patches}"
        )
    scores = torch.cat([scores, dust_bin.to(scores.dtype).expand(batch, 1, patches)], dim=1)
    log_share = -math.log(patches + clusters)
    log_rows = scores.new_full((clusters + 1,), log_share)
    log_rows[-1] += math.log(patches - clusters)
    columns = scores.new_zeros(batch, 1, patches)
    for _ in range(iterations):
        rows = log_rows[:, None] - torch.logsumexp(scores + columns, dim=2, keepdim=True)
        columns = log_share - torch.logsumexp(scores + rows, dim=1, keepdim=True)
    return torch.exp(scores + rows + columns - log_share)[:, :-1]


def _patch_projection(width: int, dim: int, config: SaladConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, config.hidden, 1),
        nn.Dropout(config.dropout),
        nn.ReLU(),
        nn.Conv2d(config.hidden, dim, 1),
    )
