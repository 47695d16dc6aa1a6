"""Bars and roses as inline SVG; `words` say in a sentence what a drawing shows."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, TOP, BOTTOM = 300.0, 150.0, 16.0, 22.0
ROSE, ROSE_RADIUS = 150.0, 56.0
_MOST_TICKS = 12


def bars(counts: Mapping[str, int], words: str) -> str:
    """One bar per entry, in its order, from zero; the highest carries its count."""
    high = max(counts.values(), default=0)
    if not high:
        return ""
    step, floor = WIDTH / len(counts), HEIGHT - BOTTOM
    every = math.ceil(len(counts) / _MOST_TICKS)
    highest = max(counts, key=lambda label: counts[label])
    parts = [f'<line class="grid" x1="0" x2="{WIDTH:g}" y1="{floor:g}" y2="{floor:g}"/>']
    for number, (label, count) in enumerate(counts.items()):
        height = count / high * (floor - TOP)
        x = number * step
        parts.append(
            f'<rect class="bar" x="{x + step * 0.08:.1f}" y="{floor - height:.1f}" width="{step * 0.84:.1f}" '
            f'height="{height:.1f}"><title>{html.escape(label)}: {count:,}</title></rect>'
        )
        middle = x + step / 2
        if label == highest:
            anchor = "start" if middle < 30 else "end" if middle > WIDTH - 30 else "middle"
            parts.append(
                f'<text class="tick" x="{middle:.1f}" y="{TOP - 5:g}" text-anchor="{anchor}">{count:,}</text>'
            )
        if number % every == 0:
            below = f'x="{middle:.1f}" y="{HEIGHT - 7:g}" text-anchor="middle"'
            parts.append(f'<text class="tick" {below}>{html.escape(label)}</text>')
    return _svg(WIDTH, HEIGHT, words, parts)


def rose(counts: Sequence[int], words: str) -> str:
    """Sectors of equal angle from north over east; their area is the count."""
    high = max(counts, default=0)
    if not high:
        return ""
    middle, turn = ROSE / 2, 2 * math.pi / len(counts)
    parts = [
        f'<circle class="grid" fill="none" cx="{middle:g}" cy="{middle:g}" r="{ROSE_RADIUS * math.sqrt(share):.1f}"/>'
        for share in (0.5, 1.0)
    ]
    for number, count in enumerate(counts):
        if count:
            radius = ROSE_RADIUS * math.sqrt(count / high)
            x1, y1 = _around(middle, radius, number * turn)
            x2, y2 = _around(middle, radius, (number + 1) * turn)
            degrees = f"{360 * number // len(counts)} to {360 * (number + 1) // len(counts)}"
            parts.append(
                f'<path class="bar" d="M{middle:g} {middle:g}L{x1} {y1}A{radius:.1f} {radius:.1f} 0 0 1 {x2} {y2}Z">'
                f"<title>{degrees} degrees: {count:,}</title></path>"
            )
    for letter, angle in zip("NESW", (0, 90, 180, 270), strict=True):
        x, y = _around(middle, ROSE_RADIUS + 11, math.radians(angle))
        parts.append(f'<text class="tick" x="{x}" y="{y + 4:.1f}" text-anchor="middle">{letter}</text>')
    return _svg(ROSE, ROSE, words, parts)


def _around(middle: float, radius: float, angle: float) -> tuple[float, float]:
    """A point clockwise from north."""
    return round(middle + radius * math.sin(angle), 1), round(middle - radius * math.cos(angle), 1)


def _svg(width: float, height: float, words: str, parts: list[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(words)}">'
        f"{''.join(parts)}</svg>"
    )
