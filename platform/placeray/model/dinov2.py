"""Weights of the frozen backbone alone: DINOv2's own files, and what timm downloads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from placeray.model.weights import check_weights, read_weights

# DINOv2's giant model writes its SwiGLU layers under other names than timm.
_SWIGLU = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))


def read_backbone_weights(uri: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a Backbone from a file of DINOv2 or of timm, strictly: nothing is missing or left over.

    Args:
        uri: a weight file.
        expected: the state dict of the backbone, meta tensors will do.

    Raises:
        CheckpointError: names every entry that does not fit.
    """
    weights = to_timm_names(read_weights(uri))
    mask_token = weights.pop("mask_token", torch.zeros(expected["mask_token"].shape))
    ours = {"mask_token": mask_token, **{f"vit.{name}": value for name, value in weights.items()}}
    check_weights(ours, expected, f"the backbone file {uri}")
    return {name: value.float() for name, value in ours.items()}


def to_timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names to timm's; names of timm stay.

    With registers timm has no position for the cls token: it is added to the token itself.
    """
    renamed = dict(weights)
    if "register_tokens" in renamed:
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    for official, timm_name in _SWIGLU:
        renamed = {name.replace(official, timm_name): value for name, value in renamed.items()}
    return renamed
