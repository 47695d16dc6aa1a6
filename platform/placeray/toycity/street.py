"""A street of the toy city: houses on both sides, towers behind them, trees on the pavement.

A street is a pure function of its key. A house is one record of `BUILDING`: a box in the street frame
(metres; see camera.py) with everything that makes its facade its own: storeys, window grid, texture, roof,
signs.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.hashing import Floats

Numbers = NDArray[np.floating[Any]]

NUM_PANELS = 4  # shop sign, large sign or mural, door, upright sign

PANEL = np.dtype(
    [
        ("u0", "f4"), ("u1", "f4"), ("z0", "f4"), ("z1", "f4"),  # metres on the front
        ("cell_u", "f4"), ("cell_z", "f4"),  # size of one cell of its pattern, metres
        ("paper", "f4", 3), ("ink", "f4", 3),
        ("letters", "?"),  # every fourth column empty, as between letters
        ("glow", "f4"),  # how much it shines at night
    ]
)  # fmt: skip

BUILDING = np.dtype(
    [
        ("x0", "f4"), ("x1", "f4"), ("y0", "f4"), ("y1", "f4"), ("height", "f4"), ("key", "i4"),
        ("wall", "f4", 3), ("trim", "f4", 3), ("glass", "f4", 3), ("curtain", "f4", 3), ("roof_colour", "f4", 3),
        ("ground_m", "f4"), ("storey_m", "f4"), ("bay_m", "f4"),
        ("window_w", "f4"), ("window_h", "f4"), ("sill_m", "f4"), ("arch_m", "f4"), ("frame_m", "f4"),
        ("mullions", "i4"), ("transom", "f4"), ("absent", "f4"), ("curtained", "f4"),
        ("texture_u", "f4"), ("texture_z", "f4"), ("texture_shift", "f4"), ("texture", "f4"), ("joint", "f4"),
        ("band", "f4"), ("pilaster", "f4"), ("cornice_m", "f4"), ("blank_sides", "?"),
        ("roof", "i4"), ("roof_m", "f4"), ("shop", "?"), ("balcony", "f4"),
        ("panels", PANEL, NUM_PANELS),
    ]
)  # fmt: skip
FLAT, GABLE, STEPPED, MANSARD = range(4)

TREE = np.dtype(
    [("x", "f4"), ("y", "f4"), ("radius", "f4"), ("crown_z", "f4"), ("key", "i4"), ("tone", "f4")]
)

END_ROOM_M = 70.0  # houses go on beyond the first and last place, so that no photo sees the end of the world


@dataclass(frozen=True)
class StreetKey:
    """Names one street of one city; the whole street follows from it."""

    seed: int
    district: int
    number: int
    length_m: int


@dataclass(frozen=True)
class Street:
    """What stands along a street; x runs from -END_ROOM_M to length + END_ROOM_M."""

    key: StreetKey
    buildings: NDArray[np.void]  # (N,) of BUILDING, front rows first
    trees: NDArray[np.void]  # (T,) of TREE
    kerb_m: float  # the road is |y| < kerb_m
    row_starts: tuple[Floats, Floats]  # x0 of the left and right front row, ascending
    row_heights: tuple[Floats, Floats]


@lru_cache(maxsize=64)
def build_street(key: StreetKey) -> Street:
    """Draw the houses, towers and trees of a street from its key alone."""
    rng = np.random.default_rng([key.seed, 11, key.district, key.number])
    half_m = float(rng.uniform(8.5, 13.0))
    rows = [_front_row(rng, side, half_m, key) for side in (-1, 1)]
    towers = _towers(rng, key, half_m)
    buildings = np.concatenate([*rows, towers, _street_ends(rng, key, half_m)])
    buildings["key"] = rng.integers(1, 2**31 - 1, len(buildings))
    starts = (rows[0]["x0"].copy(), rows[1]["x0"].copy())
    heights = (rows[0]["height"].copy(), rows[1]["height"].copy())
    kerb_m = half_m * float(rng.uniform(0.45, 0.62))
    return Street(key, buildings, _trees(rng, key, kerb_m), kerb_m, starts, heights)


def _front_row(rng: np.random.Generator, side: int, half_m: float, key: StreetKey) -> NDArray[np.void]:
    """One side of the street: houses wall to wall, some set back, now and then an alley between two."""
    edges: list[tuple[float, float]] = []
    x = -END_ROOM_M - float(rng.uniform(0, 10))
    while x < key.length_m + END_ROOM_M:
        width = float(rng.uniform(7.0, 17.0))
        edges.append((x, x + width))
        x += width + (float(rng.uniform(2.0, 7.0)) if rng.random() < 0.22 else 0.0)
    houses = _draw_houses(rng, len(edges))
    spans = np.array(edges, dtype=np.float32)
    setback = np.where(rng.random(len(edges)) < 0.3, rng.uniform(0.8, 3.5, len(edges)), 0.0)
    front = half_m + setback
    back = front + rng.uniform(9, 14, len(edges))
    houses["x0"], houses["x1"] = spans[:, 0], spans[:, 1]
    houses["y0"] = front if side > 0 else -back
    houses["y1"] = back if side > 0 else -front
    _hang_panels(rng, houses)
    return houses


def _towers(rng: np.random.Generator, key: StreetKey, half_m: float) -> NDArray[np.void]:
    """Taller blocks behind the front rows: the skyline."""
    count = max(3, int((key.length_m + 2 * END_ROOM_M) / 34))
    towers = _draw_houses(rng, count)
    x = np.linspace(-END_ROOM_M, key.length_m + END_ROOM_M, count) + rng.uniform(-8, 8, count)
    side = rng.choice([-1, 1], count)
    near = half_m + rng.uniform(20, 48, count)
    width, depth = rng.uniform(9, 20, count), rng.uniform(9, 20, count)
    towers["x0"], towers["x1"] = x, x + width
    towers["y0"] = np.where(side > 0, near, -near - depth)
    towers["y1"] = np.where(side > 0, near + depth, -near)
    towers["height"] = rng.uniform(16, 46, count)
    towers["roof"] = rng.choice([FLAT, STEPPED, GABLE], count, p=[0.6, 0.25, 0.15])
    return towers


def _street_ends(rng: np.random.Generator, key: StreetKey, half_m: float) -> NDArray[np.void]:
    """A house across either end closes the view along the street."""
    ends = _draw_houses(rng, 2)
    ends["x0"] = [-END_ROOM_M - 30, key.length_m + END_ROOM_M + 18]
    ends["x1"] = ends["x0"] + 12
    ends["y0"], ends["y1"] = -half_m - 6, half_m + 6
    return ends


def _draw_houses(rng: np.random.Generator, count: int) -> NDArray[np.void]:
    """Facades of `count` houses; where they stand is the caller's."""
    houses = np.zeros(count, dtype=BUILDING)
    _draw_colours(rng, houses)
    _draw_walls(rng, houses)
    _draw_windows(rng, houses)
    houses["roof"] = rng.choice([FLAT, GABLE, STEPPED, MANSARD], count, p=[0.45, 0.25, 0.12, 0.18])
    houses["roof_m"] = np.where(houses["roof"] == FLAT, 0.0, rng.uniform(1.8, 4.5, count))
    storeys = rng.integers(1, 6, count)
    houses["height"] = houses["ground_m"] + storeys * houses["storey_m"] + rng.uniform(0.4, 1.0, count)
    return houses


