"""Panoramas of Pittsburgh, cut into tiles: what both forms of Pitts30k show.

A panorama is one moment at one spot; its tiles look every 30 degrees of yaw, at two pitches. Yaw counts from
the panorama, not from north: here yaw 1 looks to PANORAMA_NORTH_DEG.
"""

from dataclasses import dataclass, replace

from placeray.toycity.config import PittsConfig, ToyCityConfig
from placeray.toycity.districts import PITTS_TOWN, Cells, Place, cell_places, open_district
from placeray.toycity.photos import Photo, aim_photo, locate, num_photos, place_rng, take_photo

RULE = Cells(cell_m=15, stride=3)
PANORAMA_NORTH_DEG = 15.0
TILT_DEG = {1: 5.0, 2: 19.0}
FOV_DEG = 62.0
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Tile:
    """One view out of a panorama."""

    photo: Photo
    panorama: int
    pitch: int  # 1 or 2
    yaw: int  # 1..12
    is_query: bool

    @property
    def stem(self) -> str:
        """The raw name without folder and extension."""
        return f"{self.panorama:06d}_pitch{self.pitch}_yaw{self.yaw}"


def split_tiles(
    config: ToyCityConfig, sizes: PittsConfig, district: int, shift_m: float, split: str
) -> list[Tile]:
    """The tiles of one split; splits lie in different streets. The last panorama of a place is its query."""
    number = SPLITS.index(split)
    town = open_district(config.seed, district, PITTS_TOWN, shift_m=shift_m)
    count = sizes.places if split == "train" else sizes.held_out_places
    groups = list(range(sizes.groups if split == "train" else 1))
    places = cell_places(town, count, RULE, groups, first_street=number * 100_000, compass=_to_compass)
    tiles: list[Tile] = []
    panorama = number * 300_000
    for place in places:
        views = place_tiles(config, place, panorama)
        tiles += views
        panorama = views[-1].panorama + 1
    located = locate([tile.photo for tile in tiles])
    return [replace(tile, photo=photo) for tile, photo in zip(tiles, located, strict=True)]


def place_tiles(config: ToyCityConfig, place: Place, first_panorama: int) -> list[Tile]:
    """Two neighbouring tiles of each of the place's panoramas; both lie in the place's heading bin."""
    rng = place_rng(place, 33, 0)
    count = max(2, (num_photos(config, place) + 1) // 2)
    tiles = []
    for index in range(count):
        photo = take_photo(config, place, index, fov_deg=FOV_DEG)
        for half in (-15.0, 15.0):
            heading = place.view_deg + half
            pitch = 2 if rng.random() < 0.15 else 1
            view = aim_photo(photo, heading, tilt_deg=TILT_DEG[pitch])
            yaw = round((heading - PANORAMA_NORTH_DEG) % 360 / 30) % 12 + 1
            tiles.append(Tile(view, first_panorama + index, pitch, yaw, is_query=index == count - 1))
    return tiles


def _to_compass(heading_deg: float) -> float:
    """The middle of a bin of (tile mod 12) * 30, headings 0 and 30 in the first, as a compass heading."""
    return (heading_deg - 15.0 + PANORAMA_NORTH_DEG) % 360
