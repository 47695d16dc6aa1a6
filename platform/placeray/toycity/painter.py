"""Draws one photo: a street, a pose and conditions become pixels and JPEG bytes.

From far to near: sky, ground, walls (the farthest layer first), trees, traffic; then haze and the camera.
Everything is a pure function of its arguments, so any process may draw any photo.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from placeray.toycity.camera import Pose, View, look
from placeray.toycity.conditions import Conditions
from placeray.toycity.exposure import expose
from placeray.toycity.facade import Lamps, Patch, paint_facade
from placeray.toycity.hashing import Floats
from placeray.toycity.lighting import wall_light
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
    for walls, columns in reversed(_visible_columns(cast(street, view), view)):
        _paint_walls(photo, depth, view, street, walls, columns, now, bearing_deg)
    draw_trees(photo, depth, view, street, now, flat_light)
    draw_traffic(photo, depth, view, street, now, flat_light)
    _add_haze(photo, depth, now)
    return expose(photo, now)


def encode_jpeg(photo: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an (H, W, 3) photo."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _visible_columns(layers: list[Walls], view: View) -> list[tuple[Walls, NDArray[np.intp]]]:
    """Each layer with the columns where it stands out above all nearer ones."""
    skyline = np.full(view.width_px, -np.inf, dtype=np.float32)
    seen = []
    for walls in layers:
        rise = np.where(walls.depth < NOTHING_M, (walls.top - view.pose.eye_m) / walls.depth, -np.inf)
        columns = np.flatnonzero(rise > skyline)
        if columns.size:
            seen.append((walls, columns))
        skyline = np.maximum(skyline, rise)
    return seen


def _paint_walls(
    photo: Floats,
    depth: Floats,
    view: View,
    street: Street,
    walls: Walls,
    columns: NDArray[np.intp],
    now: Conditions,
    bearing_deg: float,
) -> None:
    """Paint the given columns of one layer of walls over what lies behind it."""
    reach, top = walls.depth[columns], walls.top[columns]
    # Rows that no wall of this layer reaches cost nothing.
    highest, lowest = ((top - view.pose.eye_m) / reach).max(), (-view.pose.eye_m / reach).min()
    rows = np.flatnonzero((view.slope <= highest) & (view.slope >= lowest))
    if not rows.size:
        return
    window = slice(int(rows[0]), int(rows[-1]) + 1)
    z = view.pose.eye_m + view.slope[window, None] * reach
    below_top = top - z
    visible = (below_top > 0) & (z > 0)
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
    colour *= wall_light(street, view, walls, columns, z, now, bearing_deg)
    if now.night > 0:
        colour += glow
    _lay_over(photo[:, window], colour, visible, columns)
    _lay_over(depth[None, window], np.broadcast_to(reach, (1, *z.shape)), visible, columns)


def _lay_over(behind: Floats, front: Floats, visible: NDArray[np.bool_], columns: NDArray[np.intp]) -> None:
    """Copy the columns (c, h, w) of `front` into `behind` (c, h, W), in place, where visible."""
    whole = columns[-1] + 1 - columns[0] == len(columns)
    where = slice(int(columns[0]), int(columns[-1]) + 1) if whole else columns
    if whole:
        np.copyto(behind[:, :, where], front, where=visible)
    else:
        behind[:, :, where] = np.where(visible, front, behind[:, :, where])


def _add_haze(photo: Floats, depth: Floats, now: Conditions) -> None:
    """Far things take the colour of the low sky; the sky itself is left alone."""
    share = 1 - np.exp(depth * np.float32(-1 / now.haze_m))
    share *= depth < NOTHING_M
    photo += (now.sky_low[:, None, None] - photo) * share
