"""What trials are judged by: recall, bytes in the map, time of a step; and which of them no other beats in both."""

import torch

from placeray.model.backbone import Backbone
from placeray.model.selavpr import ModelConfig, SelaVPR
from placeray.sweep.ledger import Trial, standing

_SCALE_BYTES = 4


def map_bytes(config: ModelConfig) -> int:
    """Bytes a photo takes in a map: its code, and its descriptor as 8-bit integers with one float32 scale."""
    with torch.device("meta"):
        model = SelaVPR(config, Backbone(config.backbone))
    descriptor = model.descriptor_dim + _SCALE_BYTES if model.descriptor_dim else 0
    return model.code_bits // 8 + descriptor


def best_trial(trials: list[Trial]) -> Trial | None:
    """The trial with a checkpoint and the best score; of equal ones that with the best codes, of equal ones the first.

    As the training loop orders epochs: on a small map re-ranking hides how good the codes are.
    """
    able = [trial for trial in trials if trial.checkpoint and trial.best]
    return max(able, key=lambda trial: standing(trial.best), default=None)


def recall_at_1(trial: Trial) -> float | None:
    """Mean over the validation sets, at the trial's best epoch, of the stage its score looks at."""
    report = trial.best
    sets = {key.split("/")[0] for key in report if key.endswith("/recall_at_1")}
    found = []
    for name in sorted(sets):
        stages = [
            stage for stage in ("two_stage", "float", "binary") if f"{name}/{stage}/recall_at_1" in report
        ]
        found.append(report[f"{name}/{stages[0]}/recall_at_1"])
    return sum(found) / len(found) if found else None


def front(costs: list[float], gains: list[float]) -> list[int]:
    """Positions that no other beats: no other has at most the cost and at least the gain, and one of both better.

    In order of rising cost.
    """
    best, kept = float("-inf"), []
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -gains[at])):
        if gains[at] > best:
            best = gains[at]
            kept.append(at)
    return kept
