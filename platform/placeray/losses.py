"""The losses: multi-similarity with online mining, and the similarity-constrained hashing loss of SelaVPR++.

Everything is computed in float32 whatever autocast says, and is finite when no pair is mined (the reference
gives NaN there).
"""

from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor

from placeray.config import Config
from placeray.errors import TrainingError

# Anchors and partners of positive pairs, then of negative pairs: four (M,) int64 tensors; pairs are ordered.
MinedPairs = tuple[Tensor, Tensor, Tensor, Tensor]


class LossConfig(Config):
    """Multi-similarity loss and miner, and the weight of the hashing constraint; published defaults."""

    alpha: float = Field(default=1.0, gt=0, description="sharpness on positive pairs")
    beta: float = Field(default=50.0, gt=0, description="sharpness on negative pairs")
    base: float = Field(default=0.0, description="similarity at which a pair has half its weight")
    epsilon: float = Field(default=0.1, ge=0, description="margin of the miner, in cosine similarity")
    hashing_weight: float = Field(
        default=0.1,
        ge=0,
        description="weight of the constraint that codes keep the similarity of their logits",
    )


class DescriptorsLike(Protocol):
    """What the losses read of a model's descriptors."""

    @property
    def float(self) -> Tensor | None:
        """(B, D) float descriptors."""

    @property
    def code_logits(self) -> Tensor | None:
        """(B, bits) unit-length logits of the code."""

    @property
    def code(self) -> Tensor | None:
        """(B, bits) of +-1 with a straight-through gradient."""


class LossTerms(NamedTuple):
    """A loss and what it is made of."""

    total: Tensor  # scalar with a gradient
    main: Tensor  # multi-similarity loss
    similarity: Tensor  # hashing constraint before its weight; 0 for the float descriptor
    num_pos_pairs: int  # mined, ordered
    num_neg_pairs: int


class MultiSimilarity:
    """Multi-similarity miner and loss (Wang et al. 2019) on cosine similarities."""

    def __init__(self, config: LossConfig) -> None:
        self._miner = MultiSimilarityMiner(epsilon=config.epsilon, distance=CosineSimilarity())
        self._loss = MultiSimilarityLoss(
            alpha=config.alpha, beta=config.beta, base=config.base, distance=DotProductSimilarity()
        )

    def mine(self, descriptors: Tensor, labels: Tensor) -> MinedPairs:
        """The pairs worth learning from: positives that some negative comes close to, and negatives likewise.

        Args:
            descriptors: (B, D); length does not matter.
            labels:      (B,) int64 place numbers.
        """
        pairs: MinedPairs = self._miner(descriptors.detach(), labels)
        return pairs

    def loss(self, descriptors: Tensor, labels: Tensor, pairs: MinedPairs) -> Tensor:
        """Mean over all B anchors, those without a mined pair counting 0."""
        value: Tensor = self._loss(descriptors, labels, pairs)
        return value


def hashing_loss(logits: Tensor, code: Tensor, pairs: MinedPairs) -> Tensor:
    """How far the similarity of codes is from that of their logits, over the mined pairs.

    Args:
        logits: (B, bits) of unit length.
        code:   (B, bits) of +-1.
        pairs:  as mined; positive and negative pairs count alike.

    Returns:
        The mean of (z_i . z_j - q_i . q_j / bits)^2; 0 without pairs.

    Source: SelaVPR++, similarity-constrained hashing. The reference gathers both rows of each pair; two
    (B, B) products give the same.
    """
    gap = logits @ logits.T - code @ code.T / code.shape[1]
    anchors = torch.cat([pairs[0], pairs[2]])
    partners = torch.cat([pairs[1], pairs[3]])
    return gap[anchors, partners].square().sum() / max(len(anchors), 1)


def recipe_loss(
    descriptors: DescriptorsLike, labels: Tensor, sees: Literal["float", "code"], config: LossConfig
) -> LossTerms:
    """The loss of a recipe: on float descriptors, or on codes with the hashing constraint.

    Args:
        descriptors: of B photos.
        labels:      (B,) int64 place numbers.
        sees:        which descriptor is mined and compared (`Recipe.loss_sees`).

    Raises:
        TrainingError: the descriptor was not computed.
    """
    multi_similarity = MultiSimilarity(config)
    seen = descriptors.float if sees == "float" else descriptors.code
    logits = descriptors.code_logits
    if seen is None:
        raise TrainingError(f"the loss sees the {sees} descriptor, but the model did not compute it")
    with torch.autocast(seen.device.type, enabled=False):
        seen = seen.float()
        pairs = multi_similarity.mine(seen, labels)
        main = multi_similarity.loss(seen, labels, pairs)
        if sees == "float" or logits is None:
            similarity = torch.zeros_like(main)
        else:
            similarity = hashing_loss(logits.float(), seen, pairs)
        total = main + config.hashing_weight * similarity
    return LossTerms(total, main, similarity, len(pairs[0]), len(pairs[2]))
