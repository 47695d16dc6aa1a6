"""The evaluation set: `eval/images/test/{database,queries}/@...jpg`, streets that no training layout shows.

A query's place has photos in the database, taken at other times; distractor places are in the database alone.
"""

from placeray import geo
from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import EVAL_TOWN, free_places, open_district
from placeray.toycity.layouts.at_names import at_name
from placeray.toycity.photos import Photo, take_photo
from placeray.toycity.plan import LayoutPlan

DISTRICT = 60


def plan_evaluation(config: ToyCityConfig) -> LayoutPlan:
    """Queries and database of held-out places."""
    plan = LayoutPlan("eval")
    sizes = config.evaluation
    if not sizes.places:
        return plan
    district = open_district(config.seed, DISTRICT, EVAL_TOWN, bearing_deg=24.0)
    places = free_places(district, sizes.places + sizes.distractor_places)
    for place in places:
        shown = place.number < sizes.places
        for index in range(sizes.database_photos if shown else 1):
            _add(plan, config, take_photo(config, place, index), "database")
        for index in range(sizes.queries if shown else 0):
            _add(plan, config, take_photo(config, place, 100 + index), "queries")
    plan.places["test"] = sizes.places
    return plan


def _add(plan: LayoutPlan, config: ToyCityConfig, photo: Photo, role: str) -> None:
    zone = photo.place.district.zone
    lat, lon = geo.from_utm([photo.east_m], [photo.north_m], zone)
    name = at_name(
        east_m=photo.east_m,
        north_m=photo.north_m,
        zone=zone,
        lat=float(lat[0]),
        lon=float(lon[0]),
        panorama=f"{photo.place.number:06d}x{photo.shot.seed:010d}",
        heading=f"{round(photo.heading_deg) % 360:03d}",
        captured=f"{photo.shot.year}{photo.shot.month:02d}{photo.shot.day:02d}",
        note="night" if photo.shot.night else "day",
    )
    plan.photos.append(photo.task(config, f"eval/images/test/{role}/{name}"))
    plan.read["test"] += 1
