"""One training step of the float and hash recipes against the alternatives, same photos, same machine.

    python benchmarks/train_step.py [--batch 8] [--rounds 3] [--backbone vit_base_patch14_dinov2] [--size 224]

frozen forward      the backbone alone, no gradients
float, hash         our recipes
two branches        the hash recipe with the frozen float branch computed and thrown away, as published
timm forward        the frozen forward by timm's blocks
published stage 2   `two branches` by timm's blocks and with adapters as published
float/hash by torch  our recipes with every matrix product left to torch (`model/products.py`), as the last two and all
                    that follow have them: another time only where oneDNN is the faster one
in-block adapters   the same adapters inside the blocks, so that gradients pass through the frozen backbone
full fine-tune      every weight of the backbone is trained, with the same head
                    (these two with attention as the published backbone writes it; `fused` with torch's own kernel)
published adapter   the float recipe with adapters as published: channels-first copies, the cls token carried along
recomputed adapter  the float recipe with adapters that keep only their input and compute the rest again in backward

Photos and weights are random. `_saved` ratios compare the bytes kept for backward. Everything runs under the allocator
that training workers have on CPU (`training/allocator.py`); `--plain-allocator` leaves the process as it was started.
Takes about five minutes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from placeray.losses import LossConfig, recipe_loss
from placeray.model import products
from placeray.model.adapter import MultiConvAdapter
from placeray.model.backbone import BackboneConfig
from placeray.model.gem import GemConfig
from placeray.model.precision import autocast, is_native
from placeray.model.recipes import RECIPES, RecipeName, prepare
from placeray.model.selavpr import Descriptors, ModelConfig, SelaVPR, build_model
from placeray.model.sign import straight_through_sign
from placeray.training.allocator import KEEP_FREED_MEMORY

PHOTOS_PER_PLACE = 4
TARGETS = {
    "float_vs_full_finetune": "<= 0.44",
    "float_vs_full_finetune_saved": "<= 0.15",
    "float_vs_inblock_adapters": "<= 0.60",
    "hash_vs_two_branch": "<= 0.92",
    "float_vs_frozen_forward": "<= 1.42",
    "bf16_vs_fp32": "<= 0.47",
}

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="vit_base_patch14_dinov2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--plain-allocator", action="store_true")
    given = parser.parse_args()
    if not given.plain_allocator and not KEEP_FREED_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_FREED_MEMORY})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, given.size, given.size, device=device)
    model, steps = make_steps(given.backbone, images)
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    seconds = measure.alternate(
        {name: synchronised(step, device) for name, step in steps.items()}, given.rounds
    )
    saved = {name: saved_bytes(step, weights) for name, step in steps.items()}
    measure.finish(
        "train_step",
        ratios(seconds, saved),
        TARGETS,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        saved_mb={name: round(value / 2**20) for name, value in saved.items()},
        photos_per_s={name: round(given.batch / value, 2) for name, value in seconds.items()},
        bf16="native" if is_native("bf16", device) else "not measured: this processor emulates it",
        setting={**vars(given), "device": device, "threads": torch.get_num_threads()},
    )


def ratios(seconds: dict[str, float], saved: dict[str, int]) -> dict[str, float]:
    found = {
        "float_vs_full_finetune": seconds["float"] / seconds["full fine-tune"],
        "float_vs_full_finetune_saved": saved["float"] / saved["full fine-tune"],
        "float_by_torch_vs_full_finetune": seconds["float by torch"] / seconds["full fine-tune"],
        "float_vs_full_finetune_fused": seconds["float"] / seconds["full fine-tune fused"],
        "float_vs_full_finetune_fused_saved": saved["float"] / saved["full fine-tune fused"],
        "float_vs_inblock_adapters": seconds["float"] / seconds["in-block adapters"],
        "float_vs_inblock_adapters_saved": saved["float"] / saved["in-block adapters"],
        "hash_vs_two_branch": seconds["hash"] / seconds["two branches"],
        "hash_vs_published_stage_2": seconds["hash"] / seconds["published stage 2"],
        "hash_by_torch_vs_published_stage_2": seconds["hash by torch"] / seconds["published stage 2"],
        "float_by_torch_vs_inblock_adapters": seconds["float by torch"] / seconds["in-block adapters"],
        "float_vs_float_by_torch": seconds["float"] / seconds["float by torch"],
        "float_vs_frozen_forward": seconds["float"] / seconds["frozen forward"],
        "float_vs_timm_forward": seconds["float"] / seconds["timm forward"],
        "float_by_torch_vs_timm_forward": seconds["float by torch"] / seconds["timm forward"],
        "float_vs_published_adapter": seconds["float"] / seconds["published adapter"],
        "float_vs_published_adapter_saved": saved["float"] / saved["published adapter"],
        "recomputed_vs_float": seconds["recomputed adapter"] / seconds["float"],
        "recomputed_vs_float_saved": saved["recomputed adapter"] / saved["float"],
    }
    if "float bf16" in seconds:
        found["bf16_vs_fp32"] = seconds["float bf16"] / seconds["float"]
        found["bf16_vs_fp32_by_torch"] = seconds["float bf16"] / seconds["float by torch"]
    return found


def make_steps(backbone: str, images: Tensor) -> tuple[SelaVPR, dict[str, Step]]:
    """Every way to make one step: forward, loss, backward."""
    labels = torch.arange(len(images), device=images.device) // PHOTOS_PER_PLACE
    config = ModelConfig(
        backbone=BackboneConfig(name=backbone), float_head=GemConfig(), hash_bits=512, conv_start="random"
    )
    model = build_model(config).to(images.device).train()
    stir(model)
    with_recipe = partial(recipe_step, model, images, labels)
    steps: dict[str, Step] = {
        "frozen forward": partial(frozen_forward, model.backbone.streams, images),
        "timm forward": partial(by_torch, partial(frozen_forward, partial(blocks_of_timm, model), images)),
        "float": partial(with_recipe, "float"),
        "float by torch": partial(by_torch, partial(with_recipe, "float")),
        "hash by torch": partial(by_torch, partial(with_recipe, "hash")),
        "hash": partial(with_recipe, "hash"),
        "two branches": partial(with_recipe, "hash", reference=True),
        "published stage 2": partial(by_torch, partial(published_stage_2, model, images, labels)),
        "in-block adapters": partial(by_torch, partial(inblock_step, model, images, labels)),
        "full fine-tune": partial(full_step, model, images, labels, fused=False),
        "full fine-tune fused": partial(full_step, model, images, labels, fused=True),
        "published adapter": partial(published_step, model, images, labels),
        "recomputed adapter": partial(recomputed_step, model, images, labels),
    }
    if is_native("bf16", images.device.type):
        steps["float bf16"] = partial(with_recipe, "float", precision="bf16")
    return model, steps


@torch.no_grad()
def stir(model: SelaVPR) -> None:
    """Adapters start at zero; give them something to do, as after some training."""
    for module in model.modules():
        if isinstance(module, MultiConvAdapter):
            nn.init.trunc_normal_(module.up.weight, std=0.02)


@torch.no_grad()
def frozen_forward(streams: Callable[[Tensor], Iterator[Tensor]], images: Tensor) -> None:
    for _ in streams(images):
        pass


def recipe_step(
    model: SelaVPR,
    images: Tensor,
    labels: Tensor,
    recipe: RecipeName,
    precision: str = "fp32",
    reference: bool = False,
) -> None:
    """What `training` does for one batch, without the optimizer."""
    prepare(model, recipe, reference=reference)
    with autocast(precision, images.device):  # type: ignore[arg-type]
        found = model(images)
    learn(model, found, labels, recipe)


def by_torch(step: Step) -> None:
    """A step whose matrix products are all torch's own."""
    with mock.patch.object(products, "_onednn_is_faster", return_value=False):
        step()


