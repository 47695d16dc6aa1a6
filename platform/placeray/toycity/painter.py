"""Draws one photo: a street, a pose and conditions become pixels and JPEG bytes.

From far to near: sky, ground, walls (three layers, farthest first), trees, traffic; then light, haze and the
camera. Everything is a pure function of its arguments, so any process may draw any photo.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from placeray.toycity.camera import Pose, View, look
from placeray.toycity.conditions import Conditions
from placeray.toycity.facade import Lamps, Patch, paint_facade
from placeray.toycity.hashing import Floats
from placeray.toycity.objects import draw_traffic, draw_trees
from placeray.toycity.raycast import NOTHING_M, Walls, cast
from placeray.toycity.street import Street
from placeray.toycity.surroundings import paint_ground, paint_sky


def paint(
    street: Street, pose: Pose, now: Conditions, width_px: int, height_px: int, bearing_deg: float
) -> NDArray[np.uint8]:
    """The photo as (H, W, 3) uint8 RGB; `bearing_deg` is the street's direction, clockwise from north."""
    view = look(pose, width_px, height_px)
    photo = paint_sky(view, now)
    depth = np.full((height_px, width_px), NOTHING_M, dtype=np.float32)
    flat_light = now.ambient + now.sun * np.float32(0.55)
    ground, ground_depth, first = paint_ground(view, street, now)
    photo[:, first:] = ground * flat_light[:, None, None]
    depth[first:] = ground_depth
    for walls in reversed(cast(street, view)):
        _paint_walls(photo, depth, view, street, walls, now, bearing_deg)
    draw_trees(photo, depth, view, street, now, flat_light)
    draw_traffic(photo, depth, view, street, now, flat_light)
    _add_haze(photo, depth, now)
    return _expose(photo, now)


def encode_jpeg(photo: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an (H, W, 3) photo."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _paint_walls(
    photo: Floats,
    depth: Floats,
    view: View,
    street: Street,
    walls: Walls,
    now: Conditions,
    bearing_deg: float,
) -> None:
    """Paint one layer of walls over what lies behind it."""
    columns = np.flatnonzero(walls.depth < NOTHING_M)
    if not columns.size:
        return
    # Rows that any wall of this layer can reach; others cost nothing.
    reach = walls.depth[columns]
    highest = float(((walls.top[columns] - view.pose.eye_m) / reach).max())
    lowest = float((-view.pose.eye_m / reach).min())
    rows = np.flatnonzero((view.slope <= highest) & (view.slope >= lowest))
    if not rows.size:
        return
    window = slice(int(rows[0]), int(rows[-1]) + 1)
    z = view.pose.eye_m + view.slope[window, None] * reach
    below_top = walls.top[columns] - z
    visible = (below_top > 0) & (z > 0) & (reach < depth[window][:, columns] + 1e-3)
    visible |= (below_top > 0) & (z > 0)
    patch = Patch(
        house=street.buildings[walls.building[columns]],
        along=walls.along[columns],
        width=walls.width[columns],
        per_column=walls.per_column[columns],
        per_row=reach / view.focal_px,
        front=walls.front[columns],
        z=z,
        below_top=below_top,
    )
    colour, glow = paint_facade(patch, Lamps(now.night, now.seed))
    if now.snow > 0:
        colour += (below_top < 0.35) * now.snow * (np.float32(0.95) - colour)
    colour *= _wall_light(street, view, walls, columns, z, now, bearing_deg)
    colour += glow
    area = photo[:, window][:, :, columns]
    photo[:, window, columns[0] : columns[-1] + 1] = _merge(photo[:, window], colour, visible, columns)
    del area
    part = depth[window]
    part[:, columns] = np.where(visible, reach, part[:, columns])


def _merge(behind: Floats, colour: Floats, visible: NDArray[np.bool_], columns: NDArray[np.intp]) -> Floats:
    """The columns' span of `behind` (3, h, W) with `colour` (3, h, w) laid over it where visible."""
    span = behind[:, :, columns[0] : columns[-1] + 1]
    if len(columns) == span.shape[2]:
        return np.where(visible, colour, span)
    result = span.copy()
    inside = columns - columns[0]
    result[:, :, inside] = np.where(visible, colour, span[:, :, inside])
    return result


def _wall_light(
    street: Street,
    view: View,
    walls: Walls,
    columns: NDArray[np.intp],
    z: Floats,
    now: Conditions,
    bearing_deg: float,
) -> Floats:
    """Light on the walls of a layer, (3, h or 1, w): ambient, sun by angle, and the shadow of the other side."""
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


def _add_haze(photo: Floats, depth: Floats, now: Conditions) -> None:
    """Far things take the colour of the low sky; the sky itself is left alone."""
    share = 1 - np.exp(depth * np.float32(-1 / now.haze_m))
    share *= depth < NOTHING_M
    photo += (now.sky_low[:, None, None] - photo) * share


def _expose(photo: Floats, now: Conditions) -> NDArray[np.uint8]:
    """The camera: blur, vignetting, gain per channel, tone curve, noise, 8 bits."""
    height, width = photo.shape[1:]
    if now.blur > 0.05:
        side = np.float32(now.blur / 3)
        padded = np.pad(photo, ((0, 0), (1, 1), (0, 0)), mode="edge")
        photo = padded[:, 1:-1] * (1 - 2 * side) + (padded[:, :-2] + padded[:, 2:]) * side
        padded = np.pad(photo, ((0, 0), (0, 0), (1, 1)), mode="edge")
        photo = padded[:, :, 1:-1] * (1 - 2 * side) + (padded[:, :, :-2] + padded[:, :, 2:]) * side
    up = ((np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1) ** 2
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1) ** 2
    falloff = 1 - np.float32(now.vignette / 2) * (up[:, None] + across)
    photo = photo * (falloff * now.gain[:, None, None])
    # A soft shoulder keeps bright signs from becoming white holes.
    photo = np.clip(photo, 0, None)
    photo = photo * (1 + photo * 0.2) / (1 + photo * 0.65) * np.float32(1.25)
    photo **= np.float32(now.gamma)
    rng = np.random.default_rng([now.seed, 3])
    photo += rng.standard_normal(photo.shape, dtype=np.float32) * np.float32(now.noise)
    np.clip(photo, 0, 1, out=photo)
    photo *= 255
    photo += np.float32(0.5)
    return np.ascontiguousarray(photo.astype(np.uint8).transpose(1, 2, 0))
