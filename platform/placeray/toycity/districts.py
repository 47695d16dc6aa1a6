"""Where on the earth the streets lie, and where along them the places are.

Every layout has a district of its own: its own town, its own streets. Streets are parallel; those of layouts
whose places are cells of the UTM grid run north and put each place into the middle of a cell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from placeray import geo
from placeray.toycity.street import StreetKey

# (latitude, longitude) of the south-west corner of a district.
GSV_TOWNS = {
    "London": (51.52, -0.14), "Melbourne": (-37.82, 144.95), "Osaka": (34.68, 135.49),
    "BuenosAires": (-34.61, -58.42), "PRS": (48.85, 2.33), "Boston": (42.34, -71.09),
    "Chicago": (41.86, -87.66), "Lisbon": (38.72, -9.16), "OSL": (59.91, 10.72),
}  # fmt: skip
MSLS_TOWNS = {
    "helsinki": (60.16, 24.92), "trondheim": (63.42, 10.39), "amsterdam": (52.36, 4.88),
    "berlin": (52.50, 13.38), "melbourne": (-37.90, 145.10), "cph": (55.67, 12.56), "sf": (37.60, -122.45),
}  # fmt: skip
SF_XL_TOWN = (37.75, -122.44)
PITTS_TOWN = (40.44, -80.00)
EVAL_TOWN = (35.68, 139.74)

PLACES_PER_STREET = 8
STREETS_PER_BLOCK = 64  # then the next row of streets begins, further north


@dataclass(frozen=True)
class District:
    """A town's grid of parallel streets."""

    seed: int
    number: int  # tells the streets of two districts apart
    east_m: float
    north_m: float
    zone: str
    bearing_deg: float = 0.0  # of its streets, clockwise from north

    @property
    def south(self) -> bool:
        """Whether the seasons are those of the southern hemisphere."""
        return self.zone[-1] < "N"


@dataclass(frozen=True)
class Place:
    """A spot on the middle line of a street, and the direction its photos look in."""

    number: int
    district: District
    street: StreetKey
    street_east_m: float  # UTM of the street's x = 0
    street_north_m: float
    x_m: float
    view_deg: float  # clockwise from north
    step_m: float  # photos stay this close, so that they share the place's cell
    turn_deg: float  # and turn no further than this from view_deg

    def to_utm(self, x_m: float, y_m: float) -> tuple[float, float]:
        """(east, north) of a point in the frame of the street."""
        bearing = math.radians(self.district.bearing_deg)
        east = self.street_east_m + x_m * math.sin(bearing) + y_m * math.cos(bearing)
        return east, self.street_north_m + x_m * math.cos(bearing) - y_m * math.sin(bearing)


def open_district(
    seed: int, number: int, town: tuple[float, float], shift_m: float = 0.0, bearing_deg: float = 0.0
) -> District:
    """The district of a town, `shift_m` metres further north."""
    utm = geo.to_utm([town[0]], [town[1]])
    return District(
        seed, number, float(utm.east[0]), float(utm.north[0]) + shift_m, str(utm.zone[0]), bearing_deg
    )


def free_places(district: District, count: int, spacing_m: float = 110.0) -> list[Place]:
    """Places anywhere along the streets, `spacing_m` and more apart, looking in any direction."""
    rng = np.random.default_rng([district.seed, 21, district.number])
    length = int(spacing_m * PLACES_PER_STREET)
    places = []
    for number in range(count):
        street, position = divmod(number, PLACES_PER_STREET)
        row, column = divmod(street, STREETS_PER_BLOCK)
        x = (position + 0.5) * spacing_m
        view = _look_aside(rng) + district.bearing_deg
        east, north = column * (spacing_m + 15), row * (length + 200.0)
        bearing = math.radians(district.bearing_deg)
        places.append(
            Place(
                number=number,
                district=district,
                street=StreetKey(district.seed, district.number, street, length),
                street_east_m=district.east_m + east * math.cos(bearing) + north * math.sin(bearing),
                street_north_m=district.north_m - east * math.sin(bearing) + north * math.cos(bearing),
                x_m=x,
                view_deg=view % 360,
                step_m=5.0,
                turn_deg=40.0,
            )
        )
    return places


@dataclass(frozen=True)
class Cells:
    """The class rule a layout's places have to fit: cell side M, group stride N, heading bin alpha, stride L."""

    cell_m: int
    stride: int
    bin_deg: int = 60
    bin_stride: int = 2

    def group(self, number: int) -> tuple[int, int, int]:
        """The group triple (east, north, heading) with a running number; (0, 0, 0) is number 0."""
        turn, cell = number % self.bin_stride, number // self.bin_stride
        return cell % self.stride, cell // self.stride % self.stride, turn


def cell_places(
    district: District,
    count: int,
    rule: Cells,
    groups: list[int],
    *,
    first_street: int = 0,
    compass: Callable[[float], float] = lambda heading: heading,
) -> list[Place]:
    """Places in the middle of cells and heading bins; the streets take turns in showing the given groups.

    Two places of one group lie at least two strides of cells apart. Photos do not look straight along the street,
    where two neighbouring places would show the same.

    Args:
        compass: turns a heading as the layout writes it down into degrees clockwise from north.
    """
    rng = np.random.default_rng([district.seed, 22, district.number, first_street])
    period = rule.cell_m * rule.stride
    spacing = 2 * period
    length = spacing * PLACES_PER_STREET
    per_row = math.ceil((length + 200) / period) * period
    east0, north0 = (math.floor(value / period) * period for value in (district.east_m, district.north_m))
    bins = 360 // rule.bin_deg
    places = []
    for number in range(count):
        street, position = divmod(number, PLACES_PER_STREET)
        group_east, group_north, group_turn = rule.group(groups[street % len(groups)])
        row, column = divmod(first_street + street, STREETS_PER_BLOCK)
        middles = [(turn + 0.5) * rule.bin_deg for turn in range(group_turn, bins, rule.bin_stride)]
        views = [view for view in map(compass, middles) if abs(math.sin(math.radians(view))) > 0.3]
        places.append(
            Place(
                number=number,
                district=district,
                street=StreetKey(district.seed, district.number, first_street + street, length),
                street_east_m=east0 + column * 3 * period + (group_east + 0.5) * rule.cell_m,
                street_north_m=north0 + row * per_row + (group_north + 0.5) * rule.cell_m,
                x_m=float(position * spacing),
                view_deg=float(rng.choice(views)) % 360,
                step_m=rule.cell_m / 2 - 0.4,
                turn_deg=rule.bin_deg / 2 - 1.5,
            )
        )
    return places


def _look_aside(rng: np.random.Generator) -> float:
    """A direction relative to the street: mostly towards one side, seldom straight along it."""
    side = 1 if rng.random() < 0.5 else -1
    return float(side * rng.uniform(30, 150))
