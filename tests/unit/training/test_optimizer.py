"""The optimizer trains what the recipe left trainable; the rate falls when the method says."""

import pytest
import torch
from torch import nn

from placeray.errors import TrainingError
from placeray.training.config import OptimizerConfig
from placeray.training.optimizer import build_optimizer, build_schedule


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def _rates(config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> list[float]:
    optimizer = build_optimizer(_model(), config)
    schedule = build_schedule(optimizer, config, steps_per_epoch=steps_per_epoch, epochs=epochs)
    rates = []
    for _ in range(steps_per_epoch * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_default_halves_the_published_rate_every_three_epochs_of_steps() -> None:
    rates = _rates(OptimizerConfig(), steps_per_epoch=5, epochs=7)
    assert rates[:15] == [4e-4] * 15
    assert rates[15:30] == [2e-4] * 15
    assert rates[30:] == [1e-4] * 5


def test_default_equals_torch_step_lr_per_iteration() -> None:
    optimizer = torch.optim.Adam(_model().parameters(), lr=4e-4)
    reference = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3 * 4, gamma=0.5)
    expected = []
    for _ in range(4 * 10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert _rates(OptimizerConfig(), steps_per_epoch=4, epochs=10) == pytest.approx(expected, rel=1e-12)


def test_warm_up_rises_to_the_full_rate_and_cosine_falls_to_nothing() -> None:
    rates = _rates(OptimizerConfig(schedule="cosine", warmup_steps=4, lr=1.0), steps_per_epoch=50, epochs=2)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 0.001
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(("kind", "decay"), [("adam", 0.0), ("adamw", 9.5e-9), ("sgd", 1e-3)])
def test_each_kind_has_the_references_weight_decay_unless_told(kind: str, decay: float) -> None:
    group = build_optimizer(_model(), OptimizerConfig(kind=kind)).param_groups[0]
    assert group["weight_decay"] == decay
    told = build_optimizer(_model(), OptimizerConfig(kind=kind, weight_decay=0.5)).param_groups[0]
    assert told["weight_decay"] == 0.5
    assert len(group["params"]) == 2, "the frozen layer must not be in the optimizer"


def test_nothing_trainable_is_said() -> None:
    with pytest.raises(TrainingError, match="prepare it with a recipe"):
        build_optimizer(_model().requires_grad_(False), OptimizerConfig())