_WALLS = np.array(
    [
        [0.50, 0.27, 0.20], [0.40, 0.22, 0.18], [0.60, 0.40, 0.28],  # brick
        [0.80, 0.76, 0.66], [0.72, 0.70, 0.68], [0.78, 0.66, 0.48], [0.62, 0.66, 0.60],  # plaster
        [0.40, 0.47, 0.54], [0.30, 0.33, 0.36],  # glass and metal
        [0.66, 0.72, 0.78], [0.72, 0.54, 0.48], [0.52, 0.58, 0.46],  # siding
    ],
    dtype=np.float32,
)  # fmt: skip
_KINDS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3])  # of _WALLS: brick, plaster, glass, siding


def _draw_colours(rng: np.random.Generator, houses: NDArray[np.void]) -> None:
    count = len(houses)
    wall = rng.integers(0, len(_WALLS), count)
    houses["wall"] = np.clip(
        _WALLS[wall] * rng.uniform(0.8, 1.2, (count, 1)) + rng.normal(0, 0.03, (count, 3)), 0.08, 0.95
    )
    bright = rng.random((count, 1)) < 0.6
    houses["trim"] = np.where(
        bright, rng.uniform(0.75, 0.95, (count, 1)), houses["wall"] * rng.uniform(0.3, 0.6, (count, 1))
    )
    houses["glass"] = rng.uniform(0.06, 0.2, (count, 1)) * np.array([0.9, 1.0, 1.1])
    houses["curtain"] = rng.uniform(0.35, 0.8, (count, 1)) + rng.normal(0, 0.06, (count, 3))
    houses["roof_colour"] = np.array([0.34, 0.27, 0.25]) * rng.uniform(0.6, 1.4, (count, 1)) + rng.normal(
        0, 0.03, (count, 3)
    )
    kind = _KINDS[wall]
    houses["texture_u"] = np.choose(
        kind, [rng.uniform(0.5, 0.9, count), rng.uniform(1.5, 4, count), rng.uniform(1.0, 2.0, count), 40]
    )
    houses["texture_z"] = np.choose(
        kind,
        [
            rng.uniform(0.25, 0.4, count),
            rng.uniform(1.5, 4, count),
            rng.uniform(1.2, 3, count),
            rng.uniform(0.3, 0.6, count),
        ],
    )
    houses["texture_shift"] = np.where(kind == 0, 0.5, 0.0)
    houses["texture"] = np.choose(kind, [0.3, 0.1, 0.25, 0.1]) * rng.uniform(0.6, 1.3, count)
    houses["joint"] = np.choose(kind, [0.25, 0.0, 0.3, 0.4]) * rng.uniform(0.6, 1.2, count)


