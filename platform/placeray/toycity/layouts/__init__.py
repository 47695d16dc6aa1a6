"""One file per raw layout: how the photos of a district become files, names and tables.

A layout is a function from the city's config to a `LayoutPlan`. Faults are planted in extra photos, so that a
city with faults holds the city without them.
"""

from collections.abc import Callable

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.layouts.evaluation import plan_evaluation
from placeray.toycity.layouts.gsv_cities import plan_gsv_cities
from placeray.toycity.layouts.msls import plan_msls
from placeray.toycity.layouts.pitts30k import plan_pitts30k
from placeray.toycity.layouts.pitts30k_mat import plan_pitts30k_mat
from placeray.toycity.layouts.sf_xl import plan_sf_xl
from placeray.toycity.plan import LayoutPlan

LAYOUTS: dict[str, Callable[[ToyCityConfig], LayoutPlan]] = {
    "gsv_cities": plan_gsv_cities,
    "sf_xl": plan_sf_xl,
    "pitts30k_mat": plan_pitts30k_mat,
    "pitts30k": plan_pitts30k,
    "msls": plan_msls,
    "eval": plan_evaluation,
}
