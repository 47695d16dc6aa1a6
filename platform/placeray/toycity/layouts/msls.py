"""MSLS: `train_val/<city>/{database,query}/images/<key>.jpg` with four CSVs beside the images.

Every CSV begins with an unnamed index column; raw.csv has the longitude before the latitude. Source:
`mapillary/mapillary_sls:mapillary_sls/datasets/msls.py`.
"""

import string
from collections import Counter
from dataclasses import dataclass, replace

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import (
    MSLS_TOWNS,
    Cells,
    District,
    Place,
    cell_places,
    free_places,
    open_district,
)
from placeray.toycity.photos import FAULTY, Damage, Photo, locate, photo_id, take_all, take_photo
from placeray.toycity.plan import KEPT, LayoutPlan

DISTRICT = 50  # and the following numbers, one per known city
RULE = Cells(cell_m=15, stride=3)
LETTERS = string.ascii_letters + string.digits + "-_"
SUBTASKS = ("all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d")
PLACES_PER_SEQUENCE = 8


@dataclass(frozen=True)
class _Row:
    """One photo's entries in the four CSVs."""

    photo: Photo
    key: str
    lat: str
    lon: str
    panorama: bool = False


def plan_msls(config: ToyCityConfig) -> LayoutPlan:
    """Train cities, whose places are cells, and val cities; the faults go into the first train city."""
    plan = LayoutPlan("msls")
    if not config.msls.places_per_city:
        return plan
    for number, city in enumerate(config.msls.train_cities):
        places = cell_places(
            _district(config, city), config.msls.places_per_city, RULE, list(range(config.msls.groups))
        )
        _plan_city(plan, config, city, places, with_faults=config.faults and number == 0)
    for city in config.msls.val_cities:
        places = free_places(_district(config, city), config.msls.places_per_val_city)
        _plan_city(plan, config, city, places, with_faults=False)
    return plan


def _district(config: ToyCityConfig, city: str) -> District:
    return open_district(config.seed, DISTRICT + list(MSLS_TOWNS).index(city), MSLS_TOWNS[city])


def _plan_city(
    plan: LayoutPlan, config: ToyCityConfig, city: str, places: list[Place], with_faults: bool
) -> None:
    roles: dict[str, list[_Row]] = {"database": [], "query": []}
    photos = locate(take_all(config, places))
    for photo, role in zip(photos, _roles(photos), strict=True):
        roles[role].append(_row(photo))
        plan.photos.append(photo.task(config, _path(city, role, roles[role][-1].key)))
    if with_faults:
        for index, fault in enumerate(_FAULTS):
            photo = take_photo(config, places[index % len(places)], FAULTY + index)
            _plant(plan, config, city, roles["query"], locate([photo])[0], *fault)
    for role, rows in roles.items():
        dos = with_faults and role == "query"
        for name, table in _tables(rows, role).items():
            text = "\n".join(table) + "\n"
            # The CRLF file also lacks the newline of its last line, which is a panorama's.
            text = text.replace("\n", "\r\n").removesuffix("\r\n") if dos and name == "raw" else text
            plan.files[f"msls/train_val/{city}/{role}/{name}.csv"] = text.encode()
    plan.read[city] = sum(len(rows) for rows in roles.values())
    plan.places[city] = len(places)


def _roles(photos: list[Photo]) -> list[str]:
    """Three of five photos of each place go to the database, the others are queries."""
    counts = Counter(photo.place.number for photo in photos)
    seen: Counter[int] = Counter()
    roles = []
    for photo in photos:
        number = photo.place.number
        roles.append("database" if seen[number] < max(1, round(counts[number] * 0.6)) else "query")
        seen[number] += 1
    return roles


def _path(city: str, role: str, key: str) -> str:
    return f"msls/train_val/{city}/{role}/images/{key}.jpg"


def _row(photo: Photo) -> _Row:
    return _Row(photo, photo_id(photo, 43, LETTERS, 22), str(round(photo.lat, 9)), str(round(photo.lon, 9)))


def _tables(rows: list[_Row], role: str) -> dict[str, list[str]]:
    """The lines of the four CSVs, header first."""
    lines: dict[str, list[str]] = {
        "raw": [",key,lon,lat,ca,captured_at,pano"],
        "postprocessed": [",key,easting,northing,unique_cluster,control_panel,night,view_direction"],
        "seq_info": [",key,sequence_key,frame_number"],
        "subtask_index": [",key," + ",".join(SUBTASKS)],
    }
    for number, row in enumerate(rows):
        photo, shot = row.photo, row.photo.shot
        date = f"{shot.year}-{shot.month:02d}-{shot.day:02d}"
        sequence = f"{role[0]}{photo.place.number // PLACES_PER_SEQUENCE:021d}"
        lines["raw"].append(
            f"{number},{row.key},{row.lon},{row.lat},{round(photo.heading_deg, 4)},{date},{row.panorama}"
        )
        lines["postprocessed"].append(
            f"{number},{row.key},{photo.east_m},{photo.north_m},{photo.place.number},False,{shot.night},{_direction(photo)}"
        )
        lines["seq_info"].append(f"{number},{row.key},{sequence},{number}")
        lines["subtask_index"].append(
            f"{number},{row.key}," + ",".join(str(flag) for flag in _subtasks(photo, role))
        )
    return lines


def _direction(photo: Photo) -> str:
    """How the photo looks out of a car that drives along the street."""
    turn = abs(photo.pose.heading_deg)
    return "Forward" if turn < 45 else "Backward" if turn > 135 else "Sideways"


def _subtasks(photo: Photo, role: str) -> list[bool]:
    """Membership by season, age and light: the first letter of a pair is the map's, the last the query's."""
    shot = photo.shot
    first = {
        "s": shot.season in (0, 1),
        "w": shot.season in (2, 3),
        "o": shot.year < 2018,
        "n": shot.year >= 2018,
    }
    flags = [True]
    for name in SUBTASKS[1:]:
        letter = name[-1] if role == "query" else name[0]
        by_light = {"d": not shot.night, "n": shot.night}
        flags.append((by_light if "d" in name else first)[letter])
    return flags


# The panorama comes last, so that its row is the last line of raw.csv.
_FAULTS = (
    ("missing_file", "missing_file"),
    ("empty_position", "no_position"),
    ("not_an_image", "decode_error"),
    ("truncated_jpeg", "decode_error"),
    ("crlf_line_ends", KEPT),
    ("panorama", "panorama"),
    ("panorama_on_last_line_without_newline", "panorama"),
)
_DAMAGE: dict[str, Damage] = {"not_an_image": "no_image", "truncated_jpeg": "truncated"}


def _plant(
    plan: LayoutPlan,
    config: ToyCityConfig,
    city: str,
    rows: list[_Row],
    photo: Photo,
    fault: str,
    expected: str,
) -> None:
    """Append the row and photo of one fault to the query part."""
    row = _row(photo)
    if fault == "empty_position":
        row = replace(row, lat="", lon="")
    row = replace(row, panorama=fault.startswith("panorama"))
    path = _path(city, "query", row.key)
    rows.append(row)
    if fault != "missing_file":
        plan.photos.append(photo.task(config, path, damage=_DAMAGE.get(fault, "")))
    plan.add_fault(city, path, fault, expected, f"msls/train_val/{city}/query/raw.csv", len(rows) - 1)