def _draw_walls(rng: np.random.Generator, houses: NDArray[np.void]) -> None:
    count = len(houses)
    houses["ground_m"] = rng.uniform(3.2, 4.6, count)
    houses["storey_m"] = rng.uniform(2.7, 4.0, count)
    houses["band"] = np.where(rng.random(count) < 0.4, rng.choice([-0.3, 0.3], count), 0.0)
    houses["pilaster"] = np.where(rng.random(count) < 0.3, rng.choice([-0.25, 0.25], count), 0.0)
    houses["cornice_m"] = np.where(rng.random(count) < 0.6, rng.uniform(0.3, 0.8, count), 0.0)
    houses["blank_sides"] = rng.random(count) < 0.5
    houses["shop"] = rng.random(count) < 0.5
    houses["balcony"] = np.where(rng.random(count) < 0.2, rng.uniform(0.2, 0.6, count), 0.0)


def _draw_windows(rng: np.random.Generator, houses: NDArray[np.void]) -> None:
    count = len(houses)
    bay = rng.uniform(1.6, 4.2, count)
    houses["bay_m"] = bay
    houses["window_w"] = bay * rng.uniform(0.3, 0.85, count)
    houses["sill_m"] = rng.choice([0.15, 0.5, 0.8, 1.0], count)
    houses["window_h"] = (houses["storey_m"] - houses["sill_m"]) * rng.uniform(0.5, 0.9, count)
    houses["arch_m"] = np.where(
        rng.random(count) < 0.25, houses["window_w"] * rng.uniform(0.25, 0.5, count), 0.0
    )
    houses["frame_m"] = np.where(rng.random(count) < 0.65, rng.uniform(0.1, 0.3, count), 0.0)
    houses["mullions"] = rng.integers(0, 3, count)
    houses["transom"] = np.where(rng.random(count) < 0.5, rng.uniform(0.5, 0.75, count), -9.0)
    houses["absent"] = np.where(rng.random(count) < 0.45, rng.uniform(0.1, 0.45, count), 0.0)
    houses["curtained"] = rng.uniform(0.1, 0.7, count)


