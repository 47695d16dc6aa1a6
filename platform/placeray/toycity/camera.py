"""The camera: where a photo is taken, and how a point of the street comes to a pixel.

Street frame, in metres: x along the street, y to the right of it, z up; the ground is z = 0. Headings are
degrees clockwise from x. The camera is kept level (a tilt shifts the horizon, as a shift lens does), so
upright edges stay upright in the picture and one image column looks at one vertical strip of the world: a ray
is cast per column, not per pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.hashing import Floats


@dataclass(frozen=True)
class Pose:
    """Where the camera stands and looks, in the frame of its street."""

    x_m: float
    y_m: float
    eye_m: float
    heading_deg: float  # of the image centre, clockwise from the direction of the street
    fov_deg: float  # horizontal
    tilt_deg: float  # up is positive


@dataclass(frozen=True)
class View:
    """A pose with an image size: everything that projection needs.

    A pixel's world point is `(x, y) + depth * (ray_x, ray_y)[column]`, `eye + depth * slope[row]`, with depth
    measured along the optical axis.
    """

    pose: Pose
    width_px: int
    height_px: int
    focal_px: float
    horizon_row: float
    ray_x: Floats  # (W,)
    ray_y: Floats  # (W,)
    slope: Floats  # (H,)


def look(pose: Pose, width_px: int, height_px: int) -> View:
    """Lay out the rays of a photo."""
    focal = width_px / 2 / math.tan(math.radians(pose.fov_deg) / 2)
    horizon = height_px / 2 + focal * math.tan(math.radians(pose.tilt_deg))
    heading = math.radians(pose.heading_deg)
    across = (np.arange(width_px, dtype=np.float32) + 0.5 - width_px / 2) / focal
    return View(
        pose=pose,
        width_px=width_px,
        height_px=height_px,
        focal_px=focal,
        horizon_row=horizon,
        ray_x=_never_zero(math.cos(heading) - across * math.sin(heading)),
        ray_y=_never_zero(math.sin(heading) + across * math.cos(heading)),
        slope=((horizon - (np.arange(height_px) + 0.5)) / focal).astype(np.float32),
    )


def project(view: View, x: float, y: float, z: float) -> tuple[float, float, float]:
    """The (column, row, depth) of a world point; column and row count from pixel centres, depth in metres.

    A depth of zero or less lies behind the camera.
    """
    heading = math.radians(view.pose.heading_deg)
    east, north = x - view.pose.x_m, y - view.pose.y_m
    depth = east * math.cos(heading) + north * math.sin(heading)
    across = -east * math.sin(heading) + north * math.cos(heading)
    safe = depth if abs(depth) > 1e-6 else 1e-6
    column = view.width_px / 2 + view.focal_px * across / safe - 0.5
    row = view.horizon_row - view.focal_px * (z - view.pose.eye_m) / safe - 0.5
    return column, row, depth


def _never_zero(values: NDArray[np.floating]) -> Floats:
    """Rays exactly parallel to a wall would divide by zero; turn them by a millionth."""
    small = np.abs(values) < 1e-6
    return np.where(small, 1e-6, values).astype(np.float32)
