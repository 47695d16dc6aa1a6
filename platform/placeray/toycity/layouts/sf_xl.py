"""SF-XL: '@' names in folders of latitude below `processed/train`, and the list of paths next to that folder.

The heading of a crop is that of its leftmost column and counts from north over west (README of SF-XL), so a
place's heading bin is a bin of that number, not of the compass. Crops are 512 of the 3328 columns of a
panorama.
"""

import string

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import SF_XL_TOWN, Cells, cell_places, open_district
from placeray.toycity.layouts.at_names import at_name
from placeray.toycity.photos import FAULTY, Damage, Photo, locate, photo_id, take_all, take_photo
from placeray.toycity.plan import KEPT, LayoutPlan

DISTRICT = 30
RULE = Cells(cell_m=10, stride=5)
OTHER_GROUPS = [5, 7]
CROP_FOV_DEG = 512 / 3328 * 360
FOLDER = "sf_xl/processed/train"
LIST = "sf_xl/processed/train_images_paths.txt"
LETTERS = string.ascii_letters + string.digits + "-_"


def plan_sf_xl(config: ToyCityConfig) -> LayoutPlan:
    """Places of group 0, the only one the unified protocol uses, and some of other groups."""
    plan = LayoutPlan("sf_xl")
    sizes = config.sf_xl
    if not sizes.places:
        return plan
    district = open_district(config.seed, DISTRICT, SF_XL_TOWN)
    places = cell_places(district, sizes.places, RULE, [0], compass=_to_compass)
    others = cell_places(
        district, sizes.other_places, RULE, OTHER_GROUPS, first_street=10_000, compass=_to_compass
    )
    for photo in locate(take_all(config, places + others, fov_deg=CROP_FOV_DEG)):
        plan.photos.append(photo.task(config, f"{FOLDER}/{_name(photo)}", square=True))
    listed = [task.path for task in plan.photos]
    if config.faults:
        for index, fault in enumerate(_FAULTS):
            if fault[0] == "listed_but_missing" and not sizes.paths_list:
                continue
            photo = take_photo(config, places[index % len(places)], FAULTY + index, fov_deg=CROP_FOV_DEG)
            listed.append(_plant(plan, config, locate([photo])[0], len(listed), *fault))
    if sizes.paths_list:
        plan.files[LIST] = "".join(path.removeprefix(FOLDER + "/") + "\n" for path in listed).encode()
    plan.read["train"] = len(listed)
    plan.places["train"] = len(places)
    return plan


def _to_compass(heading_deg: float) -> float:
    """Compass heading of the image centre from SF-XL's heading; the same function turns it back."""
    return (CROP_FOV_DEG / 2 - heading_deg) % 360


def _name(photo: Photo, heading_format: str = "03d") -> str:
    name = at_name(
        east_m=photo.east_m,
        north_m=photo.north_m,
        zone=photo.place.district.zone,
        lat=photo.lat,
        lon=photo.lon,
        panorama=photo_id(photo, 42, LETTERS, 22),
        heading=format(round(_to_compass(photo.heading_deg)) % 360, heading_format),
        captured=f"{photo.shot.year}{photo.shot.month:02d}",
    )
    return f"{photo.lat:.2f}/{name}"


_FAULTS: tuple[tuple[str, str], ...] = (
    ("empty_file", "decode_error"),
    ("not_an_image", "decode_error"),
    ("too_few_fields", "bad_name"),
    ("listed_but_missing", "missing_file"),
    ("heading_without_padding", KEPT),
    ("panoid_digits_leading_zeros", KEPT),
)
_DAMAGE: dict[str, Damage] = {"empty_file": "empty", "not_an_image": "no_image"}


def _plant(plan: LayoutPlan, config: ToyCityConfig, photo: Photo, row: int, fault: str, expected: str) -> str:
    """Add the photo of one fault; returns the path that the list names."""
    name = _name(photo, "d" if fault == "heading_without_padding" else "03d")
    if fault == "too_few_fields":
        folder, _, base = name.partition("/")
        name = f"{folder}/{'@'.join(base.split('@')[:2])}.jpg"
    elif fault == "panoid_digits_leading_zeros":
        name = name.replace(photo_id(photo, 42, LETTERS, 22), "0007654321")
    path = f"{FOLDER}/{name}"
    if fault != "listed_but_missing":
        plan.photos.append(photo.task(config, path, square=True, damage=_DAMAGE.get(fault, "")))
    plan.add_fault("train", path, fault, expected, LIST if config.sf_xl.paths_list else None, row)
    return path
