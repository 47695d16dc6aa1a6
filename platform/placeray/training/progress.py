"""What a person sees while a model trains: one line per stretch of steps, one per epoch; and names for metrics."""

from collections.abc import Mapping

from placeray.training.loop import StepReport


def step_line(recipe: str, epochs: int, report: StepReport) -> str:
    """`float  epoch 2/8  step 45/160  loss 0.812  lr 4.0e-04  pairs 1203  143 photos/s  waiting 3%`"""
    last = report.last
    similarity = f" ({last.main:.4f} + {last.similarity:.4f})" if last.similarity else ""
    return (
        f"{recipe}  epoch {report.epoch}/{epochs}  step {report.step}/{report.total_steps}  "
        f"loss {report.mean_loss:.4f}{similarity}  lr {last.lr:.1e}  "
        f"pairs +{last.num_pos_pairs} -{last.num_neg_pairs}  "
        f"{report.photos_per_s:.0f} photos/s  waiting for data {report.waiting:.0%}"
    )


def epoch_line(recipe: str, epochs: int, report: Mapping[str, float]) -> str:
    """`float  epoch 2/8 done in 12 s  loss 0.712  msls-val: float R@1 78.2 R@5 91.0`"""
    line = f"{recipe}  epoch {int(report['epoch'])}/{epochs} done in {report['seconds']:.0f} s"
    line += f"  loss {report['train/loss']:.4f}"
    stages = sorted({key.rsplit("/", 1)[0] for key in report if "/recall_at_" in key})
    for stage in stages:
        name, kind = stage.rsplit("/", 1)
        figures = [
            f"R@{k} {100 * report[f'{stage}/recall_at_{k}']:.1f}" for k in (1, 5) if _has(report, stage, k)
        ]
        line += f"  {name} {kind.replace('_', '-')} {' '.join(figures)}"
    return line


def _has(report: Mapping[str, float], stage: str, k: int) -> bool:
    return f"{stage}/recall_at_{k}" in report


def step_metrics(report: StepReport) -> dict[str, float]:
    """The figures of a stretch of steps under their tracking names."""
    last = report.last
    return {
        "train/step_loss": report.mean_loss,
        "train/step_lr": last.lr,
        "train/step_pos_pairs": float(last.num_pos_pairs),
        "train/step_neg_pairs": float(last.num_neg_pairs),
        "train/step_photos_per_s": report.photos_per_s,
        "train/step_waiting_share": report.waiting,
    }


def epoch_metrics(report: Mapping[str, float]) -> dict[str, float]:
    """The figures of an epoch under their tracking names; recalls get the prefix `val/`."""
    names = {key: f"val/{key}" if "/recall_at_" in key else key for key in report}
    return {names[key]: value for key, value in report.items() if key not in ("epoch", "step")}
