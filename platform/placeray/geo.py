"""Positions on the earth: WGS84 degrees, UTM metres and zones, distances. All functions take and give
arrays.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyproj

Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.str_]

EARTH_RADIUS_M = 6_371_008.8
# A circle's rim is this wide and belongs to it: distances computed in two ways differ by less.
RIM_M = 1e-6
_BANDS = np.array(list("CDEFGHJKLMNPQRSTUVWX"))  # 8 degrees each from -80, X is 12 degrees high


class Utm(NamedTuple):
    """Positions in metres; `zone` is the zone number and latitude band of each, such as 10S."""

    east: Floats
    north: Floats
    zone: Texts


def utm_zone(lat: npt.ArrayLike, lon: npt.ArrayLike) -> Texts:
    """Zone number and latitude band of positions in degrees, with the exceptions of Norway and Svalbard.

    Latitudes beyond the UTM range [-80, 84] take the outermost band. Longitudes may be given in any turn.
    """
    lat, lon = np.broadcast_arrays(np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64))
    lon = np.mod(lon + 180.0, 360.0) - 180.0
    number = np.minimum(np.floor((lon + 180.0) / 6.0).astype(np.int64) + 1, 60)
    number = np.where((lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12), 32, number)
    svalbard = (lat >= 72) & (lat <= 84) & (lon >= 0) & (lon < 42)
    number = np.where(
        svalbard, np.array([31, 33, 35, 37])[np.searchsorted([9, 21, 33], lon, side="right")], number
    )
    band = _BANDS[np.clip(np.floor((lat + 80.0) / 8.0).astype(np.int64), 0, len(_BANDS) - 1)]
    return np.char.add(number.astype(np.str_), band)


def zone_key(zone: npt.ArrayLike) -> Texts:
    """Zone number and hemisphere (`10n`, `56s`): what makes east/north unambiguous.

    Bands only name a latitude; east and north run on from band to band, so a cell must not end at a band.
    """
    zone = np.asarray(zone, dtype=np.str_)
    band = np.array([text[-1:] for text in zone.ravel()], dtype=np.str_).reshape(zone.shape)
    number = np.array([text[:-1].zfill(2) for text in zone.ravel()], dtype=np.str_).reshape(zone.shape)
    return np.char.add(number, np.where(band >= "N", "n", "s"))


def to_utm(lat: npt.ArrayLike, lon: npt.ArrayLike, zone: npt.ArrayLike | None = None) -> Utm:
    """Degrees to UTM metres, each position in its own zone or in the zones given (one, or one per
    position).
    """
    lat, lon = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
    zones = (
        utm_zone(lat, lon) if zone is None else np.broadcast_to(np.asarray(zone, dtype=np.str_), lat.shape)
    )
    east, north = np.full(lat.shape, np.nan), np.full(lat.shape, np.nan)
    for projection, rows in _by_projection(zones):
        east[rows], north[rows] = projection(lon[rows], lat[rows])
    return Utm(east, north, np.asarray(zones))


def from_utm(east: npt.ArrayLike, north: npt.ArrayLike, zone: npt.ArrayLike) -> tuple[Floats, Floats]:
    """UTM metres in zones such as 10S (one, or one per position) to (lat, lon) in degrees."""
    east, north = np.asarray(east, dtype=np.float64), np.asarray(north, dtype=np.float64)
    zones = np.broadcast_to(np.asarray(zone, dtype=np.str_), east.shape)
    lat, lon = np.full(east.shape, np.nan), np.full(east.shape, np.nan)
    for projection, rows in _by_projection(zones):
        lon[rows], lat[rows] = projection(east[rows], north[rows], inverse=True)
    return lat, lon


def distance_m(lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike) -> Floats:
    """Great-circle distance in metres on a sphere (haversine; within 0.6 % of the ellipsoid)."""
    lat1, lon1, lat2, lon2 = (
        np.radians(np.asarray(value, dtype=np.float64)) for value in (lat1, lon1, lat2, lon2)
    )
    half = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0))))


def earth_points(lat: npt.ArrayLike, lon: npt.ArrayLike) -> Floats:
    """(n, 3) metres from the earth's centre (ECEF) of positions at height 0 on the WGS84 ellipsoid.

    One frame for the whole earth: neighbours across a zone border or the antimeridian are neighbours here.
    """
    semi_major_m, eccentricity_squared = 6_378_137.0, 6.69437999014e-3
    phi, theta = np.radians(np.asarray(lat, dtype=np.float64)), np.radians(np.asarray(lon, dtype=np.float64))
    normal = semi_major_m / np.sqrt(1 - eccentricity_squared * np.sin(phi) ** 2)
    return np.stack(
        [
            normal * np.cos(phi) * np.cos(theta),
            normal * np.cos(phi) * np.sin(theta),
            normal * (1 - eccentricity_squared) * np.sin(phi),
        ],
        axis=-1,
    )


def _by_projection(zones: Texts) -> list[tuple["pyproj.Proj", npt.NDArray[np.bool_]]]:
    """One projection per zone number and hemisphere, with the mask of its positions."""
    import pyproj  # here, because most that load this file project nothing

    found: dict[tuple[int, bool], npt.NDArray[np.bool_]] = {}
    for text in np.unique(zones):
        if text:  # the empty zone stands for "no position"
            key = (int(text[:-1]), bool(text[-1] < "N"))
            rows = zones == text
            found[key] = found[key] | rows if key in found else rows
    return [
        (pyproj.Proj(proj="utm", zone=number, south=south, ellps="WGS84"), rows)
        for (number, south), rows in sorted(found.items())
    ]
