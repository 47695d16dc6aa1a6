"""One optimizer step on one global batch: forward, loss over all pairs, backward, update.

The loss is computed in float32 outside autocast on the descriptors of all ranks (differs from the reference, which
keeps the miner's similarities in half precision).
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from placeray.errors import TrainingError
from placeray.losses import LossTerms
from placeray.model.precision import Precision, autocast
from placeray.model.selavpr import Descriptors
from placeray.training.gather import gather_rows, rows_of_ranks

LossFunction = Callable[[Descriptors, Tensor], LossTerms]


class StepResult(NamedTuple):
    """Figures of one step, of the whole global batch."""

    loss: float
    main: float
    similarity: float
    num_pos_pairs: int
    num_neg_pairs: int
    num_photos: int
    lr: float


@dataclass
class TrainStep:
    """Callable (images (B_rank, 3, H, W) float32, labels (B_rank,) int64) -> StepResult.

    Attributes:
        model:       the prepared model; DistributedDataParallel when there are several ranks.
        loss:        (descriptors of the global batch, labels (B,)) -> terms.
        micro_batch: photos per pass; None passes the batch in one go. In parts the loss and its gradient are
            those of the whole batch, except that BatchNorm normalises every part by itself.
    """

    model: nn.Module
    loss: LossFunction
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    precision: Precision = "fp32"
    micro_batch: int | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        if self.precision == "fp16" and self.device.type != "cuda":
            raise TrainingError("precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __call__(self, images: Tensor, labels: Tensor) -> StepResult:
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        counts = rows_of_ranks(len(images), self.device)
        all_labels = gather_rows(labels, counts)
        if len(torch.unique(all_labels)) < 2:
            raise TrainingError(
                f"a batch of {len(all_labels)} photos shows one single place: there is nothing to tell apart; "
                "raise places_per_batch or leave out domains with one place"
            )
        self.optimizer.zero_grad(set_to_none=True)
        # From the largest share, which all ranks know: each must pass as many parts as the others.
        num_parts = 1 if self.micro_batch is None else math.ceil(max(counts) / self.micro_batch)
        with _memory_explained(max(counts), self.micro_batch):
            if num_parts == 1:
                terms = self._in_one_pass(images, all_labels, counts)
            else:
                terms = self._in_parts(images, all_labels, counts, num_parts)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self._update(moves=terms.total.requires_grad)
        return StepResult(
            float(terms.total.detach()), float(terms.main.detach()), float(terms.similarity.detach()),
            int(terms.num_pos_pairs), int(terms.num_neg_pairs), sum(counts), lr,
        )  # fmt: skip

    def _in_one_pass(self, images: Tensor, labels: Tensor, counts: list[int]) -> LossTerms:
        descriptors = _gathered(self._forward(images), counts)
        terms = self.loss(descriptors, labels)
        self._check(terms.total)
        if terms.total.requires_grad:
            self.scaler.scale(terms.total).backward()
        return terms

    def _in_parts(self, images: Tensor, labels: Tensor, counts: list[int], num_parts: int) -> LossTerms:
        """Exact gradient of the whole batch in the memory of a part (Gao et al. 2021, "Scaling deep contrastive
        learning batch size under memory limited setup"): describe all parts without a graph, take the gradient of
        the loss by descriptor, then pass each part again and hand that gradient on. BatchNorm sees parts; dropout
        drops the same in both passes.

        Raises:
            TrainingError: a rank has fewer photos than there are parts.
        """
        if min(counts) < num_parts:
            raise TrainingError(
                f"a worker has {min(counts)} photos of this batch, too few for the {num_parts} parts that another "
                f"one with {max(counts)} needs: raise micro_batch or min_places_per_batch"
            )
        parts = images.tensor_split(num_parts)
        seed = torch.initial_seed()
        with torch.no_grad(), _running_statistics_untouched(self.model):
            described = [self._forward_seeded(part, seed, number) for number, part in enumerate(parts)]
        leaves = Descriptors(*(_as_leaf(columns) for columns in zip(*described, strict=True)))
        terms = self.loss(_gathered(leaves, counts), labels)
        self._check(terms.total)
        if not terms.total.requires_grad:
            return terms
        self.scaler.scale(terms.total).backward()
        gradients = [
            None if leaf is None or leaf.grad is None else leaf.grad.tensor_split(num_parts)
            for leaf in leaves
        ]
        for number, part in enumerate(parts):
            with self._without_sync(number < num_parts - 1):
                outputs = self._forward_seeded(part, seed, number)
                pairs = [
                    (output, of_parts[number])
                    for output, of_parts in zip(outputs, gradients, strict=True)
                    if output is not None and of_parts is not None
                ]
                torch.autograd.backward([x for x, _ in pairs], [g.to(x.dtype) for x, g in pairs])
        return terms

    def _forward_seeded(self, part: Tensor, seed: int, number: int) -> Descriptors:
        torch.manual_seed((seed + number) % 2**63)
        return self._forward(part)

    def _forward(self, images: Tensor) -> Descriptors:
        with autocast(self.precision, self.device):
            raw: Any = self.model(images)
        return Descriptors(*(None if x is None else x.float() for x in raw))

    def _update(self, moves: bool) -> None:
        """Without a mined pair there is no gradient: the weights stay, the schedule goes on."""
        if moves:
            if self.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()  # no gradients: changes nothing, keeps the schedule from warning about its order
        self.schedule.step()

    def _without_sync(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _check(self, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at learning rate {self.optimizer.param_groups[0]['lr']:.3g} in "
                f"{self.precision}; lower optimizer.lr, set optimizer.clip_norm or use fp32 (the last "
                "checkpoint is kept)"
            )


@contextlib.contextmanager
def _memory_explained(photos: int, micro_batch: int | None) -> Iterator[None]:
    """One sentence instead of an allocator's report."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        at_once = min(photos, micro_batch or photos)
        raise TrainingError(
            f"out of memory with {at_once} photos in one pass of a worker: set train.micro_batch to "
            f"{max(2, at_once // 2)}, lower places_per_batch or add workers (the last checkpoint is kept)"
        ) from None


def _gathered(descriptors: Descriptors, counts: list[int]) -> Descriptors:
    return Descriptors(*(None if x is None else gather_rows(x, counts) for x in descriptors))


def _as_leaf(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present).requires_grad_() if present else None


@contextlib.contextmanager
def _running_statistics_untouched(model: nn.Module) -> Iterator[None]:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
