"""What a whole training job keeps of the speed of its bare loop.

    python benchmarks/train_job.py [--places 480] [--epochs 4] [--rounds 2] [--size 112] [--backbone toy] [--depth 3]

bare    the same steps on batches that lie in memory as tensors: forward, loss, backward, optimizer
job     `cluster.training.train` on Ray: JPEGs of 640 x 480 from places/v1, decoding, RandAugment, progress, snapshots
        inside and at the end of every epoch

One worker with one thread of arithmetic and one of decoding, so that each has a core of two. Counted is the steady
state: from the end of the first epoch to the end of the last, all pauses included; not the start of Ray and of the
worker, which `start_s` says. Takes about four minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial

import measure
import torch
from feed import K, draw_photos, write_places

from placeray.cluster.parts import ensure_ray
from placeray.cluster.training import train
from placeray.jobspecs.train import WorkersConfig
from placeray.model.recipes import prepare
from placeray.model.selavpr import build_model
from placeray.training.config import TrainConfig
from placeray.training.optimizer import build_optimizer, build_schedule
from placeray.training.run import RunSpec, loss_of
from placeray.training.step import TrainStep

TARGETS = {"job_vs_bare_loop": ">= 0.85"}
PLACES_PER_BATCH = 24
WORKERS = WorkersConfig(torch_threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--places", type=int, default=480, help=f"rounded down to batches of {PLACES_PER_BATCH}"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--backbone", default="toy")
    parser.add_argument("--depth", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        places = given.places // PLACES_PER_BATCH * PLACES_PER_BATCH
        write_places(f"{root}/places", draw_photos(root, [(640, 480)], places))
        spec = make_spec(root, given)
        ensure_ray()
        bare, jobs = [], []
        for number in range(given.rounds):
            bare.append(bare_photos_per_s(spec, places))
            jobs.append(job_figures(spec.model_copy(update={"output": f"{root}/job-{number}"}), places))
            measure.say(f"round {number + 1}/{given.rounds}: bare {bare[-1]:.1f} photos/s, job {jobs[-1]}")
    job = {name: statistics.median(figures[name] for figures in jobs) for name in jobs[0]}
    middle = statistics.median(bare)
    measure.finish(
        "train_job",
        {"job_vs_bare_loop": job["photos_per_s"] / middle},
        TARGETS,
        bare_photos_per_s=round(middle, 1),
        job={name: round(value, 3) for name, value in job.items()},
        setting={**vars(given), "photos_per_batch": PLACES_PER_BATCH * K},
    )


def make_spec(root: str, given: argparse.Namespace) -> RunSpec:
    return RunSpec.model_validate(
        {
            "normalized": f"{root}/places",
            "output": f"{root}/job",
            "model": {
                "backbone": {"name": given.backbone, "depth": given.depth},
                "float_head": {"kind": "gem", "dim": 256},
            },
            "train": {
                "epochs": given.epochs,
                "places_per_batch": PLACES_PER_BATCH,
                "photos_per_place": K,
                "preprocess": {"size_px": given.size},
                "feed": {"decode_threads": 1},
                "checkpoint_every_steps": 50,
                "log_every_s": 2,
            },
        }
    )


def bare_photos_per_s(spec: RunSpec, places: int) -> float:
    """Of as many steps as the counted epochs have, at most 40."""
    config = spec.train
    model = build_model(spec.model)
    prepare(model, config.recipe)
    step = TrainStep(model.train(), loss_of(config), *optimizer_of(model, config))
    size, photos = config.preprocess.size_px, PLACES_PER_BATCH * K
    labels = torch.arange(photos) // K
    batches = [torch.randn(photos, 3, size, size) for _ in range(2)]
    steps = min(40, (config.epochs - 1) * places // PLACES_PER_BATCH)
    run = partial(lambda number: step(batches[number % 2], labels))
    for number in range(3):
        run(number)
    started = time.perf_counter()
    for number in range(steps):
        run(number)
    return steps * photos / (time.perf_counter() - started)


def optimizer_of(
    model: torch.nn.Module, config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = build_optimizer(model, config.optimizer)
    return optimizer, build_schedule(optimizer, config.optimizer, steps_per_epoch=100, epochs=config.epochs)


class Clock:
    """Stands for a tracked run: when each epoch ended, and how long its steps waited for data."""

    id = None

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.waiting: list[float] = []

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.ended.append(time.perf_counter())
            self.waiting.append(metrics["train/waiting_share"])

    def log_file(self, path: str) -> None: ...

    def register_model(self, checkpoint: str, name: str) -> str | None: ...


def job_figures(spec: RunSpec, places: int) -> dict[str, float]:
    clock, started = Clock(), time.perf_counter()
    train(spec, WORKERS, clock)
    counted = len(clock.ended) - 1
    seconds = clock.ended[-1] - clock.ended[0]
    return {
        "photos_per_s": counted * places * K / seconds,
        "waiting_share": sum(clock.waiting[1:]) / counted,
        "start_s": clock.ended[0] - started - seconds / counted,
    }


if __name__ == "__main__":
    main()