def inblock_step(model: SelaVPR, images: Tensor, labels: Tensor) -> None:
    """x <- block(x) + adapter(block(x)): the usual place of adapters."""
    prepare(model, "float")
    backbone, branch, grid = model.backbone, model.float_branch, model.backbone.grid(images)
    assert branch is not None
    tokens = next(backbone.streams(images))
    with attention(model, fused=False):
        for block, adapter in zip(backbone.vit.blocks, branch.adapters, strict=True):
            tokens = block(tokens)
            tokens = tokens + adapter(tokens, grid)
    described = branch.head(backbone.norm(tokens)[:, backbone.num_prefix_tokens :], grid)
    learn(model, Descriptors(described, None, None), labels, "float")


def full_step(model: SelaVPR, images: Tensor, labels: Tensor, fused: bool) -> None:
    """The backbone itself is trained; the head stands on its last tokens."""
    prepare(model, "float")
    backbone, branch = model.backbone, model.float_branch
    assert branch is not None
    backbone.vit.requires_grad_(True)
    try:
        with attention(model, fused):
            *_, last = backbone.streams(images)
        described = branch.head(backbone.norm(last)[:, backbone.num_prefix_tokens :], backbone.grid(images))
        learn(model, Descriptors(described, None, None), labels, "float")
    finally:
        backbone.vit.requires_grad_(False)


