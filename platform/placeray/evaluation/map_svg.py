"""Maps as inline SVG: the ground of the map photos, where a query really is, and where it was found.

Photos without positions but with frame numbers are drawn along a line instead of on a plane.
"""

import html
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placeray.evaluation.page_data import Example, Ground, Spot

Floats = NDArray[np.float64]

# More dots than this make a page heavy and a map no clearer.
MAX_DOTS = 1500
WIDTH, HEIGHT, MARGIN = 320.0, 240.0, 14.0
STRIP_HEIGHT = 90.0


@dataclass(frozen=True)
class Projection:
    """Spots to pixels: north is up, one scale for both directions."""

    kind: str
    middle: Spot
    scale: float  # pixels per metre (or per frame)
    height: float

    @classmethod
    def of(cls, ground: Ground) -> "Projection":
        """Fits all photos of the map, the queries and what was found for them."""
        spots = np.concatenate([ground.database, ground.queries, ground.found])
        spots = spots[~np.isnan(spots).any(axis=1)]
        low, high = spots.min(axis=0), spots.max(axis=0)
        height = HEIGHT if ground.kind == "metres" else STRIP_HEIGHT
        span = np.maximum(high - low, 1.0)
        scale = float((WIDTH - 2 * MARGIN) / span[0])
        if ground.kind == "metres":
            scale = min(scale, float((height - 2 * MARGIN) / span[1]))
        middle = (low + high) / 2
        return cls(ground.kind, (float(middle[0]), float(middle[1])), scale, height)

    def pixel(self, spot: Spot) -> tuple[float, float]:
        """(x, y) on the drawing, one decimal."""
        x = WIDTH / 2 + (spot[0] - self.middle[0]) * self.scale
        y = self.height / 2 - (spot[1] - self.middle[1]) * self.scale
        return round(x, 1), round(y, 1)


def ground_definition(ground: Ground, projection: Projection) -> str:
    """The dots of the map photos as an invisible symbol that every small map of the page repeats."""
    step = max(1, -(-len(ground.database) // MAX_DOTS))
    dots = sorted({projection.pixel((float(x), float(y))) for x, y in ground.database[::step]})
    radius = 1.6 if len(dots) < 600 else 1.1
    circles = "".join(f'<circle cx="{x}" cy="{y}" r="{radius}"/>' for x, y in dots)
    return (
        '<svg width="0" height="0" class="hidden" aria-hidden="true"><defs>'
        f'<g id="ground" class="ground">{circles}{_ruler(projection)}</g></defs></svg>'
    )


def example_map(example: Example, ground: Ground, projection: Projection) -> str:
    """A small map of one query: its true spot as a ring, the best match of the first row as a dot."""
    answers = example.rows[0].answers if example.rows else ()
    best = answers[0] if answers else None
    marks, words = [], []
    truth = projection.pixel(example.spot) if example.spot else None
    if best is not None and best.spot is not None:
        x, y = projection.pixel(best.spot)
        kind = "right" if best.right else "wrong"
        if truth:
            marks.append(f'<line class="miss {kind}" x1="{truth[0]}" y1="{truth[1]}" x2="{x}" y2="{y}"/>')
        marks.append(f'<circle class="found {kind}" cx="{x}" cy="{y}" r="5"/>')
        words.append(f"the best match is {'right' if best.right else 'wrong'}{_how_far(best.distance_m)}")
    if truth:
        marks.append(f'<circle class="truth" cx="{truth[0]}" cy="{truth[1]}" r="9"/>')
        words.append("the ring is the true place")
    return _drawing(f"Map: {', '.join(words) or 'no positions known'}.", projection, "".join(marks))


def overview_map(ground: Ground, projection: Projection) -> str:
    """All queries at their true spots, green or red; red lines lead to what was found instead."""
    lines, dots = [], []
    for spot, found, right in zip(ground.queries, ground.found, ground.right, strict=True):
        if np.isnan(spot).any():
            continue
        x, y = projection.pixel((float(spot[0]), float(spot[1])))
        if not right and not np.isnan(found).any():
            u, v = projection.pixel((float(found[0]), float(found[1])))
            lines.append(f'<line class="miss wrong" x1="{x}" y1="{y}" x2="{u}" y2="{v}"/>')
        dots.append(f'<circle class="found {"right" if right else "wrong"}" cx="{x}" cy="{y}" r="1.9"/>')
    count = int(ground.right.sum())
    words = f"Map of all queries: {count} of {len(ground.right)} found at the right place."
    return _drawing(words, projection, "".join(lines) + "".join(dots))


def _drawing(words: str, projection: Projection, marks: str) -> str:
    return (
        f'<svg class="map" viewBox="0 0 {WIDTH:g} {projection.height:g}" role="img" '
        f'aria-label="{html.escape(words)}">'
        f'<rect class="paper" width="{WIDTH:g}" height="{projection.height:g}" rx="6"/>'
        f'<use href="#ground"/>{marks}</svg>'
    )


def _ruler(projection: Projection) -> str:
    """A scale bar with a round length of at most a third of the width."""
    longest = WIDTH / 3 / projection.scale
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1.0, 2.0, 5.0) if step * power <= longest)
    if projection.kind == "metres":
        text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    else:
        text = f"{length:g} frames"
    x, y = MARGIN / 2, projection.height - MARGIN / 2
    end = round(x + length * projection.scale, 1)
    return (
        f'<path class="ruler" d="M{x} {y - 4}V{y}H{end}V{y - 4}"/>'
        f'<text class="ruler-text" x="{end + 5}" y="{y}">{text}</text>'
    )


def _how_far(distance_m: float | None) -> str:
    return "" if distance_m is None else f", {distance_m:.0f} metres from the truth"
