"""Sky, road and pavement: everything of a photo that is no wall and does not stand in the way."""

import math

import numpy as np

from placeray.toycity.camera import View
from placeray.toycity.conditions import Conditions
from placeray.toycity.hashing import Floats, hash_cells, smooth_noise, unit
from placeray.toycity.street import Street

HORIZON_ROWS = 0.75  # rows this close under the horizon show ground too far away to matter


def paint_sky(view: View, now: Conditions) -> Floats:
    """A gradient from the horizon up, with clouds; (3, H, W)."""
    height = np.clip(view.slope / 0.7, 0, 1) ** 0.7
    column = now.sky_low[:, None] + (now.sky_top - now.sky_low)[:, None] * height
    sky = np.repeat(column[:, :, None], view.width_px, axis=2).astype(np.float32)
    if now.clouds > 0:
        across = np.arange(view.width_px, dtype=np.float32) / view.focal_px * 3 + view.pose.heading_deg / 20
        rows = np.flatnonzero(view.slope > 0)
        if rows.size:
            up = view.slope[rows][:, None] * 6
            cover = smooth_noise(
                np.broadcast_to(across, (rows.size, view.width_px)), up + across * 0, now.seed & 0xFFFF
            )
            sky[:, : rows.size] += np.clip(cover - 0.45, 0, 1) * (now.clouds * 1.5)
    return sky


def paint_ground(view: View, street: Street, now: Conditions) -> tuple[Floats, Floats, int]:
    """Road with markings, kerbs, pavement, puddles and snow.

    Returns the colour (3, h, W) of the rows from the horizon down, their depth (h, 1) in metres, and the first
    of these rows.
    """
    first = max(0, min(view.height_px, math.ceil(view.horizon_row - 0.5 + HORIZON_ROWS)))
    depth = (-view.pose.eye_m / view.slope[first:])[:, None].astype(np.float32)
    x = view.pose.x_m + depth * view.ray_x
    y = view.pose.y_m + depth * view.ray_y
    away = np.abs(y)
    pixel = depth / view.focal_px
    road = np.clip((street.kerb_m - away) / pixel + 0.5, 0, 1)
    grain = unit(
        hash_cells(np.floor(x * 2).astype(np.int32), np.floor(y * 2).astype(np.int32), street.key.number)
    )
    grain *= np.clip(0.25 / pixel, 0, 1) * 0.12
    shade = 0.55 - road * 0.33 + grain
    stripe = (away < 0.09) & (np.mod(x, 6.0) < 3.0) | (np.abs(away - street.kerb_m + 0.1) < 0.1)
    shade += stripe * np.clip(0.1 / pixel, 0, 1) * 0.4
    if now.wet > 0:
        shade *= 1 - 0.45 * now.wet * (smooth_noise(x * 0.5, y * 0.5, now.seed & 0xFFFF) > 0.4)
    ground = np.stack([shade * 1.02, shade, shade * 0.98])
    if now.snow > 0:
        cover = np.clip(now.snow * (1.15 - 0.75 * road) + grain, 0, 1)
        ground += cover * (np.float32(0.95) - ground)
    return ground.astype(np.float32), depth, first
