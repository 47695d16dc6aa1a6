"""Trials packed on one backbone forward against a single one: wall time per trial of a training step.

    python benchmarks/sweep.py [--batch 8] [--rounds 4] [--steps 2] [--backbone vit_base_patch14_dinov2] [--size 224]

Every run is the real training loop (forward, loss, backward, Adam) of k trials that differ in learning rate and loss.
A single trial is the same code with k = 1, which keeps nothing and waits for nobody. The losses of trial 0 must be
equal to the bit in all runs, or the benchmark fails. Photos and weights are random; reading and decoding photos, which
packed trials also share, is left out. Takes about eight minutes on two cores.
"""

import argparse
import functools
import resource
from collections.abc import Callable, Iterator

import measure
import torch
from torch import Tensor

from placeray.model.adapter import MultiConvAdapter
from placeray.model.backbone import Backbone, BackboneConfig, build_backbone
from placeray.model.recipes import prepare
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.training.config import TrainConfig
from placeray.training.convoy import Convoy, ride
from placeray.training.loop import Silent, StepReport, fit
from placeray.training.run import loss_of

PHOTOS_PER_PLACE = 4
PACKS = (1, 4, 8)
TARGETS = {"packed8_vs_single": "<= 0.45", "packed4_vs_single": "<= 0.55"}


class RandomPhotos:
    """A feed of one epoch: the same batches for every trial."""

    def __init__(self, steps: int, batch: int, size: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.batches = [torch.randn(batch, 3, size, size, generator=draw) for _ in range(steps)]
        self.labels = torch.arange(batch) // PHOTOS_PER_PLACE

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for images in self.batches[first_step:]:
            yield images, self.labels


class Losses(Silent):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def steps(self, report: StepReport) -> None:
        self.seen.append(report.last.loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--backbone", default="vit_base_patch14_dinov2")
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    config = ModelConfig(backbone=BackboneConfig(name=given.backbone), conv_start="random")
    backbone = build_backbone(config.backbone)
    feed = RandomPhotos(given.steps, given.batch, given.size)
    losses: dict[int, list[float]] = {}
    runs = {f"{size} packed": packed_run(config, backbone, feed, size, losses) for size in PACKS}
    seconds = measure.alternate(runs, given.rounds)
    if any(found != losses[1] for found in losses.values()):
        raise SystemExit(f"packed trials do not equal the single one: {losses}")
    per_trial = {size: seconds[f"{size} packed"] / size for size in PACKS}
    measure.finish(
        "sweep",
        {f"packed{size}_vs_single": per_trial[size] / per_trial[1] for size in PACKS[1:]},
        TARGETS,
        seconds_per_trial_and_step={
            str(size): round(value / given.steps, 3) for size, value in per_trial.items()
        },
        losses_of_trial_0=losses[1],
        peak_memory_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        setting={**vars(given), "threads": torch.get_num_threads()},
    )


def packed_run(
    config: ModelConfig, backbone: Backbone, feed: RandomPhotos, size: int, losses: dict[int, list[float]]
) -> Callable[[], None]:
    """A function that trains `size` trials for one more epoch; their models are made here, off the clock."""
    convoy = Convoy(backbone, config.backbone, size)
    models = [started(build_model(config, seat)) for seat in convoy.backbones]

    def run() -> None:
        listeners = [Losses() for _ in models]
        outcomes = ride(
            convoy,
            [
                functools.partial(train, number, model, feed, listener)
                for number, (model, listener) in enumerate(zip(models, listeners, strict=True))
            ],
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        losses.setdefault(size, []).extend(listeners[0].seen)

    return run


def started(model: SelaVPR) -> SelaVPR:
    """Ready to train; adapters start at zero, so they get something to do, as after some training."""
    prepare(model, "float")
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, MultiConvAdapter):
            torch.nn.init.trunc_normal_(module.up.weight, std=0.02)
    return model.train()


def train(number: int, model: SelaVPR, feed: RandomPhotos, listener: Losses) -> None:
    """One epoch of trial `number`; every trial has a rate and a margin of its own."""
    settings = {
        "epochs": 1, "log_every_s": 0, "optimizer": {"lr": 1e-4 * (1 + number)}, "loss": {"base": 0.1 * number},
    }  # fmt: skip
    config = TrainConfig.model_validate(settings)
    fit(model, loss_of(config), feed, config, listener=listener)


if __name__ == "__main__":
    main()
