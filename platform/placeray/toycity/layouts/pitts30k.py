"""Pitts30k in the form of datasets_vg: `pitts30k/images/{train,val,test}/{database,queries}/@...jpg`.

The tile number is (pitch - 1) * 24 + yaw - 1, so 12 to 23 never occur; heading and time are empty. Source:
`gmberton/VPR-datasets-downloader:format_pitts30k.py`.
"""

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.layouts.at_names import at_name
from placeray.toycity.layouts.panoramas import SPLITS, Tile, split_tiles
from placeray.toycity.plan import LayoutPlan

DISTRICT = 40


def plan_pitts30k(config: ToyCityConfig) -> LayoutPlan:
    """The three splits."""
    plan = LayoutPlan("pitts30k")
    sizes = config.pitts30k
    if not sizes.places:
        return plan
    for split in SPLITS:
        tiles = split_tiles(config, sizes, DISTRICT, 0.0, split)
        for tile in tiles:
            role = "queries" if tile.is_query else "database"
            plan.photos.append(tile.photo.task(config, f"pitts30k/images/{split}/{role}/{_name(tile)}"))
        plan.read[split] = len(tiles)
        plan.places[split] = sizes.places if split == "train" else sizes.held_out_places
    if config.faults:
        _plant(plan, config)
    return plan


def _name(tile: Tile) -> str:
    photo = tile.photo
    return at_name(
        east_m=photo.east_m,
        north_m=photo.north_m,
        zone=photo.place.district.zone,
        lat=photo.lat,
        lon=photo.lon,
        panorama=f"{tile.panorama:06d}",
        tile=f"{(tile.pitch - 1) * 24 + tile.yaw - 1:02d}",
        note=f"pitch{tile.pitch}_yaw{tile.yaw}",
    )


def _plant(plan: LayoutPlan, config: ToyCityConfig) -> None:
    """A name without fields, and a photo cut short, in the train database."""
    first, second = (tile for tile in split_tiles(config, config.pitts30k, DISTRICT, 0.0, "train")[:2])
    path = f"pitts30k/images/train/database/@{first.photo.east_m:010.2f}.jpg"
    plan.photos.append(first.photo.task(config, path))
    plan.add_fault("train", path, "too_few_fields", "bad_name")
    fields = _name(second).split("@")
    fields[7] = "299999"
    path = f"pitts30k/images/train/database/{'@'.join(fields)}"
    plan.photos.append(second.photo.task(config, path, damage="truncated"))
    plan.add_fault("train", path, "truncated_jpeg", "decode_error")
    plan.read["train"] += 2
