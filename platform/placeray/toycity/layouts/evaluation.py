"""The evaluation set: `eval/images/test/{database,queries}/@...jpg`, streets that no training layout shows.

A query's place has photos in the database, taken at other times; distractor places are in the database alone.
"""

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.districts import EVAL_TOWN, free_places, open_district
from placeray.toycity.layouts.at_names import at_name
from placeray.toycity.photos import Photo, locate, take_photo
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
    queried = places[: sizes.places]
    roles = {
        "database": [
            take_photo(config, place, index) for place in queried for index in range(sizes.database_photos)
        ]
        + [take_photo(config, place, 0) for place in places[sizes.places :]],
        "queries": [
            take_photo(config, place, 100 + index) for place in queried for index in range(sizes.queries)
        ],
    }
    for role, photos in roles.items():
        for photo in locate(photos):
            plan.photos.append(photo.task(config, f"eval/images/test/{role}/{_name(photo)}"))
        plan.read["test"] += len(photos)
    plan.places["test"] = sizes.places
    return plan


def _name(photo: Photo) -> str:
    return at_name(
        east_m=photo.east_m,
        north_m=photo.north_m,
        zone=photo.place.district.zone,
        lat=photo.lat,
        lon=photo.lon,
        panorama=f"{photo.place.number:06d}x{photo.shot.seed:010d}",
        heading=f"{round(photo.heading_deg) % 360:03d}",
        captured=f"{photo.shot.year}{photo.shot.month:02d}{photo.shot.day:02d}",
        note="night" if photo.shot.night else "day",
    )
