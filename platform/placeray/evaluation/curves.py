"""Line charts as inline SVG: recall over k, training over time, stated against observed confidence."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 22.0, 12.0, 38.0


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` is a class of the style sheet (main, base, guide, other)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """From low to high, with marks; `log` spaces powers evenly."""

    label: str
    low: float
    high: float
    marks: tuple[float, ...]
    percent: bool = False
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        """How a mark is written."""
        return f"{value * 100:g} %" if self.percent else f"{value:g}"


SHARE = Axis("", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), percent=True)


def line_chart(words: str, lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """An SVG chart with a legend in its corner; `words` says in a sentence what it shows."""
    body = [_grid(x_axis, y_axis)]
    for line in lines:
        points = [_pixel(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
        if len(points) > 1:
            path = " ".join(f"{x},{y}" for x, y in points)
            body.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if line.dots or len(points) == 1:
            body.extend(f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3.2"/>' for x, y in points)
    named = [line for line in lines if line.label]
    ends = [y_axis.place(line.y[-1]) for line in named]
    body.append(_legend(named, top=sum(ends) < 0.5 * len(ends)))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(words)}">'
        f"{''.join(body)}</svg>"
    )


def recall_axis(depth: int) -> Axis:
    """k = 1 ... depth, evenly spaced in its logarithm."""
    marks = tuple(float(k) for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= depth)
    return Axis("answers looked at (k)", 1.0, float(max(depth, 2)), marks, log=True)


def fitted_axis(label: str, values: Sequence[float]) -> Axis:
    """A linear axis with four to seven round marks around finite values."""
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = min((s * power for s in (1.0, 2.0, 2.5, 5.0, 10.0)), key=lambda s: abs((high - low) / s - 5))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(round(step * mark, 12) for mark in range(first, last + 1))
    return Axis(label, marks[0], marks[-1], marks)


def _pixel(x: float, y: float) -> tuple[float, float]:
    return (
        round(LEFT + x * (WIDTH - LEFT - RIGHT), 1),
        round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1),
    )


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for mark in y_axis.marks:
        x, y = _pixel(0.0, y_axis.place(mark))
        parts.append(f'<line class="grid" x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{x - 6}" y="{y + 3.5}" text-anchor="end">{y_axis.text(mark)}</text>'
        )
    for mark in x_axis.marks:
        x, y = _pixel(x_axis.place(mark), 0.0)
        parts.append(
            f'<text class="tick" x="{x}" y="{y + 15}" text-anchor="middle">{x_axis.text(mark)}</text>'
        )
    x, y = _pixel(0.5, 0.0)
    parts.append(
        f'<text class="axis" x="{x}" y="{y + 31}" text-anchor="middle">{html.escape(x_axis.label)}</text>'
    )
    return "".join(parts)


def _legend(lines: Sequence[Line], top: bool) -> str:
    """Bottom right, where rising lines leave room; top right for falling ones."""
    parts = []
    for i, line in enumerate(lines):
        y = TOP + 12 + 16 * i if top else HEIGHT - BOTTOM - 12 - 16 * (len(lines) - 1 - i)
        x = WIDTH - RIGHT - 8
        parts.append(
            f'<text class="legend" x="{x - 28}" y="{y + 3.5}" text-anchor="end">'
            f"{html.escape(line.label)}</text>"
        )
        parts.append(f'<line class="line {line.style}" x1="{x - 22}" y1="{y}" x2="{x}" y2="{y}"/>')
    return "".join(parts)