def published_stage_2(model: SelaVPR, images: Tensor, labels: Tensor) -> None:
    """Stage 2 of the published code: both branches carry every token, only the code branch learns."""
    with forward_replaced(published_adapter):
        prepare(model, "hash", reference=True)
        backbone, grid = model.backbone, model.backbone.grid(images)
        branches = [branch for branch in (model.float_branch, model.code_branch) if branch is not None]
        streams = blocks_of_timm(model, images)
        totals = [next(streams)] * len(branches)
        for index, stream in enumerate(streams):
            totals = [
                total + branch.adapters[index](total + stream, grid)
                for total, branch in zip(totals, branches, strict=True)
            ]
        described, logits = (
            branch.head(backbone.norm(total)[:, backbone.num_prefix_tokens :], grid)
            for total, branch in zip(totals, branches, strict=True)
        )
        learn(model, Descriptors(described, logits, straight_through_sign(logits)), labels, "hash")


@torch.no_grad()
def blocks_of_timm(model: SelaVPR, images: Tensor) -> Iterator[Tensor]:
    """`Backbone.streams` by timm's own forward of a block."""
    backbone = model.backbone
    tokens, first = backbone._embed(images), backbone.first_adapted_block
    for block in backbone.vit.blocks[:first]:
        tokens = block(tokens)
    yield tokens
    for block in backbone.vit.blocks[first:]:
        tokens = block(tokens)
        yield tokens


def published_step(model: SelaVPR, images: Tensor, labels: Tensor) -> None:
    with forward_replaced(published_adapter):
        backbone, branch, grid = model.backbone, model.float_branch, model.backbone.grid(images)
        assert branch is not None
        prepare(model, "float")
        total, *streams = backbone.streams(images)
        for adapter, stream in zip(branch.adapters, streams, strict=True):
            total = total + adapter(total + stream, grid)
        described = branch.head(backbone.norm(total)[:, backbone.num_prefix_tokens :], grid)
        learn(model, Descriptors(described, None, None), labels, "float")


def published_adapter(self: MultiConvAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    hidden = F.relu(self.down(tokens))
    num_prefix = hidden.shape[1] - grid[0] * grid[1]
    image = hidden[:, num_prefix:].transpose(1, 2).reshape(len(hidden), -1, *grid)
    scales = torch.cat([self.branch1(image), self.branch2(image), self.branch3(image)], dim=1)
    mixed = torch.cat([hidden[:, :num_prefix], scales.flatten(2).transpose(1, 2)], dim=1)
    return self.up(mixed + hidden)


def recomputed_step(model: SelaVPR, images: Tensor, labels: Tensor) -> None:
    plain = MultiConvAdapter.forward

    def recomputed(self: MultiConvAdapter, tokens: Tensor, grid: tuple[int, int], total: Tensor) -> Tensor:
        return total + checkpoint(plain, self, tokens, grid, use_reentrant=False)

    with forward_replaced(recomputed):
        recipe_step(model, images, labels, "float")


@contextmanager
def attention(model: SelaVPR, fused: bool) -> Iterator[None]:
    """Attention by torch's kernel, or by an explicit softmax matrix, which is kept for backward."""
    blocks = model.backbone.vit.blocks
    before = [block.attn.fused_attn for block in blocks]
    for block in blocks:
        block.attn.fused_attn = fused
    try:
        yield
    finally:
        for block, value in zip(blocks, before, strict=True):
            block.attn.fused_attn = value


@contextmanager
def forward_replaced(forward: Callable[..., Tensor]) -> Iterator[None]:
    plain = MultiConvAdapter.forward
    MultiConvAdapter.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        MultiConvAdapter.forward = plain  # type: ignore[method-assign]


def learn(model: SelaVPR, found: Descriptors, labels: Tensor, recipe: RecipeName) -> None:
    model.zero_grad(set_to_none=True)
    recipe_loss(found, labels, RECIPES[recipe].loss_sees, LossConfig()).total.backward()


def synchronised(step: Step, device: str) -> Step:
    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def saved_bytes(step: Step, weights: set[int]) -> int:
    """Bytes kept for backward, each storage once; those of the weights are not counted."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())


if __name__ == "__main__":
    main()
