"""The map of one city as inline SVG: where its photos were taken, north up, one scale for both directions."""

import html
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placeray.overview.figures import NO_CITY

Spots = npt.NDArray[np.float64]  # (n, 2) latitude and longitude in degrees

WIDTH, HEIGHT, MARGIN = 320.0, 240.0, 12.0
_METRES_PER_DEGREE = 111_320.0
# The frame holds this share of the photos in each direction; a few strays must not shrink a city to a dot.
_INSIDE = (0.5, 99.5)
_ROLES = ("database", "train", "query")


class CityMap(NamedTuple):
    """Photos of one city of one source.

    spots: per role. evaluation: photos of all evaluation sources, drawn where they fall into the frame.
    rings: leaking places.
    """

    source: str
    city: str
    num_photos: int
    spots: dict[str, Spots]
    evaluation: list[Spots]
    rings: Spots


class _Frame(NamedTuple):
    """Degrees to pixels around `lat`, `lon`."""

    lat: float
    lon: float
    scale: float  # pixels per metre

    def pixels(self, spots: Spots) -> Spots:
        """(n, 2) x and y."""
        x, y = _metres(spots, self.lat, self.lon)
        return np.stack([WIDTH / 2 + x * self.scale, HEIGHT / 2 - y * self.scale], axis=1)


def draw_city(city: CityMap) -> str:
    """A figure: title, map, scale, and what is not in the frame."""
    spots = np.concatenate(list(city.spots.values()))
    frame = _frame(spots)
    outside = len(spots) - int(_inside(frame.pixels(spots)).sum())
    body = [f'<rect class="paper" width="{WIDTH:g}" height="{HEIGHT:g}" rx="6"/>']
    for others in city.evaluation:
        body.append(_dots("other", frame.pixels(others)))
    for role in _ROLES:
        if role in city.spots:
            body.append(_dots(role, frame.pixels(city.spots[role])))
    rings = frame.pixels(city.rings)
    rings = rings[_inside(rings)]
    radius = 5.0 if len(rings) < 40 else 3.0
    body += [
        f'<circle class="leak" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        for x, y in np.unique(rings.round(1), axis=0)
    ]
    body.append(_ruler(frame.scale))
    leaking = ", leaking places ringed" if len(rings) else ""
    words = f"Map of {city.city}, {city.source}: {city.num_photos:,} photos{leaking}"
    # An evaluation set in the '@' form names no city.
    title, below = (city.city, city.source) if city.city != NO_CITY else (city.source, "")
    stray = f" · {outside:,} of {len(spots):,} drawn lie outside" if outside else ""
    return (
        f"<figure><h3>{html.escape(title)} <small>{html.escape(below)}</small></h3>"
        f'<svg class="map" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(words)}">'
        f"{''.join(body)}</svg><figcaption>{city.num_photos:,} photos{stray}</figcaption></figure>"
    )


def _frame(spots: Spots) -> _Frame:
    lat = float(np.median(spots[:, 0]))
    # The median of longitudes in the turn of the first photo: a city may lie across the antimeridian.
    turned = np.mod(spots[:, 1] - spots[0, 1] + 180.0, 360.0) - 180.0
    lon = float(spots[0, 1] + np.median(turned))
    x, y = _metres(spots, lat, lon)
    (west, east), (south, north) = np.percentile(x, _INSIDE), np.percentile(y, _INSIDE)
    scale = min(
        (WIDTH - 2 * MARGIN) / max(east - west, 20.0), (HEIGHT - 2 * MARGIN) / max(north - south, 20.0)
    )
    middle_lat = lat + (south + north) / 2 / _METRES_PER_DEGREE
    middle_lon = lon + (west + east) / 2 / (_METRES_PER_DEGREE * np.cos(np.radians(lat)))
    return _Frame(float(middle_lat), float(middle_lon), float(scale))


def _metres(spots: Spots, lat: float, lon: float) -> tuple[Spots, Spots]:
    """East and north of a point, on a plane that touches there."""
    turned = np.mod(spots[:, 1] - lon + 180.0, 360.0) - 180.0
    return turned * _METRES_PER_DEGREE * np.cos(np.radians(lat)), (spots[:, 0] - lat) * _METRES_PER_DEGREE


def _inside(pixels: Spots) -> npt.NDArray[np.bool_]:
    return np.asarray(((pixels >= 2) & (pixels <= [WIDTH - 2, HEIGHT - 2])).all(axis=1))


def _dots(style: str, pixels: Spots) -> str:
    """One path of round points; photos that fall on the same third of a pixel are one."""
    seen = np.unique((pixels[_inside(pixels)] * 3).round() / 3, axis=0)
    if not len(seen):
        return ""
    width = 5.0 if len(seen) < 150 else 3.6 if len(seen) < 600 else 2.4
    path = "".join(f"M{x:.4g} {y:.4g}h0" for x, y in seen)
    return f'<path class="dots {style}" stroke-width="{width}" d="{path}"/>'


def _ruler(scale: float) -> str:
    """A round length in metres, about a quarter of the width."""
    length = max(
        (
            step * 10.0**power
            for power in range(8)
            for step in (1, 2, 5)
            if step * 10.0**power * scale <= WIDTH / 4
        ),
        default=1.0,
    )
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    y, end = HEIGHT - 10, 10 + length * scale
    return (
        f'<path class="ruler" d="M10 {y - 4}v4H{end:.1f}v-4"/>'
        f'<text class="ruler-text" x="{end + 5:.1f}" y="{y}">{text}</text>'
    )
