"""Optimizer and learning-rate schedule of the method (paper code, train.py and parser.py).

Adam at 4e-4 without weight decay is the reference's default; sgd and adamw are its two other choices. The rate is
halved every 3 epochs, counted in optimizer steps. Differs from the reference: the schedule is part of the resume state.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from placeray.errors import TrainingError
from placeray.training.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters only.

    Raises:
        TrainingError: the recipe left nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("no parameter of the model is trainable: prepare it with a recipe first")
    return _BUILDERS[config.kind](parameters, config)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, steps_per_epoch: int, epochs: int
) -> LambdaLR:
    """Rate per step: linear warm-up, then the chosen decay.

    `step` multiplies by `decay` after every `decay_every_epochs` epochs (the reference's StepLR per iteration);
    `cosine` falls to zero at the last step; `constant` stays.
    """
    decay_every = max(1, round(config.decay_every_epochs * steps_per_epoch))
    total = max(1, steps_per_epoch * epochs)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.schedule == "step":
            return warm * float(config.decay ** (step // decay_every))
        if config.schedule == "cosine":
            return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, step / total)))))
        return warm

    return LambdaLR(optimizer, factor)


def _adam(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=config.lr, weight_decay=_decay(config, 0.0))


def _adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=_decay(config, 9.5e-9))


def _sgd(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=_decay(config, 1e-3))


def _decay(config: OptimizerConfig, reference: float) -> float:
    return reference if config.weight_decay is None else config.weight_decay


_BUILDERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}
