"""The pictures of a sweep as PNG: curves, parallel coordinates, importance, fronts."""

import io
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from placeray.sweep.importance import importance
from placeray.sweep.ledger import Trial
from placeray.sweep.objectives import best_trial, front, recall_at_1
from placeray.sweep.search import Space
from placeray.sweep.space import Choice, Grid, LogUniform
from placeray.sweep.words import short_paths, short_value, size

_INK, _SOFT, _RULE, _BEST, _OTHER = "#1d2025", "#5d646e", "#dedbd3", "#1f5fbf", "#9aa0a8"
_MOST_NAMES = 30
_STYLE = {"finished": "-", "stopped": "-", "failed": ":", "running": "-", "waiting": "-"}
_END = {"finished": "o", "stopped": "s", "failed": "x", "running": ">", "waiting": ">"}
_DPI = 160

Point = tuple[int, float, float]  # number of the trial, x, y


def draw_pictures(space: Space, trials: Sequence[Trial]) -> dict[str, bytes]:
    """All pictures that these trials allow, by file name."""
    drawn: dict[str, Figure | None] = {
        "curves.png": _curves(trials),
        "parallel_coordinates.png": _parallel(space, trials),
        "importance.png": _importance(space, trials),
        "pareto_front.png": _fronts(trials),
    }
    return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


def _figure(columns: int, height: float, width: float = 8.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_RULE)
        axis.tick_params(colors=_SOFT, labelsize=9)
        axis.grid(color=_RULE, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10.5, color=_INK, loc="left")
    axis.set_xlabel(x, fontsize=9.5, color=_SOFT)
    axis.set_ylabel(y, fontsize=9.5, color=_SOFT)


