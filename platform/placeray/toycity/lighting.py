"""Light on walls: the sky, the sun by its angle, and the shadow of the houses across the street."""

import math

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.camera import View
from placeray.toycity.conditions import Conditions
from placeray.toycity.hashing import Floats
from placeray.toycity.raycast import Walls
from placeray.toycity.street import Street


def wall_light(
    street: Street,
    view: View,
    walls: Walls,
    columns: NDArray[np.intp],
    z: Floats,
    now: Conditions,
    bearing_deg: float,
) -> Floats:
    """Light on the walls of a layer, (3, h or 1, w)."""
    azimuth = math.radians(now.sun_azimuth_deg - bearing_deg)
    flat = math.cos(math.radians(now.sun_height_deg))
    sun_x, sun_y, sun_z = (
        flat * math.cos(azimuth),
        flat * math.sin(azimuth),
        math.sin(math.radians(now.sun_height_deg)),
    )
    front, facing = walls.front[columns], walls.facing[columns]
    angle = np.clip(np.where(front, facing * sun_y, facing * sun_x), 0, 1).astype(np.float32)
    # Side walls and the walls of narrow alleys get less of the sky.
    ambient = now.ambient[:, None, None] * np.where(front, np.float32(1.0), np.float32(0.75))
    if not angle.any() or float(now.sun.max()) <= 0.06:
        return ambient + now.sun[:, None, None] * angle
    lit = _sun_reaches(street, view, walls, columns, z, sun_x, sun_y, sun_z)
    return ambient + now.sun[:, None, None] * (angle * lit)


def _sun_reaches(
    street: Street,
    view: View,
    walls: Walls,
    columns: NDArray[np.intp],
    z: Floats,
    sun_x: float,
    sun_y: float,
    sun_z: float,
) -> Floats:
    """1 where the sun clears the houses across the street, 0 in their shadow; (h, w)."""
    reach = walls.depth[columns]
    x = view.pose.x_m + reach * view.ray_x[columns]
    y = view.pose.y_m + reach * view.ray_y[columns]
    side = 1 if sun_y > 0 else 0
    row_y = 11.0 if sun_y > 0 else -11.0
    travel = np.clip((row_y - y) / (sun_y if abs(sun_y) > 0.02 else 0.02), 0, 80)
    house = np.clip(np.searchsorted(street.row_starts[side], x + sun_x * travel) - 1, 0, None)
    shadow_top = street.row_heights[side][house] - travel * sun_z
    return np.clip((z - shadow_top.astype(np.float32)) * 2, 0, 1)