def _hang_panels(rng: np.random.Generator, houses: NDArray[np.void]) -> None:
    """Doors, shop signs, upright signs, and large painted walls: what people recognise a street by."""
    count = len(houses)
    width = houses["x1"] - houses["x0"]
    panels = houses["panels"]
    papers = _vivid(rng, (count, NUM_PANELS))
    panels["paper"] = papers
    panels["ink"] = np.where(papers.mean(-1, keepdims=True) > 0.42, papers * 0.15, 0.92)
    panels["u1"] = -1.0  # no panel unless one is hung below

    shop = houses["shop"]
    span = width * rng.uniform(0.45, 0.95, count)
    start = (width - span) * rng.random(count)
    height = rng.uniform(0.7, 1.2, count)
    low = houses["ground_m"] - height - rng.uniform(0.0, 0.2, count)
    cell = height / 5
    _hang(panels[:, 0], shop, start, span, low, height, cell * rng.uniform(0.9, 1.5, count), cell, True, 1.0)

    mural = rng.random(count) < 0.3
    span = width * rng.uniform(0.3, 0.75, count)
    height = np.minimum(rng.uniform(2.5, 6.5, count), houses["height"] - houses["ground_m"] - 0.4)
    low = houses["ground_m"] + (houses["height"] - houses["ground_m"] - height) * rng.random(count)
    cell = rng.uniform(0.5, 1.2, count)
    start = (width - span) * rng.random(count)
    _hang(
        panels[:, 1], mural, start, span, low, height, cell, cell * rng.uniform(0.6, 1.4, count), False, 0.5
    )

    span = rng.uniform(1.0, 2.0, count)
    start = 0.5 + (width - 1 - span) * rng.random(count)
    high = rng.uniform(2.1, 2.7, count)
    _hang(panels[:, 2], ~shop, start, span, np.zeros(count), high, span, high, False, 0.0)

    upright = rng.random(count) < 0.35
    span = rng.uniform(0.8, 1.5, count)
    height = np.minimum(rng.uniform(2.0, 5.0, count), houses["height"] - 3.0)
    cell = span / 4
    start = 0.3 + (width - 0.6 - span) * rng.choice([0.0, 1.0], count)
    _hang(panels[:, 3], upright, start, span, np.full(count, 2.9), height, cell, cell * 1.2, False, 1.0)


def _hang(
    panel: NDArray[np.void],
    where: NDArray[np.bool_],
    u0: Numbers,
    span: Numbers,
    z0: Numbers,
    height: Numbers,
    cell_u: Numbers,
    cell_z: Numbers,
    letters: bool,
    glow: float,
) -> None:
    """Place one kind of panel on the houses in `where`; `panel` is a view into their records."""
    panel["u0"], panel["u1"] = u0, np.where(where, u0 + span, -1.0)
    panel["z0"], panel["z1"] = z0, z0 + height
    panel["cell_u"], panel["cell_z"] = cell_u, cell_z
    panel["letters"], panel["glow"] = letters, glow


def _vivid(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Colours of paint: any hue, strong."""
    phase = rng.random((*shape, 1)) * 2 * np.pi + np.array([0.0, 2.094, 4.189])
    colour = (0.5 + 0.45 * np.cos(phase)) * rng.uniform(0.45, 1.0, (*shape, 1))
    pale = rng.random((*shape, 1)) < 0.25
    return np.where(pale, 0.55 + 0.4 * colour, colour).astype(np.float32)


def _trees(rng: np.random.Generator, key: StreetKey, kerb_m: float) -> NDArray[np.void]:
    """Trees at uneven distances on the pavement; some streets have many, some none."""
    step = float(rng.choice([14.0, 22.0, 40.0]))
    xs = np.arange(-END_ROOM_M, key.length_m + END_ROOM_M, step)
    trees = np.zeros(len(xs), dtype=TREE)
    trees["x"] = xs + rng.uniform(-step / 3, step / 3, len(xs))
    trees["y"] = rng.choice([-1.0, 1.0], len(xs)) * (kerb_m + rng.uniform(0.7, 1.4, len(xs)))
    trees["radius"] = rng.uniform(0.9, 2.2, len(xs))
    trees["crown_z"] = rng.uniform(3.6, 5.5, len(xs))
    trees["key"] = rng.integers(1, 2**31 - 1, len(xs))
    trees["tone"] = rng.uniform(0.7, 1.2, len(xs))
    return trees
