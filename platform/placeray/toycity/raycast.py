"""Which wall each image column meets: rays of a photo against the boxes of a street.

With a level camera one column sees one vertical strip of the world, so intersecting is done once per column
(W rays against N boxes), and everything that varies only along a wall is computed per column as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.camera import View
from placeray.toycity.hashing import Floats
from placeray.toycity.street import GABLE, MANSARD, STEPPED, Street

SIGHT_M = 95.0
NUM_LAYERS = 3  # walls seen behind each other above lower roofs
NOTHING_M = 1.0e6


@dataclass(frozen=True)
class Walls:
    """The n-th nearest wall of each column. All arrays are (W,), lengths in metres."""

    building: NDArray[np.intp]  # row of the street's buildings
    depth: Floats  # along the optical axis; NOTHING_M where no wall stands
    along: Floats  # from the left end of the wall's building face (x0 or y0)
    width: Floats  # of that face
    per_column: Floats  # metres of wall one column covers
    front: NDArray[np.bool_]  # faces the street; otherwise a side wall
    facing: Floats  # +1 / -1: sign of the outer normal along y (front) or x (side)
    top: Floats  # height of the roof line here


def cast(street: Street, view: View) -> list[Walls]:
    """The NUM_LAYERS nearest walls of every column, nearest first."""
    pose = view.pose
    houses = street.buildings
    near = (houses["x1"] > pose.x_m - SIGHT_M) & (houses["x0"] < pose.x_m + SIGHT_M)
    rows = np.flatnonzero(near)
    boxes = houses[rows]
    ray_x, ray_y = view.ray_x[:, None], view.ray_y[:, None]
    # Slab method: a box is where the x interval and the y interval of a ray overlap. (W, N)
    xa, xb = (boxes["x0"] - pose.x_m) / ray_x, (boxes["x1"] - pose.x_m) / ray_x
    ya, yb = (boxes["y0"] - pose.y_m) / ray_y, (boxes["y1"] - pose.y_m) / ray_y
    enter_x, enter_y = np.minimum(xa, xb), np.minimum(ya, yb)
    enter = np.maximum(enter_x, enter_y)
    leave = np.minimum(np.maximum(xa, xb), np.maximum(ya, yb))
    depth = np.where((enter < leave) & (enter > 0.1), enter, np.float32(NOTHING_M))
    order = np.argsort(depth, axis=1, kind="stable")[:, :NUM_LAYERS]
    columns = np.arange(len(view.ray_x))
    layers = []
    for layer in range(min(NUM_LAYERS, order.shape[1])):
        nearest = order[:, layer]
        front = enter_y[columns, nearest] >= enter_x[columns, nearest]
        layers.append(_describe(street, view, rows[nearest], depth[columns, nearest], front))
    return layers


def _describe(
    street: Street, view: View, building: NDArray[np.intp], depth: Floats, front: NDArray[np.bool_]
) -> Walls:
    """Where on its wall each ray ends."""
    houses = street.buildings
    x0, x1, y0, y1 = (houses[name][building] for name in ("x0", "x1", "y0", "y1"))
    hit = depth < NOTHING_M
    reach = np.where(hit, depth, 0)
    along_x = view.pose.x_m + reach * view.ray_x - x0
    along_y = view.pose.y_m + reach * view.ray_y - y0
    width = np.where(front, x1 - x0, y1 - y0)
    along = np.where(front, along_x, along_y)
    across = np.abs(np.where(front, view.ray_y, view.ray_x))
    return Walls(
        building=building,
        depth=depth,
        along=along,
        width=width,
        per_column=np.maximum(reach / across / view.focal_px, 1e-3).astype(np.float32),
        front=front,
        facing=-np.sign(np.where(front, view.ray_y, view.ray_x)).astype(np.float32),
        top=np.where(hit, _roof_line(houses, building, along, width, front), -1.0).astype(np.float32),
    )


def _roof_line(
    houses: NDArray[np.void],
    building: NDArray[np.intp],
    along: Floats,
    width: Floats,
    front: NDArray[np.bool_],
) -> Floats:
    """Height of the silhouette above a point of the wall: flat, gable, stepped gable or mansard."""
    kind, rise, height = (houses[name][building] for name in ("roof", "roof_m", "height"))
    from_end = (
        np.minimum(along, width - along) / np.maximum(width, 1e-3) * 2
    )  # 0 at the ends, 1 in the middle
    shape = np.select(
        [kind == GABLE, kind == STEPPED, kind == MANSARD],
        [from_end, np.floor(from_end * 4) / 3, np.minimum(from_end * 4, 1)],
        0.0,
    )
    return np.asarray(height + np.where(front, np.clip(shape, 0, 1), 0.3) * rise, dtype=np.float32)
