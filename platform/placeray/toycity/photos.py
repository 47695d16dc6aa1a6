"""One photo to be drawn: pose, moment and file, all decided before the first pixel is.

Plans are cheap and made in one process; photos are drawn from them anywhere, in any order, with the same
bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from placeray import geo
from placeray.toycity.camera import Pose
from placeray.toycity.conditions import Shot, draw_shot
from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import Place
from placeray.toycity.street import StreetKey

Damage = Literal["", "truncated", "empty", "no_image"]
FAULTY = 200  # photos with this index and above are those faults are planted in
FOCUS_M = 14.0  # photos of a place aim at about the same point, as far as their heading bin allows


@dataclass(frozen=True)
class PhotoTask:
    """Everything a process needs to draw and write one photo."""

    path: str  # relative to the root of the city
    street: StreetKey
    bearing_deg: float
    pose: Pose
    shot: Shot
    width_px: int
    height_px: int
    damage: Damage = ""


@dataclass(frozen=True)
class Photo:
    """A photo of a place before it has a name: what its layout writes down about it."""

    place: Place
    east_m: float
    north_m: float
    heading_deg: float  # of the image centre, clockwise from north
    pose: Pose
    shot: Shot
    lat: float = math.nan  # filled by `locate`
    lon: float = math.nan

    def task(
        self, config: ToyCityConfig, path: str, *, square: bool = False, damage: Damage = ""
    ) -> PhotoTask:
        """The order to draw this photo into a file."""
        return PhotoTask(
            path=path,
            street=self.place.street,
            bearing_deg=self.place.district.bearing_deg,
            pose=self.pose,
            shot=self.shot,
            width_px=config.height_px if square else config.width_px,
            height_px=config.height_px,
            damage=damage,
        )


def take_photo(config: ToyCityConfig, place: Place, index: int, fov_deg: float | None = None) -> Photo:
    """The `index`-th photo of a place; the same arguments give the same photo."""
    rng = place_rng(place, 31, index)
    looseness = config.difficulty.viewpoint
    along = float(rng.uniform(-1, 1)) * min(place.step_m, 5.0) * looseness
    across = float(rng.uniform(-1, 1)) * 2.5 * looseness
    ahead = math.radians(place.view_deg - place.district.bearing_deg)
    aim = math.degrees(math.atan2(FOCUS_M * math.sin(ahead) - across, FOCUS_M * math.cos(ahead) - along))
    turn = _wrap(aim - math.degrees(ahead)) + float(rng.normal(0, 7.0)) * looseness
    heading = place.view_deg + float(np.clip(turn, -place.turn_deg, place.turn_deg))
    fov = float(70 + rng.uniform(-11, 11) * looseness) if fov_deg is None else fov_deg
    shot = draw_shot(rng, config.difficulty, place.district.south)
    photo = Photo(place, 0.0, 0.0, 0.0, Pose(place.x_m + along, across, 0.0, 0.0, fov, 0.0), shot)
    eye, tilt = float(rng.uniform(1.6, 2.6)), float(rng.uniform(3, 10))
    return aim_photo(photo, heading, eye_m=eye, tilt_deg=tilt)


def aim_photo(
    photo: Photo, heading_deg: float, *, eye_m: float | None = None, tilt_deg: float | None = None
) -> Photo:
    """The same photo with the camera turned to a compass heading."""
    heading = heading_deg % 360
    pose = replace(
        photo.pose,
        heading_deg=_wrap(heading - photo.place.district.bearing_deg),
        eye_m=photo.pose.eye_m if eye_m is None else eye_m,
        tilt_deg=photo.pose.tilt_deg if tilt_deg is None else tilt_deg,
    )
    east, north = photo.place.to_utm(pose.x_m, pose.y_m)
    return replace(photo, pose=pose, heading_deg=heading, east_m=east, north_m=north)


def locate(photos: Sequence[Photo]) -> list[Photo]:
    """The photos with latitude and longitude filled in; one call for many, as projections are slow to set up."""
    if not photos:
        return []
    zones = np.array([photo.place.district.zone for photo in photos])
    lat, lon = geo.from_utm([photo.east_m for photo in photos], [photo.north_m for photo in photos], zones)
    return [replace(photo, lat=float(y), lon=float(x)) for photo, y, x in zip(photos, lat, lon, strict=True)]


def num_photos(config: ToyCityConfig, place: Place) -> int:
    """How many photos a training place has."""
    low, high = config.photos_per_place
    return int(place_rng(place, 32, 0).integers(low, high + 1))


def take_all(config: ToyCityConfig, places: list[Place], fov_deg: float | None = None) -> list[Photo]:
    """All photos of training places, place by place."""
    return [
        take_photo(config, place, index, fov_deg)
        for place in places
        for index in range(num_photos(config, place))
    ]


def place_rng(place: Place, purpose: int, index: int) -> np.random.Generator:
    """The random numbers of one place, photo and purpose, apart from all others."""
    return np.random.default_rng(
        [place.district.seed, purpose, place.district.number, place.street.number, place.number, index]
    )


def photo_id(photo: Photo, purpose: int, letters: str, length: int) -> str:
    """A made-up key, such as a panorama id of 22 letters, digits, '-' and '_'."""
    rng = np.random.default_rng([photo.shot.seed, purpose])
    return "".join(letters[index] for index in rng.integers(0, len(letters), length))


def _wrap(degrees: float) -> float:
    return (degrees + 180) % 360 - 180
