"""The frozen vision transformer: timm's modules, DINOv2's position embeddings, only the blocks needed.

It is always in eval mode and its parameters never require gradients. The side branches read its token streams
and never write to them, so no gradient passes through a block and nothing in here is kept for backward.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import timm
import torch
from pydantic import Field
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.model.dinov2 import to_backbone_weights
from placeray.model.frozen_block import frozen_runner
from placeray.model.positions import PositionCache, Resampling
from placeray.model.weights import read_weights

# Names that stand for a timm model with other sizes. `toy` is DINOv2-shaped and small enough for two cores.
PRESETS: dict[str, dict[str, Any]] = {
    "toy": {
        "name": "vit_small_patch14_dinov2", "embed_dim": 192, "depth": 6, "num_heads": 3, "position_px": 112
    },
}  # fmt: skip

# The published large model adapts its last 16 blocks, the base model all 12.
MOST_ADAPTED_BLOCKS = 16


class BackboneConfig(Config):
    """Which frozen ViT, and where its weights come from."""

    name: str = Field(
        default="vit_base_patch14_dinov2",
        description="a timm VisionTransformer with patch tokens, such as vit_large_patch14_dinov2 or "
        "vit_base_patch14_reg4_dinov2; 'toy' is a small DINOv2-shaped one",
    )
    weights: str | None = Field(
        default=None,
        description="a DINOv2 or timm weight file; 'timm' downloads timm's; null draws random frozen weights",
    )
    embed_dim: int | None = Field(default=None, ge=8, description="token width; null takes the named model's")
    depth: int | None = Field(
        default=None, ge=1, description="number of blocks; null takes the named model's"
    )
    num_heads: int | None = Field(
        default=None, ge=1, description="attention heads; null takes the named model's"
    )
    position_px: int | None = Field(
        default=None,
        ge=1,
        description="square input size the position embeddings are stored for; null: as named",
    )
    first_adapted_block: int | None = Field(
        default=None,
        ge=0,
        description="first block (from 0) with an adapter; null adapts the last 16 at most",
    )
    position_resampling: Resampling | None = Field(
        default=None, description="how positions are resampled; null: DINOv2's way for this kind of backbone"
    )
    seed: int = Field(default=0, description="seed of the random frozen weights, where weights is null")


class Backbone(nn.Module):
    """A frozen ViT that yields the token streams of its adapted blocks."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.vit = _create_vit(config)
        # DINOv2's files carry a mask token that nothing uses; kept, so that a file comes out as it went in.
        self.mask_token = nn.Parameter(torch.zeros(1, self.embed_dim, device=self.vit.pos_embed.device))
        self.resampling: Resampling = config.position_resampling or (
            "dinov2_registers" if self.vit.reg_token is not None else "dinov2"
        )
        self.first_adapted_block = _first_adapted_block(config, self.depth)
        self._positions = PositionCache()
        self.register_load_state_dict_post_hook(lambda module, keys: module._positions.clear())
        self.requires_grad_(False)
        super().train(False)

    @property
    def embed_dim(self) -> int:
        """Width C of a token."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the cls token and the registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_cls_token(self) -> bool:
        """Whether the first prefix token is a cls token."""
        return bool(self.vit.has_class_token)

    @property
    def num_adapters(self) -> int:
        """Number of blocks whose output feeds an adapter."""
        return self.depth - self.first_adapted_block

    @property
    def patch_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.vit.patch_embed.patch_size
        return int(height), int(width)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the model around it does."""
        return super().train(False)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of (B, 3, H, W) images.

        Raises:
            ConfigError: a side is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        patch_h, patch_w = self.patch_px
        if height % patch_h or width % patch_w or not height * width:
            raise ConfigError(
                f"the input is {height} x {width} pixels; its sides must be multiples of the patch size "
                f"({patch_h} x {patch_w}), as {height // patch_h * patch_h} x {width // patch_w * patch_w}"
            )
        return height // patch_h, width // patch_w

    def streams(self, images: Tensor) -> Iterator[Tensor]:
        """The tokens that enter the first adapted block, then the output of every adapted block.

        Args:
            images: (B, 3, H, W) normalised.

        Yields:
            1 + num_adapters tensors (B, T, C); prefix tokens first, then the patches row major. Only one
            stream is held at a time.
        """
        tokens = self._embed(images)
        run = frozen_runner(self.vit.blocks, tokens)
        for block in self.vit.blocks[: self.first_adapted_block]:
            tokens = run(block, tokens)
        yield tokens
        for block in self.vit.blocks[self.first_adapted_block :]:
            tokens = run(block, tokens)
            yield tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """The final LayerNorm of the ViT, frozen and shared by all side branches."""
        return self.vit.norm(tokens)

    def _embed(self, images: Tensor) -> Tensor:
        vit, grid = self.vit, self.grid(images)
        patches = vit.patch_embed(images).flatten(1, 2)  # timm gives (B, rows, columns, C)
        in_positions = 0 if vit.no_embed_class else self.num_prefix_tokens
        stored = vit.pos_embed[:, in_positions:]
        patches = patches + self._positions.get(stored, vit.patch_embed.grid_size, grid, self.resampling)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if not prefix:
            return vit.norm_pre(patches)
        start = torch.cat(prefix, dim=1)
        if in_positions:
            start = start + vit.pos_embed[:, :in_positions]
        return vit.norm_pre(torch.cat([start.expand(len(images), -1, -1), patches], dim=1))


