"""Photos per second of describing, over a plain forward of the same timm backbone.

    python benchmarks/embed.py [--batch 8] [--rounds 3] [--sizes 224 322] [--compile]

Float only and both branches, in fp32 and, where the processor has it, bf16, at 224 and 322 px; with --compile also
through torch.compile. Photos and weights are random. The published code reaches `two_branch_vs_backbone` 0.81. Takes
about four minutes.
"""

import argparse
from collections.abc import Callable
from functools import partial

import measure
import timm
import torch
from torch import Tensor, nn

from placeray.model.backbone import BackboneConfig
from placeray.model.precision import Precision, autocast, compiled, is_native
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model

TARGETS = {"two_branch_vs_backbone": ">= 0.84"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="vit_base_patch14_dinov2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 322])
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (
        build_model(ModelConfig(backbone=BackboneConfig(name=given.backbone), hash_bits=512))
        .to(device)
        .eval()
    )
    seconds: dict[str, float] = {}
    for size in given.sizes:
        images = torch.randn(given.batch, 3, size, size, device=device)
        seconds |= measure.alternate(make_runs(model, images, given.backbone, given.compile), given.rounds)
    measure.finish(
        "embed",
        ratios(seconds, given.sizes[0]),
        TARGETS,
        photos_per_s={name: round(given.batch / value, 3) for name, value in seconds.items()},
        bf16="native" if is_native("bf16", device) else "not measured: this processor emulates it",
        setting={**vars(given), "device": device, "threads": torch.get_num_threads()},
    )


def ratios(seconds: dict[str, float], first_size: int) -> dict[str, float]:
    """Photos per second of each way over those of the backbone alone, same size and number format."""
    found = {}
    for name, value in seconds.items():
        way, setting = name.split(" ", 1)
        if way != "backbone":
            found[f"{way}_vs_backbone {setting}"] = seconds[f"backbone {setting}"] / value
    return {"two_branch_vs_backbone": found[f"two_branch_vs_backbone {first_size}px fp32"], **found}


def make_runs(
    model: SelaVPR, images: Tensor, backbone: str, with_compile: bool
) -> dict[str, Callable[[], None]]:
    """`<way> <size>px <precision>` -> one batch."""
    size = images.shape[-1]
    vit = timm.create_model(backbone, num_classes=0, img_size=size).to(images.device).eval()
    runs: dict[str, Callable[[], None]] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in filter(partial(is_native, device_type=images.device.type), precisions):
        setting = f"{size}px {precision}"
        runs[f"backbone {setting}"] = partial(run, vit.forward_features, images, precision)
        ways = {"": model, "_compiled": compiled(model, True)} if with_compile else {"": model}
        for suffix, way in ways.items():
            runs[f"float{suffix} {setting}"] = partial(
                describe_batch, model, way, images, precision, code=False
            )
            runs[f"two_branch{suffix} {setting}"] = partial(
                describe_batch, model, way, images, precision, code=True
            )
    return runs


def describe_batch(model: SelaVPR, way: nn.Module, images: Tensor, precision: Precision, code: bool) -> None:
    model.set_branches(float=True, code=code)
    run(way, images, precision)


@torch.inference_mode()
def run(forward: Callable[[Tensor], object], images: Tensor, precision: Precision) -> None:
    with autocast(precision, images.device):
        forward(images)
    if images.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
