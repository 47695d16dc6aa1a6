"""GSV-Cities: `Images/<city>/<composed name>.jpg` and one CSV per city.

Coordinates are written as `str(float)`, in the CSV and in the names. Source: `amaralibey/gsv-cities`.
"""

import string
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import GSV_TOWNS, free_places, open_district
from placeray.toycity.photos import FAULTY, Damage, Photo, aim_photo, locate, photo_id, take_all, take_photo
from placeray.toycity.plan import KEPT, LayoutPlan

DISTRICT = 10  # and the following numbers, one per known city
HEADER = "place_id,year,month,northdeg,city_id,lat,lon,panoid"
LETTERS = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True)
class _Row:
    """A line of the CSV, as text."""

    place_id: int
    year: int
    month: int
    northdeg: int
    city: str
    lat: str
    lon: str
    panoid: str

    @property
    def line(self) -> str:
        return ",".join(str(value) for value in vars(self).values())

    @property
    def path(self) -> str:
        stem = f"{self.city}_{self.place_id:07d}_{self.year:04d}_{self.month:02d}_{self.northdeg:03d}"
        return f"gsv_cities/Images/{self.city}/{stem}_{self.lat}_{self.lon}_{self.panoid}.jpg"


def plan_gsv_cities(config: ToyCityConfig) -> LayoutPlan:
    """All cities; the faults go into the first one."""
    plan = LayoutPlan("gsv_cities")
    for number, city in enumerate(config.gsv_cities.cities if config.gsv_cities.places_per_city else ()):
        _plan_city(plan, config, city, with_faults=config.faults and number == 0)
    return plan


def _plan_city(plan: LayoutPlan, config: ToyCityConfig, city: str, with_faults: bool) -> None:
    number = DISTRICT + list(GSV_TOWNS).index(city)
    district = open_district(config.seed, number, GSV_TOWNS[city], bearing_deg=17.0 + 29 * (number % 3))
    places = free_places(district, config.gsv_cities.places_per_city)
    photos = locate(take_all(config, places))
    rows = [_row(city, photo) for photo in photos]
    plan.photos += [photo.task(config, row.path) for photo, row in zip(photos, rows, strict=True)]
    table = f"gsv_cities/Dataframes/{city}.csv"
    if with_faults:
        for index, fault in enumerate(_FAULTS):
            photo = take_photo(config, places[index % len(places)], FAULTY + index)
            _plant(plan, config, city, table, rows, locate([photo])[0], *fault)
    plan.files[table] = "\n".join([HEADER, *(row.line for row in rows), ""]).encode()
    plan.read[city] = len(rows)
    plan.places[city] = len(places)


def _row(city: str, photo: Photo) -> _Row:
    return _Row(
        place_id=photo.place.number,
        year=photo.shot.year,
        month=photo.shot.month,
        northdeg=round(photo.heading_deg) % 360,
        city=city,
        lat=str(round(photo.lat, 7)),
        lon=str(round(photo.lon, 7)),
        panoid=photo_id(photo, 41, LETTERS, 22),
    )


# (fault, what a good reader does)
_FAULTS = (
    ("truncated_jpeg", "decode_error"),
    ("empty_file", "decode_error"),
    ("missing_file", "missing_file"),
    ("duplicate_row", "duplicate"),
    ("lat_out_of_range", "no_position"),
    ("northdeg_411", KEPT),
    ("panoid_digits_leading_zeros", KEPT),
    ("panoid_NA", KEPT),
    ("panoid_underscore_and_dash", KEPT),
    ("extension_upper_case", KEPT),
    ("coordinates_17_digits", KEPT),
)


def _plant(
    plan: LayoutPlan,
    config: ToyCityConfig,
    city: str,
    table: str,
    rows: list[_Row],
    photo: Photo,
    fault: str,
    expected: str,
) -> None:
    """Append the row and photo of one fault."""
    row, damage = _row(city, photo), _DAMAGE.get(fault, "")
    if fault == "northdeg_411":
        row = replace(row, northdeg=411)
        photo = aim_photo(photo, 51)
    elif fault == "lat_out_of_range":
        row = replace(row, lat="95.5")
    elif fault in _PANOIDS:
        row = replace(row, panoid=_PANOIDS[fault])
    elif fault == "coordinates_17_digits":
        row = replace(row, lat=_seventeen(row.lat), lon=_seventeen(row.lon))
    path = row.path
    if fault == "extension_upper_case":
        path = str(PurePosixPath(path).with_suffix(".JPG"))
    rows.append(row)
    if fault != "missing_file":
        plan.photos.append(photo.task(config, path, damage=damage))
    if fault == "duplicate_row":
        rows.append(row)
    plan.add_fault(city, path, fault, expected, table, len(rows) - 1)


_DAMAGE: dict[str, Damage] = {"truncated_jpeg": "truncated", "empty_file": "empty"}
_PANOIDS = {
    "panoid_digits_leading_zeros": "0001234567890123456789",
    "panoid_NA": "NA",
    "panoid_underscore_and_dash": "_a-B__c-9_D-e_F-gh__i_",
}


def _seventeen(number: str) -> str:
    """The same coordinate, less than a millimetre on, as a float that needs 17 significant digits."""
    value = float(number)
    for step in range(1, 1000):
        moved = value + step * 7.3e-12
        if len(repr(moved).replace("-", "").replace(".", "").lstrip("0")) == 17:
            return repr(moved)
    return repr(value)
