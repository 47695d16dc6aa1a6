"""SelaVPR++: one model for all recipes. It always returns one record, whose absent parts are None."""

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.model.adapter import ConvStart
from placeray.model.backbone import Backbone, BackboneConfig, build_backbone
from placeray.model.gem import GemConfig
from placeray.model.heads import HeadConfig, build_head
from placeray.model.side_branch import SideBranch
from placeray.model.sign import straight_through_sign


class ModelConfig(Config):
    """A frozen backbone with a float branch, a code branch, or both."""

    backbone: BackboneConfig = Field(default=BackboneConfig(), description="the frozen ViT")
    float_head: HeadConfig | None = Field(
        default=GemConfig(), description="aggregation of the float descriptor; null for a model without one"
    )
    hash_bits: int | None = Field(
        default=None,
        ge=8,
        multiple_of=8,
        description="length of the binary code (512); null for no code branch",
    )
    adapter_hidden: int | None = Field(
        default=None,
        ge=16,
        multiple_of=16,
        description="width inside the adapters; null: half the backbone's width, as published",
    )
    conv_start: ConvStart = Field(
        default="random",
        description="start of the adapter convolutions: torch's own random start, the published constant 1e-5 "
        "(reference), or noise of that size (small); docs/results/training.md compares them",
    )
    seed: int = Field(default=0, description="seed of the trainable weights")

    @model_validator(mode="after")
    def _something_to_compute(self) -> "ModelConfig":
        if self.float_head is None and self.hash_bits is None:
            raise ValueError("the model has neither a float_head nor hash_bits: it would describe nothing")
        return self


class Descriptors(NamedTuple):
    """What the model says about B photos; a branch that is absent or switched off gives None."""

    float: Tensor | None  # (B, D) unit length
    code_logits: Tensor | None  # (B, bits) unit length
    code: Tensor | None  # (B, bits) of +-1, float32, with a straight-through gradient to the logits


class Branches(NamedTuple):
    """Which branches are computed."""

    float: bool
    code: bool


class SelaVPR(nn.Module):
    """Frozen ViT -> side branches of MultiConv adapters -> heads -> Descriptors."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.float_branch = _float_branch(config, backbone)
        self.code_branch = _code_branch(config, backbone)
        self.branches = Branches(self.float_branch is not None, self.code_branch is not None)

    @property
    def descriptor_dim(self) -> int:
        """Length of the float descriptor, 0 without one."""
        return self.float_branch.head.dim if self.float_branch is not None else 0

    @property
    def code_bits(self) -> int:
        """Length of the binary code, 0 without one."""
        return self.config.hash_bits or 0

    def set_branches(self, *, float: bool, code: bool) -> None:
        """Choose what forward computes; a branch that the model has not stays absent.

        Raises:
            ConfigError: nothing would be left to compute.
        """
        branches = Branches(float and self.float_branch is not None, code and self.code_branch is not None)
        if not any(branches):
            raise ConfigError(f"float={float}, code={code} leaves this model nothing to compute")
        self.branches = branches

    def forward(self, images: Tensor) -> Descriptors:
        """(B, 3, H, W) normalised images, sides multiples of the patch size -> Descriptors."""
        features, grid = self.features(images)
        float_head = self.float_branch.head if self.float_branch is not None else None
        code_head = self.code_branch.head if self.code_branch is not None else None
        described = float_head(features.float, grid) if float_head and features.float is not None else None
        if code_head is None or features.code is None:
            return Descriptors(described, None, None)
        logits = code_head(features.code, grid)
        return Descriptors(described, logits, straight_through_sign(logits))

    def features(self, images: Tensor) -> tuple["BranchTokens", tuple[int, int]]:
        """The normalised tokens at the end of each computed branch, and the grid of patches."""
        grid = self.backbone.grid(images)
        num_prefix = self.backbone.num_prefix_tokens
        branches = [self.float_branch if self.branches.float else None]
        branches.append(self.code_branch if self.branches.code else None)
        streams = self.backbone.streams(images)
        start = next(streams)
        totals = [branch.tokens(start, num_prefix) if branch is not None else None for branch in branches]
        for index, stream in enumerate(streams):
            for which, branch in enumerate(branches):
                total = totals[which]
                if branch is not None and total is not None:
                    totals[which] = branch.step(index, total, branch.tokens(stream, num_prefix), grid)
        ends = [self.backbone.norm(total) if total is not None else None for total in totals]
        return BranchTokens(*ends), grid


class BranchTokens(NamedTuple):
    """(B, T, C) normalised tokens at the end of each branch; None where it is not computed."""

    float: Tensor | None
    code: Tensor | None


def build_model(config: ModelConfig, backbone: Backbone | None = None) -> SelaVPR:
    """A model at the start of training; trainable weights are drawn from `config.seed`.

    Args:
        config: the whole model.
        backbone: used as it is instead of one with random weights; it may be shared between models.
    """
    backbone = backbone or build_backbone(config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SelaVPR(config, backbone)


def _float_branch(config: ModelConfig, backbone: Backbone) -> SideBranch | None:
    if config.float_head is None:
        return None
    head = build_head(config.float_head, backbone.embed_dim)
    if head.needs_cls_token and not backbone.has_cls_token:
        raise ConfigError(
            f"{config.float_head.kind} reads the cls token, which {config.backbone.name} has not"
        )
    return SideBranch(
        backbone.num_adapters, backbone.embed_dim, head, config.conv_start, config.adapter_hidden
    )


def _code_branch(config: ModelConfig, backbone: Backbone) -> SideBranch | None:
    if config.hash_bits is None:
        return None
    head = build_head(GemConfig(dim=config.hash_bits), backbone.embed_dim)
    return SideBranch(
        backbone.num_adapters, backbone.embed_dim, head, config.conv_start, config.adapter_hidden
    )
