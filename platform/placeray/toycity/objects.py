"""What stands or passes between camera and houses: trees, cars, vans, people, lamp posts.

Trees belong to the street (their leaves to the season); the rest belongs to one photo. Each object is a flat
figure that faces the camera and is drawn only inside its own rectangle of pixels.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.camera import View, project
from placeray.toycity.conditions import Conditions
from placeray.toycity.hashing import Floats, hash_cells, unit
from placeray.toycity.street import Street

Numbers = NDArray[np.floating[Any]]

NEAR_M, FAR_M = 2.5, 60.0


def draw_trees(
    photo: Floats, depth: Floats, view: View, street: Street, now: Conditions, light: Floats
) -> None:
    """Trunks and crowns, far ones first, into `photo` (3, H, W) and `depth` (H, W)."""
    near = np.abs(street.trees["x"] - view.pose.x_m) < FAR_M
    seen = []
    for tree in street.trees[near]:
        column, _, distance = project(view, float(tree["x"]), float(tree["y"]), 0.0)
        if distance > NEAR_M:
            seen.append((distance, column, tree))
    for distance, column, tree in sorted(seen, key=lambda item: -item[0]):
        _draw_trunk(photo, depth, view, float(tree["crown_z"]), distance, column, light)
        _draw_crown(photo, depth, view, tree, distance, column, now, light)


def _draw_trunk(
    photo: Floats, depth: Floats, view: View, crown_z: float, distance: float, column: float, light: Floats
) -> None:
    box = _Box.around(view, distance, column, 0.14, 0.0, crown_z)
    if box is not None:
        colour = np.array([0.2, 0.15, 0.11], dtype=np.float32) * light
        box.paint(photo, depth, np.ones(box.shape, dtype=np.float32), colour[:, None, None])


def _draw_crown(
    photo: Floats,
    depth: Floats,
    view: View,
    tree: np.void,
    distance: float,
    column: float,
    now: Conditions,
    light: Floats,
) -> None:
    radius = float(tree["radius"])
    box = _Box.around(
        view,
        distance,
        column,
        radius * 1.1,
        float(tree["crown_z"]) - radius,
        float(tree["crown_z"]) + 1.3 * radius,
    )
    if box is None:
        return
    across, up = box.across_m, box.up_m - float(tree["crown_z"])
    cell_m = max(0.25, distance / view.focal_px)
    i, j = np.floor(across / cell_m).astype(np.int32), np.floor(up / cell_m).astype(np.int32)
    ragged = unit(hash_cells(i[None, :], j[:, None], int(tree["key"])))
    round_off = (across / radius) ** 2 + ((up / (1.15 * radius)) ** 2)[:, None]
    filled = (ragged < now.leaves * np.clip(2.2 - 2 * round_off, 0, 1) + 0.02).astype(np.float32) * (
        round_off < 1.1
    )
    tone = (0.6 + 0.6 * ragged + 0.15 * (up / radius)[:, None]) * float(tree["tone"])
    leaf = now.foliage + now.snow * 0.6 * (np.float32(0.9) - now.foliage)
    box.paint(photo, depth, filled, tone * (leaf * light)[:, None, None])


def draw_traffic(
    photo: Floats, depth: Floats, view: View, street: Street, now: Conditions, light: Floats
) -> None:
    """Parked and passing cars and vans, and people on the pavement; other ones in every photo."""
    rng = np.random.default_rng([now.seed, 9])
    figures = []
    for _ in range(rng.poisson(3.0 * now.traffic)):
        parked = rng.random() < 0.6
        y = (street.kerb_m - 1.1) * (1 if rng.random() < 0.5 else -1) if parked else rng.uniform(-2.5, 2.5)
        figures.append((_draw_car, view.pose.x_m + rng.uniform(-25, 25), y, rng.integers(1, 2**31 - 1)))
    for _ in range(rng.poisson(3.0 * now.traffic)):
        y = rng.uniform(street.kerb_m, street.kerb_m + 3) * (1 if rng.random() < 0.5 else -1)
        figures.append((_draw_person, view.pose.x_m + rng.uniform(-20, 20), y, rng.integers(1, 2**31 - 1)))
    placed = [(project(view, float(x), float(y), 0.0), draw, seed) for draw, x, y, seed in figures]
    for (column, _, distance), draw, seed in sorted(placed, key=lambda item: -item[0][2]):
        if NEAR_M < distance < FAR_M:
            draw(photo, depth, view, distance, column, np.random.default_rng(int(seed)), now, light)


def _draw_car(
    photo: Floats,
    depth: Floats,
    view: View,
    distance: float,
    column: float,
    rng: np.random.Generator,
    now: Conditions,
    light: Floats,
) -> None:
    """A car or van as a silhouette: body, cabin with windows, wheels, lamps at night."""
    van = rng.random() < 0.3
    along = abs(
        math.sin(math.radians(view.pose.heading_deg))
    )  # seen from the side in a view across the street
    half = 0.9 + 1.3 * along + (0.3 if van else 0.0)
    roof = float(rng.uniform(1.9, 2.5) if van else rng.uniform(1.35, 1.55))
    box = _Box.around(view, distance, column, half, 0.0, roof)
    if box is None:
        return
    across, up = np.abs(box.across_m) / half, box.up_m[:, None]
    cabin = np.clip((0.95 if van else 0.75) - 0.2 * (up - 0.85), 0.3, 1)
    body = (up > 0.28) & ((up < 0.9) & (across < 0.98) | (across < cabin))
    wheels = (np.abs(across - 0.62) * half < 0.32) & (up < 0.62)
    panes = (up > 0.95) & (up < roof - 0.15) & (across < cabin - 0.1) & (rng.random() < 0.9)
    paint = np.full(3, rng.uniform(0.05, 0.85)) if rng.random() < 0.6 else rng.uniform(0.05, 0.7, 3)
    colour = np.broadcast_to(paint.astype(np.float32)[:, None, None], (3, *box.shape)).copy()
    colour *= 0.8 + 0.25 * up
    colour[:, panes] = 0.1
    colour[:, np.broadcast_to(wheels, box.shape)] = 0.04
    colour *= light[:, None, None]
    if now.night > 0.3:
        colour[:, (np.abs(up - 0.65) < 0.1) & (np.abs(across - 0.8) < 0.1)] = rng.choice([0.3, 1.0])
    box.paint(photo, depth, (body | wheels).astype(np.float32), colour)


def _draw_person(
    photo: Floats,
    depth: Floats,
    view: View,
    distance: float,
    column: float,
    rng: np.random.Generator,
    now: Conditions,
    light: Floats,
) -> None:
    """Legs, coat and head."""
    tall = float(rng.uniform(1.5, 1.9))
    box = _Box.around(view, distance, column, 0.3, 0.0, tall)
    if box is None:
        return
    across, up = np.abs(box.across_m), box.up_m[:, None] / tall
    head = (across / 0.12) ** 2 + ((up - 0.92) / 0.075) ** 2 < 1
    coat = (up > 0.42) & (up < 0.84) & (across < 0.25)
    legs = (up <= 0.42) & (across < 0.2)
    colour = np.zeros((3, *box.shape), dtype=np.float32)
    for part, paint in (
        (legs, rng.uniform(0.05, 0.3, 3)),
        (coat, rng.uniform(0.05, 0.8, 3)),
        (head, np.array([0.6, 0.45, 0.36])),
    ):
        colour[:, part] = (paint.astype(np.float32) * light)[:, None]
    box.paint(photo, depth, (head | coat | legs).astype(np.float32), colour)


class _Box:
    """The rectangle of pixels a flat figure covers, with the metres of its columns and rows."""

    def __init__(self, view: View, distance: float, column: float, columns: slice, rows: slice) -> None:
        self.distance = distance
        self.columns, self.rows = columns, rows
        per_pixel = distance / view.focal_px
        self.across_m = ((np.arange(columns.start, columns.stop) - column) * per_pixel).astype(np.float32)
        self.up_m = (view.pose.eye_m + distance * view.slope[rows]).astype(np.float32)
        self.shape = (len(self.up_m), len(self.across_m))

    @classmethod
    def around(
        cls, view: View, distance: float, column: float, half_m: float, low_m: float, high_m: float
    ) -> "_Box | None":
        """Pixels within `half_m` of a column and between two heights; None outside the photo."""
        half = half_m * view.focal_px / distance
        left, right = math.ceil(column - half), math.floor(column + half) + 1
        top = math.ceil(view.horizon_row - view.focal_px * (high_m - view.pose.eye_m) / distance - 0.5)
        low = math.floor(view.horizon_row - view.focal_px * (low_m - view.pose.eye_m) / distance - 0.5) + 1
        columns = slice(max(left, 0), min(right, view.width_px))
        rows = slice(max(top, 0), min(low, view.height_px))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return None
        return cls(view, distance, column, columns, rows)

    def paint(self, photo: Floats, depth: Floats, share: Numbers, colour: Numbers) -> None:
        """Blend `colour` (3, h, w) by `share` (h, w) where nothing nearer is."""
        part, behind = photo[:, self.rows, self.columns], depth[self.rows, self.columns]
        visible = share * (behind > self.distance)
        part += (colour - part) * visible
        behind[visible > 0.5] = self.distance
