"""Weights of the frozen backbone alone: DINOv2's own files, and what timm downloads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from placeray.model.weights import check_weights

# DINOv2's giant model writes its SwiGLU layers under other names than timm.
_SWIGLU = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))


def to_backbone_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Weights for a Backbone from those of DINOv2 or timm, strictly: nothing is missing or left over.

    Args:
        weights: under DINOv2's or timm's names; the mask token may be absent, as it is in timm.
        expected: the state dict of the backbone; meta tensors will do.
        source: where the weights come from, for the error.

    Raises:
        CheckpointError: names every entry that does not fit.
    """
    renamed = to_timm_names(weights)
    mask_token = renamed.pop("mask_token", torch.zeros(expected["mask_token"].shape))
    ours = {"mask_token": mask_token, **{f"vit.{name}": value for name, value in renamed.items()}}
    check_weights(ours, expected, f"the backbone {source}")
    return {name: value.float() for name, value in ours.items()}


def to_timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names to timm's; names of timm stay.

    With registers timm has no position for the cls token: it is added to the token itself.
    """
    renamed = dict(weights)
    if {"register_tokens", "cls_token", "pos_embed"} <= renamed.keys() and renamed["pos_embed"].dim() == 3:
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    for official, timm_name in _SWIGLU:
        renamed = {name.replace(official, timm_name): value for name, value in renamed.items()}
    return renamed
