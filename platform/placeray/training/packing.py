"""Trials that differ only beside the frozen backbone, trained together: one decoded batch, one forward pass for all.

What may differ: side branch, heads, losses, optimizer, recipe, start of the trainable weights. What must be the same
is the pack key: backbone, data, batches, augmentation, size, precision, when and on what is judged. A packed trial
computes what it would compute alone, to the bit in float32 (and in every precision on one kind of device).
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from placeray.errors import TrainingError
from placeray.model.backbone import Backbone, build_backbone
from placeray.model.checkpoint import load_checkpoint
from placeray.training.convoy import Convoy, Seat, ride
from placeray.training.feed import PlacesFeed
from placeray.training.loop import Batch, Listener
from placeray.training.run import RunFeed, RunResult, RunSpec, Shared, train_once, validation_sets
from placeray.training.state import Snapshot

_SHARED_SETTINGS = (
    "epochs", "places_per_batch", "photos_per_place", "min_places_per_batch", "micro_batch", "precision", "seed",
    "preprocess", "augment",
)  # fmt: skip
_SHARED_JUDGEMENT = ("sets", "every_epochs", "batch_size")


@dataclass(frozen=True)
class Member:
    """One trial of a pack.

    Attributes:
        resume:       where it stands; all members stand at the same step.
        step_seconds: receives what each step would have taken the trial alone.
        ended:        told at once how it ended, while others may still run.
    """

    spec: RunSpec
    listener: Listener
    resume: Snapshot | None = None
    step_seconds: list[float] = field(default_factory=list)
    ended: Callable[[RunResult | Exception], None] = lambda outcome: None


def pack_key(spec: RunSpec) -> str:
    """Trials with equal keys may ride together."""
    train = spec.train
    shared = {
        "normalized": spec.normalized,
        "start_from": spec.start_from,
        "backbone": spec.model.backbone.model_dump(mode="json"),
        "train": train.model_dump(mode="json", include=set(_SHARED_SETTINGS)),
        "validation": train.validation.model_dump(mode="json", include=set(_SHARED_JUDGEMENT)),
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def train_packed(
    members: Sequence[Member], *, device: torch.device | None = None
) -> list[RunResult | Exception]:
    """Train trials together; an error ends the trial that met it, the others go on.

    Args:
        members: of one pack key, all at the same step; more decode threads or prefetched batches than the first
                 asks for are not used.

    Raises:
        TrainingError: the members may not ride together.
        PlacerayError: what they share (data, backbone) cannot be had.
    """
    _check(members)
    spec = members[0].spec
    backbone = _backbone(spec).to(device or torch.device("cpu"))
    convoy = Convoy(backbone, spec.model.backbone, len(members))
    batches, sets = _Batches(PlacesFeed(spec.normalized, spec.train)), validation_sets(spec)

    def run(member: Member, seat: Seat, own_backbone: Backbone) -> RunResult:
        feed = _SeatFeed(batches, seat, member.step_seconds)
        shared = Shared(own_backbone, feed, sets)
        try:
            result = train_once(
                member.spec, member.listener, device=device, resume=member.resume, shared=shared
            )
        except Exception as error:
            member.ended(error)
            raise
        member.ended(result)
        return result

    runs: list[Callable[[], RunResult]] = [
        functools.partial(run, *each) for each in zip(members, convoy.seats, convoy.backbones, strict=True)
    ]
    try:
        return ride(convoy, runs)
    finally:
        batches.close()


def _check(members: Sequence[Member]) -> None:
    keys = {pack_key(member.spec) for member in members}
    steps = {member.resume.progress.step if member.resume else 0 for member in members}
    if len(keys) != 1 or len(steps) != 1:
        raise TrainingError(
            f"{len(members)} trials cannot ride together: they have {len(keys)} different backbones, data, batches or "
            f"judgements and stand at {len(steps)} different steps"
        )


def _backbone(spec: RunSpec) -> Backbone:
    if spec.start_from is not None:
        return load_checkpoint(spec.start_from).model.backbone
    return build_backbone(spec.model.backbone)


class _Batches:
    """The batches of one feed for several readers in step: each is read and decoded once."""

    def __init__(self, feed: PlacesFeed) -> None:
        self.feed = feed
        self._reading: Iterator[Batch] | None = None
        self._next = (-1, 0)
        self._kept: dict[tuple[int, int], Batch] = {}

    def get(self, epoch: int, step: int) -> Batch:
        """Batch `step` of an epoch. Readers are at most one batch apart, so two are kept."""
        at = (epoch, step)
        if at not in self._kept:
            if self._reading is None or self._next != at:
                self._leave()
                self._reading = self.feed.epoch(epoch, step)
            self._kept = {key: batch for key, batch in self._kept.items() if key == (epoch, step - 1)}
            try:
                self._kept[at] = next(self._reading)
            except Exception:
                self.close()  # every reader meets the same error
                raise
            self._next = (epoch, step + 1)
        return self._kept[at]

    def close(self) -> None:
        """Stop the threads that read ahead."""
        self._leave()
        self.feed.close()

    def _leave(self) -> None:
        if self._reading is not None:
            self._reading.close()  # type: ignore[attr-defined]  # the feed yields from a generator
        self._reading = None


class _SeatFeed(RunFeed):
    """The shared batches as one member reads them; takes the time of its steps."""

    def __init__(self, batches: _Batches, seat: Seat, step_seconds: list[float]) -> None:
        self._batches, self._seat, self._step_seconds = batches, seat, step_seconds
        self.num_places, self.num_photos = batches.feed.num_places, batches.feed.num_photos
        self.data_sets, self.fingerprint = batches.feed.data_sets, batches.feed.fingerprint

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.feed.steps_per_epoch

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        for step in range(first_step, self.steps_per_epoch):
            batch = self._batches.get(number, step)
            started = self._seat.seconds
            yield batch
            self._step_seconds.append(self._seat.seconds - started)
