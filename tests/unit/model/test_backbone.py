"""The frozen ViT: the right streams, from any timm ViT, at any size, and nothing that could be trained."""

import pytest
import timm
import torch

from placeray.errors import CheckpointError, ConfigError
from placeray.model.backbone import Backbone, BackboneConfig, build_backbone
from placeray.model.weights import read_weights

SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 1, "position_px": 56}


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2",
        "vit_giant_patch14_dinov2",
    ],
)
def test_streams_are_those_of_timm_at_the_stored_size(name: str, images: torch.Tensor) -> None:
    backbone = build_backbone(BackboneConfig(name=name, **{**SMALL, "embed_dim": 96}))
    found = list(backbone.streams(images))
    expected = backbone.vit.forward_intermediates(
        images, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    assert len(found) == 1 + len(expected) == 4
    for stream, (patches, prefix) in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(stream, torch.cat([prefix, patches], dim=1))


def test_a_vit_that_is_no_dinov2_works_too(images: torch.Tensor) -> None:
    """16-pixel patches, no cls token, global average pooling."""
    config = BackboneConfig(name="vit_medium_patch16_gap_256", depth=2, position_px=64)
    backbone = build_backbone(config)
    assert not backbone.has_cls_token
    streams = list(backbone.streams(torch.zeros(2, 3, 64, 96)))
    assert [tuple(stream.shape) for stream in streams] == [(2, 24, 512)] * 3


def test_blocks_below_the_first_adapted_one_yield_no_stream(images: torch.Tensor) -> None:
    whole = list(build_backbone(BackboneConfig(name="toy", **SMALL)).streams(images))
    late = list(build_backbone(BackboneConfig(name="toy", first_adapted_block=2, **SMALL)).streams(images))
    assert len(late) == 2
    torch.testing.assert_close(late, whole[2:], rtol=0, atol=0)


@pytest.mark.parametrize(("depth", "first"), [(12, 0), (24, 8), (40, 24)])
def test_the_published_models_adapt_their_last_16_blocks_at_most(depth: int, first: int) -> None:
    sizes = {**SMALL, "depth": depth}
    with torch.device("meta"):
        assert Backbone(BackboneConfig(name="toy", **sizes)).first_adapted_block == first


def test_it_is_frozen_and_stays_in_eval_mode() -> None:
    backbone = build_backbone(BackboneConfig(name="toy", **SMALL))
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_random_weights_follow_the_seed_alone() -> None:
    first, again, other = (
        build_backbone(BackboneConfig(name="toy", seed=seed, **SMALL)).vit.blocks[0].attn.qkv.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_positions_follow_newly_loaded_weights(images: torch.Tensor) -> None:
    backbone = build_backbone(BackboneConfig(name="toy", **SMALL))
    wide = torch.nn.functional.pad(images, (0, 28))
    before = next(backbone.streams(wide)).clone()
    weights = backbone.state_dict()
    weights["vit.pos_embed"] = weights["vit.pos_embed"] + 1
    backbone.load_state_dict(weights)
    torch.testing.assert_close(next(backbone.streams(wide)), before + 1)


@pytest.mark.parametrize(("height", "width"), [(57, 56), (56, 50)])
def test_a_side_that_is_no_multiple_of_the_patch_is_named(height: int, width: int) -> None:
    backbone = build_backbone(BackboneConfig(name="toy", **SMALL))
    with pytest.raises(ConfigError, match=rf"{height} x {width} pixels.*14 x 14"):
        next(backbone.streams(torch.zeros(1, 3, height, width)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vit_of_nobody"}, "no model called 'vit_of_nobody'"),
        ({"name": "resnet18"}, "resnet18 cannot be a backbone with"),
        ({"name": "eva02_tiny_patch14_224"}, "it is a Eva"),
        ({"name": "deit_tiny_distilled_patch16_224"}, "a distillation token"),
        ({"name": "vit_pwee_patch16_reg1_gap_256"}, "no norm behind its blocks"),
        ({"name": "vit_tiny_r_s16_p8_224"}, "its patches come from a HybridEmbed"),
        ({"name": "toy", "embed_dim": 192, "num_heads": 5}, "cannot be a backbone with"),
        ({"name": "toy", "first_adapted_block": 6}, "the backbone has 6 blocks"),
    ],
)
def test_what_cannot_be_a_backbone_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(BackboneConfig.model_validate(config))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_giant_patch14_dinov2"])
def test_dinov2_files_load_strictly(name: str, tmp_path: object) -> None:
    """The file's own names: SwiGLU layers as w12 and w3, a mask token, no prefix."""
    config = BackboneConfig(name=name, seed=4, **{**SMALL, "embed_dim": 96})
    drawn = build_backbone(config)
    file = f"{tmp_path}/dinov2.pth"
    weights = official(drawn.vit.state_dict())
    torch.save({**weights, "mask_token": torch.full((1, 96), 7.0)}, file)

    loaded = build_backbone(config.model_copy(update={"weights": file}))
    assert loaded.mask_token.unique().item() == 7
    torch.testing.assert_close(loaded.vit.state_dict(), drawn.vit.state_dict(), rtol=0, atol=0)

    del weights["blocks.1.ls1.gamma"]
    torch.save({**weights, "head.weight": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointError, match=r"1 missing: vit.blocks.1.ls1.gamma; 1 unexpected: vit.head.weight"
    ):
        build_backbone(config.model_copy(update={"weights": file}))


def test_dinov2_files_with_registers_load_as_timm_converts_them(
    tmp_path: object, images: torch.Tensor
) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    vit = timm.create_model(name, num_classes=0, img_size=56, embed_dim=64, depth=3, num_heads=1)
    torch.nn.init.normal_(vit.cls_token)  # not timm's 1e-6, which a subtraction would round away
    weights = vit.state_dict()
    cls_position = torch.randn(1, 1, 64)
    weights["register_tokens"] = weights.pop("reg_token")
    weights["pos_embed"] = torch.cat([cls_position, weights["pos_embed"]], dim=1)
    weights["cls_token"] = weights["cls_token"] - cls_position
    file = f"{tmp_path}/reg4.pth"
    torch.save(weights, file)

    backbone = build_backbone(BackboneConfig(name=name, weights=file, **SMALL))
    expected = vit.eval().forward_features(images)
    torch.testing.assert_close(backbone.norm(list(backbone.streams(images))[-1]), expected)
    assert set(read_weights(file)) == set(weights)


def official(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names as DINOv2 writes them, where its MLP is a SwiGLU."""
    fc1, fc2 = weights["blocks.0.mlp.fc1.weight"], weights["blocks.0.mlp.fc2.weight"]
    if len(fc1) == fc2.shape[1]:
        return dict(weights)
    return {
        key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
        for key, value in weights.items()
    }