def build_backbone(config: BackboneConfig) -> Backbone:
    """A backbone with the weights its config names, or with random frozen ones.

    Raises:
        CheckpointError: the weight file does not fit; every name that does not is named.
    """
    with torch.device("meta"):
        backbone = Backbone(config)
    expected = backbone.state_dict()
    if config.weights is None:
        weights = draw_weights(expected, config.seed)
    elif config.weights == "timm":
        weights = to_backbone_weights(
            _create_vit(config, pretrained=True).state_dict(), expected, config.name
        )
    else:
        weights = to_backbone_weights(read_weights(config.weights), expected, config.weights)
    backbone.load_state_dict(weights, assign=True)
    return backbone


def draw_weights(expected: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random weights, shaped like those given, under which a frozen ViT gives useful random features.

    Every block moves its tokens: gains are 1 / sqrt(fan in) and layer scale is 1, where timm's own start (0.02
    and 1e-5) leaves the tokens almost as they came in. Source: none; this serves the demo and the tests.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        layer, _, kind = name.rpartition(".")
        if kind == "gamma" or ("norm" in layer and kind == "weight"):
            return torch.ones(shape)
        if kind in ("bias", "mask_token"):
            return torch.zeros(shape)
        noise = torch.randn(shape, generator=generator)
        if kind in ("pos_embed", "cls_token", "reg_token"):
            return 0.1 * noise
        return noise / (torch.Size(shape[1:]).numel() ** 0.5)

    return {name: draw(name, tuple(value.shape)) for name, value in expected.items()}


def _create_vit(config: BackboneConfig, pretrained: bool = False) -> VisionTransformer:
    preset = PRESETS.get(config.name, {})
    name = preset.get("name", config.name)
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model called {name!r}; 'toy' and timm's ViT names are known")
    wanted = {key: getattr(config, key) or preset.get(key) for key in ("embed_dim", "depth", "num_heads")}
    wanted["img_size"] = config.position_px or preset.get("position_px")
    sizes = {key: value for key, value in wanted.items() if value is not None}
    try:
        vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, pretrained=pretrained, **sizes)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{name} cannot be a backbone with {sizes}: {error or type(error).__name__}"
        ) from None
    if not isinstance(vit, VisionTransformer) or vit.pos_embed is None:
        raise ConfigError(
            f"{name} cannot be a backbone, placeray needs a VisionTransformer with learned absolute positions; "
            f"it is a {type(vit).__name__}"
        )
    if getattr(vit, "dist_token", None) is not None or isinstance(vit.norm, nn.Identity):
        raise ConfigError(
            f"{name} cannot be a backbone: it has a distillation token, or no norm behind its blocks (a *_gap_* model)"
        )
    if type(vit.patch_embed) is not PatchEmbed:
        raise ConfigError(
            f"{name} cannot be a backbone: its patches come from a {type(vit.patch_embed).__name__}"
        )
    return vit


def _first_adapted_block(config: BackboneConfig, depth: int) -> int:
    if config.first_adapted_block is None:
        return max(0, depth - MOST_ADAPTED_BLOCKS)
    if config.first_adapted_block >= depth:
        raise ConfigError(
            f"first_adapted_block={config.first_adapted_block}, but the backbone has {depth} blocks"
        )
    return config.first_adapted_block
