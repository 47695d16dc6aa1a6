"""What a checkpoint holds, in words."""

from collections.abc import Iterable

from torch import nn

from placeray.model.checkpoint import LoadedModel
from placeray.model.selavpr import SelaVPR


def inspect(loaded: LoadedModel) -> list[str]:
    """Lines for a person: backbone, branches, descriptors, parameters by part, preprocessing, identity."""
    model, config = loaded.model, loaded.config
    backbone = model.backbone
    head = config.float_head.kind if config.float_head else "none"
    grid = backbone.vit.patch_embed.grid_size
    lines = [
        f"model id       {loaded.model_id}",
        f"backbone       {config.backbone.name}: {backbone.depth} blocks of width {backbone.embed_dim}, "
        f"positions for {grid[0]} x {grid[1]} patches",
        f"adapters       {backbone.num_adapters} per branch, from block {backbone.first_adapted_block}",
        f"float branch   {head}" + (f", {model.descriptor_dim} numbers" if model.descriptor_dim else ""),
        f"code branch    {f'{model.code_bits} bits' if model.code_bits else 'none'}",
        f"preprocessing  {loaded.preprocess.id}"
        + ("" if loaded.card else " (no card: the published evaluation's)"),
        *(f"parameters     {count:>11,} {part}" for part, count in count_parameters(model).items()),
    ]
    metrics = (loaded.card or {}).get("metrics", {})
    return [*lines, *(f"metric         {name} = {value:.4f}" for name, value in sorted(metrics.items()))]


def count_parameters(model: SelaVPR) -> dict[str, int]:
    """Parameters of each part that the model has, and of all of it."""
    parts: dict[str, Iterable[nn.Parameter]] = {"backbone": model.backbone.parameters()}
    for name, branch in (("float", model.float_branch), ("code", model.code_branch)):
        if branch is not None:
            parts[f"{name} adapters"] = branch.adapters.parameters()
            parts[f"{name} head"] = branch.head.parameters()
    counts = {part: sum(value.numel() for value in values) for part, values in parts.items()}
    return {**counts, "in all": sum(counts.values())}
