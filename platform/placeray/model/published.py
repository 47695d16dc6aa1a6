"""The published names of the weights: how ours translate, and which model a list of names belongs to.

Checkpoints are written with published names, so that the published code can read them.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from placeray.errors import CheckpointError
from placeray.model.backbone import BackboneConfig
from placeray.model.boq import BoqConfig
from placeray.model.gem import GemConfig
from placeray.model.salad import SaladConfig
from placeray.model.selavpr import ModelConfig

# Our prefix -> published prefix; the first that fits counts.
_PREFIXES = (
    ("backbone.mask_token", "backbone.mask_token"),
    ("backbone.vit.", "backbone."),
    ("float_branch.adapters.", "backbone.adapters."),
    ("code_branch.adapters.", "backbone.adapters_hashing."),
    ("code_branch.head.project.", "linear3."),
    ("code_branch.head.reduce.", "linear4."),
    ("code_branch.head.p", "aggregation_hashing.1.p"),
)
_GEM_PREFIXES = (
    ("float_branch.head.project.", "linear1."),
    ("float_branch.head.reduce.", "linear2."),
    ("float_branch.head.p", "aggregation.1.p"),
)
_OTHER_PREFIXES = (("float_branch.head.", "aggregation."),)

# (width, depth) of the DINOv2 models, whose heads are all 64 wide.
_DINOV2_NAMES = {
    (384, 12): "vit_small_patch14_dinov2",
    (768, 12): "vit_base_patch14_dinov2",
    (1024, 24): "vit_large_patch14_dinov2",
    (1536, 40): "vit_giant_patch14_dinov2",
}
_HEAD_WIDTH = 64
_DINOV2_GRID = 37


def published_name(name: str, float_head: str | None) -> str:
    """The published name of one of our weights.

    Args:
        name: as in `SelaVPR.state_dict()`.
        float_head: kind of the model's float head (`gem`, `boq`, `salad`), None without one.
    """
    head = _GEM_PREFIXES if float_head == "gem" else _OTHER_PREFIXES
    for ours, published in (*_PREFIXES, *head):
        if name.startswith(ours):
            renamed = published + name.removeprefix(ours)
            if ".adapters." in name:
                renamed = renamed.replace(".down.", ".D_fc1.").replace(".up.", ".D_fc2.")
            return renamed
    raise CheckpointError(f"no published name is known for the weight {name}")


def recognise(weights: Mapping[str, Tensor]) -> ModelConfig:
    """The model that weights with published names belong to, read from their names and shapes.

    A part is known by any of its names; a size that is not there to be read is the published one, so that whoever
    compares the weights with the model names what is missing.

    Raises:
        CheckpointError: the weights are of no SelaVPR++ model.
    """
    try:
        return _recognise(weights)
    except (ValueError, IndexError) as error:  # of pydantic too: sizes that no such model has
        sentence = " ".join(str(error).split())
        raise CheckpointError(f"the weights have shapes that no SelaVPR++ model has: {sentence}") from None


def _recognise(weights: Mapping[str, Tensor]) -> ModelConfig:
    if "backbone.pos_embed" not in weights:
        hint = " (a DINOv2 file: name it as backbone.weights)" if "pos_embed" in weights else ""
        raise CheckpointError(
            f"the weights hold no backbone.pos_embed, so this is no SelaVPR++ checkpoint{hint}"
        )
    depth = _count(weights, "backbone.blocks.")
    adapters = max(_count(weights, "backbone.adapters."), _count(weights, "backbone.adapters_hashing."))
    float_head = _recognise_float_head(weights)
    has_code = any(name.startswith(("linear3.", "linear4.", "aggregation_hashing.")) for name in weights)
    hash_bits = _rows(weights, "linear4.weight", 512) if has_code else None
    if not adapters or (float_head is None and hash_bits is None):
        raise CheckpointError(
            f"the weights hold {depth} blocks, {adapters} adapters and no head that is known: "
            "neither linear2 (gem), aggregation.boqs (boq), aggregation.score (salad) nor linear4 (code)"
        )
    backbone = _recognise_backbone(weights, depth, adapters)
    return ModelConfig(
        backbone=backbone, float_head=float_head, hash_bits=hash_bits, adapter_hidden=_adapter_hidden(weights)
    )


def _adapter_hidden(weights: Mapping[str, Tensor]) -> int | None:
    """Width inside the adapters; None where it is the published half of the backbone's."""
    downs = [value for name, value in weights.items() if name.endswith(".D_fc1.weight")]
    if not downs or len(downs[0]) == downs[0].shape[1] // 2:
        return None
    return len(downs[0])


def _recognise_backbone(weights: Mapping[str, Tensor], depth: int, adapters: int) -> BackboneConfig:
    """Of a published size with the published number of adapters, so that one that is missing is named."""
    _, num_positions, width = weights["backbone.pos_embed"].shape
    registers = "backbone.reg_token" in weights
    grid = math.isqrt(num_positions if registers else num_positions - 1)
    patch = weights.get("backbone.patch_embed.proj.weight")
    patch_px = 14 if registers or patch is None else patch.shape[-1]
    name = _DINOV2_NAMES.get((width, depth))
    sizes = {} if name else {"embed_dim": width, "depth": depth, "num_heads": max(1, width // _HEAD_WIDTH)}
    sizes |= {} if name else {"first_adapted_block": depth - adapters}
    name = name or _DINOV2_NAMES[384, 12]
    return BackboneConfig(
        name=name.replace("patch14_", "patch14_reg4_") if registers else name,
        position_px=grid * patch_px if grid != _DINOV2_GRID else None,
        **sizes,
    )


def _recognise_float_head(weights: Mapping[str, Tensor]) -> GemConfig | BoqConfig | SaladConfig | None:
    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in weights)

    if has("linear1.", "linear2.", "aggregation.1."):
        return GemConfig(dim=_rows(weights, "linear2.weight", GemConfig().dim))
    if has("aggregation.proj_c.", "aggregation.boqs.", "aggregation.norm_input."):
        usual, queries = BoqConfig(), weights.get("aggregation.boqs.0.queries")
        return BoqConfig(
            channels=_rows(weights, "aggregation.proj_c.weight", usual.channels),
            queries=usual.queries if queries is None else queries.shape[1],
            rounds=_count(weights, "aggregation.boqs.") or usual.rounds,
            rows=_rows(weights, "aggregation.fc.weight", usual.rows),
        )
    if has("aggregation.score.", "aggregation.cluster_features.", "aggregation.token_features."):
        salad = SaladConfig()
        return SaladConfig(
            clusters=_rows(weights, "aggregation.score.3.weight", salad.clusters),
            cluster_dim=_rows(weights, "aggregation.cluster_features.3.weight", salad.cluster_dim),
            token_dim=_rows(weights, "aggregation.token_features.2.weight", salad.token_dim),
            hidden=_rows(weights, "aggregation.score.0.weight", salad.hidden),
        )
    return None


def _rows(weights: Mapping[str, Tensor], name: str, usual: int) -> int:
    """Rows of a weight, by its bias where it is missing, `usual` where that is too."""
    found = weights.get(name, weights.get(name.replace(".weight", ".bias")))
    return usual if found is None else len(found)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