def _name_points(axis: Axes, points: Sequence[Point], strong: Collection[int]) -> None:
    """Trial numbers beside their points, `strong` ones bold; points that lie together share one label."""
    x_near, y_near = 0.03 * np.ptp(axis.get_xlim()), 0.045 * np.ptp(axis.get_ylim())
    labels: list[tuple[float, float, bool, list[int]]] = []
    for number, x, y in sorted(points, key=lambda point: (point[0] not in strong, point[0])):
        bold = number in strong
        if len(points) > _MOST_NAMES and not bold:
            continue
        near = [label for label in labels if abs(label[0] - x) < x_near and abs(label[1] - y) < y_near]
        shared = next((label for label in near if label[2] == bold), None)
        if shared is not None:
            shared[3].append(number)
            continue
        labels.append((x, y, bold, [number]))
        axis.annotate(
            "", (x, y), xytext=(20 if near else 6, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=_BEST if bold else _SOFT, weight="bold" if bold else "normal",
        )  # fmt: skip
    for text, (_, _, _, numbers) in zip(axis.texts[-len(labels) :], labels, strict=False):
        text.set_text(", ".join(map(str, numbers)))


def _curves(trials: Sequence[Trial]) -> Figure | None:
    """Score and training loss by epoch; the best trial stands out, the others share one colour."""
    shown = [trial for trial in trials if trial.epochs]
    if not shown:
        return None
    best = best_trial(list(trials))
    figure, (left, right) = _figure(2, 3.3)
    panels: list[tuple[Axes, Callable[[Trial], tuple[list[int], list[float]]]]] = [
        (left, lambda trial: (list(trial.scores), list(trial.scores.values()))),
        (right, lambda trial: _column(trial, "train/loss")),
    ]
    for axis, curve in panels:
        ends: list[Point] = []
        for trial in sorted(shown, key=lambda trial: trial is best):
            x, y = curve(trial)
            if not x:
                continue
            mine = trial is best
            colour = _BEST if mine else _OTHER
            axis.plot(x, y, _STYLE[trial.state], color=colour, linewidth=2.4 if mine else 1.2)
            axis.plot(x[-1], y[-1], _END[trial.state], color=colour, markersize=6 if mine else 4.5)
            ends.append((trial.number, x[-1], y[-1]))
        _name_points(axis, ends, {best.number} if best else set())
        axis.xaxis.get_major_locator().set_params(integer=True)
    _label(left, "Validation, best so far", "epoch", "R@1 + R@5")
    _label(right, "Training", "epoch", "loss")
    return figure


def _column(trial: Trial, key: str) -> tuple[list[int], list[float]]:
    rows = [(int(report["epoch"]), report[key]) for report in trial.epochs if key in report]
    return [row[0] for row in rows], [row[1] for row in rows]


def _parallel(space: Space, trials: Sequence[Trial]) -> Figure | None:
    """A line per trial through its values and its score, in the colour of the score."""
    judged = sorted(
        (trial for trial in trials if trial.score is not None), key=lambda trial: trial.score or 0.0
    )
    if len(judged) < 2:
        return None
    names = short_paths(list(space))
    columns = [_scale(item, [trial.values[path] for trial in judged]) for path, item in space.items()]
    scores = np.array([trial.score for trial in judged], np.float64)
    span = float(np.ptp(scores)) or 1.0
    columns.append(
        ((scores - scores.min()) / span, [(0.0, f"{scores.min():.3g}"), (1.0, f"{scores.max():.3g}")])
    )
    figure, (axis,) = _figure(1, 3.7)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_yticks([])
    ends: list[Point] = []
    for row, trial in enumerate(judged):
        heights = [float(places[row]) for places, _ in columns]
        best = row == len(judged) - 1
        colour = colormaps["viridis_r"](0.12 + 0.8 * (scores[row] - scores.min()) / span)
        axis.plot(range(len(columns)), heights, color=colour, linewidth=2.8 if best else 1.5)
        ends.append((trial.number, len(columns) - 1, heights[-1]))
    for at, (_, marks) in enumerate(columns):
        axis.axvline(at, color=_SOFT, linewidth=0.8)
        for height, text in marks:
            axis.annotate(
                text, (at, height), xytext=(-5, 0), textcoords="offset points", ha="right", va="center",
                fontsize=8, color=_SOFT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
    axis.set_xticks(range(len(columns)), [*(names[path] for path in space), "score"], fontsize=9, color=_INK)
    axis.set_ylim(-0.08, 1.08)
    axis.set_xlim(-0.45, len(columns) - 0.75)
    _name_points(axis, ends, {judged[-1].number})
    return figure


def _scale(item: Any, values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights 0..1 of values on one axis, and its marks."""
    if isinstance(item, Choice | Grid):
        listed = [json.dumps(value, sort_keys=True) for value in item.values]
        places = np.linspace(0, 1, len(listed)) if len(listed) > 1 else np.array([0.5])
        found = np.array([places[listed.index(json.dumps(value, sort_keys=True))] for value in values])
        return found, [(float(at), short_value(value)) for at, value in zip(places, item.values, strict=True)]
    low, high = float(item.low), float(item.high)
    numbers = np.array(values, np.float64)
    if isinstance(item, LogUniform):
        heights, middle = np.log(numbers / low) / np.log(high / low), (low * high) ** 0.5
    else:
        heights, middle = (numbers - low) / (high - low), (low + high) / 2
    return heights, [(0.0, short_value(low)), (0.5, short_value(middle)), (1.0, short_value(high))]


def _importance(space: Space, trials: Sequence[Trial]) -> Figure | None:
    shares = importance(space, trials)
    if not shares:
        return None
    names = short_paths(list(space))
    figure, (axis,) = _figure(1, 0.8 + 0.36 * len(shares))
    paths = list(reversed(shares))
    axis.barh(
        [names[path] for path in paths], [100 * shares[path] for path in paths], color=_BEST, height=0.6
    )
    for at, path in enumerate(paths):
        axis.annotate(
            f"{100 * shares[path]:.0f} %", (100 * shares[path], at), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=9, color=_SOFT,
        )  # fmt: skip
    axis.set_xlim(0, 108)
    axis.grid(visible=False, axis="y")
    _label(axis, "", "share of the scores' variance, %", "")
    return figure


def _fronts(trials: Sequence[Trial]) -> Figure | None:
    """Recall over bytes in the map, and over the time of a step; what no other trial beats is joined."""
    judged = [trial for trial in trials if recall_at_1(trial) is not None]
    if not judged:
        return None
    figure, axes = _figure(2, 3.4)
    gains = [recall_at_1(trial) or 0.0 for trial in judged]
    costs = [[float(trial.map_bytes) for trial in judged], [1000 * trial.step_s for trial in judged]]
    for axis, cost in zip(axes, costs, strict=True):
        kept = front(cost, gains)
        axis.plot([cost[at] for at in kept], [100 * gains[at] for at in kept], color=_BEST, linewidth=1.6)
        colours = [_BEST if at in kept else _OTHER for at in range(len(judged))]
        axis.scatter(cost, [100 * gain for gain in gains], c=colours, s=34, zorder=3)
        points = [(trial.number, cost[at], 100 * gains[at]) for at, trial in enumerate(judged)]
        _name_points(axis, points, {judged[at].number for at in kept})
    axes[0].xaxis.set_major_formatter(lambda value, _: size(value))
    _label(axes[0], "Recall and size", "a photo in the map", "R@1, %")
    _label(axes[1], "Recall and time", "a training step, ms", "R@1, %")
    return figure
